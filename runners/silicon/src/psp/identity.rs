//! Who the platform is: its keys, their certificates, and its owner (55766, chapter 5 and "Keys").
//!
//! ```text
//! CEK (the chip's) ──┐
//!                    ├─ sign ─ PEK ─ signs ─ PDH
//! OCA (the owner's) ─┘
//! ```
//!
//! The CEK's own certificate is signed by AMD on hardware. Here nobody signs it, so that nobody takes the sim for a chip.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::certificate::{CERTIFICATE_LENGTH, Certificate, Kept, Usage};
use super::ecdsa::PrivateKey;
use super::{Psp, Status, Surroundings};

/// What of the platform's identity outlives SHUTDOWN and power.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// How often a PEK was generated, and a PDH.
    pek: u32,
    pdh: u32,
    /// None while the platform is its own owner.
    owner: Option<Owner>,
}

/// What PEK_CERT_IMPORT has brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    authority: Kept,
    /// The PEK's, signed by it.
    pek: Kept,
}

/// PEK, OCA and CEK, as commands lay them out.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Chain {
    pub(super) pek: Certificate,
    pub(super) oca: Certificate,
    pub(super) cek: Certificate,
}

/// Bytes of it.
pub(super) const CHAIN_LENGTH: u32 = 3 * CERTIFICATE_LENGTH;

impl Chain {
    /// Whether a PDH is a platform's: signed by a PEK, which owner and chip have signed.
    pub(super) fn vouches_for(&self, pdh: &Certificate) -> bool {
        pdh.is_signed_by(Usage::Pek, &self.pek)
            && self.pek.is_signed_by(Usage::Oca, &self.oca)
            && self.pek.is_signed_by(Usage::Cek, &self.cek)
            && self.oca.is_signed_by(Usage::Oca, &self.oca)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct CsrParameters {
    address: U64,
    length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ImportParameters {
    pek_address: U64,
    pek_length: U32,
    reserved: U32,
    oca_address: U64,
    oca_length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ExportParameters {
    pdh_address: U64,
    pdh_length: U32,
    reserved: U32,
    chain_address: U64,
    chain_length: U32,
}

impl Psp {
    /// The platform has an owner who is not itself.
    pub(super) fn is_externally_owned(&self) -> bool {
        self.identity.owner.is_some()
    }

    fn private_key(&self, usage: Usage, generation: u32) -> PrivateKey {
        PrivateKey::derived(&self.seed, format!("{usage:?} {generation}").as_bytes())
    }

    pub(super) fn pek(&self) -> PrivateKey {
        self.private_key(Usage::Pek, self.identity.pek)
    }

    /// The key that sessions are agreed with.
    pub(super) fn pdh(&self) -> PrivateKey {
        self.private_key(Usage::Pdh, self.identity.pdh)
    }

    /// The PDH's certificate.
    pub(super) fn pdh_certificate(&self) -> Certificate {
        Certificate::new(Usage::Pdh, self.pdh().public()).signed_by(Usage::Pek, &self.pek())
    }

    /// The certificates that vouch for it.
    pub(super) fn chain(&self) -> Chain {
        let cek = self.private_key(Usage::Cek, 0);
        let certificate = Certificate::new(Usage::Cek, cek.public());
        let owner = self.identity.owner.as_ref();
        match owner.and_then(|owner| owner.pek.certificate().zip(owner.authority.certificate())) {
            Some((pek, oca)) => Chain { pek: pek.signed_by(Usage::Cek, &cek), oca, cek: certificate },
            None => {
                let oca = self.private_key(Usage::Oca, self.identity.pek);
                let pek = Certificate::new(Usage::Pek, self.pek().public());
                Chain {
                    pek: pek.signed_by(Usage::Oca, &oca).signed_by(Usage::Cek, &cek),
                    oca: Certificate::new(Usage::Oca, oca.public()).signed_by(Usage::Oca, &oca),
                    cek: certificate,
                }
            }
        }
    }

    /// In state INIT: initialised, without guests.
    fn check_no_guests(&mut self) -> Result<(), Status> {
        if self.sev()?.guests.is_empty() { Ok(()) } else { Err(Status::InvalidPlatformState) }
    }

    /// PEK_GEN (55766, 5.7): new keys, and no owner but the platform.
    pub(super) fn pek_gen(&mut self) -> Result<(), Status> {
        self.check_no_guests()?;
        self.identity = Identity { pek: self.identity.pek + 1, pdh: self.identity.pdh + 1, owner: None };
        Ok(())
    }

    /// PDH_GEN (55766, 5.10).
    pub(super) fn pdh_gen(&mut self) -> Result<(), Status> {
        self.sev()?;
        self.identity.pdh += 1;
        Ok(())
    }

    /// FACTORY_RESET (55766, 5.4): nothing is left of what was generated or imported.
    pub(super) fn factory_reset(&mut self) -> Result<(), Status> {
        if self.sev.is_some() {
            return Err(Status::InvalidPlatformState);
        }
        self.identity = Identity { pek: self.identity.pek + 1, pdh: self.identity.pdh + 1, owner: None };
        Ok(())
    }

    /// PEK_CSR (55766, 5.8): what an owner is to sign.
    pub(super) fn pek_csr(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: CsrParameters = around.parameters(at)?;
        self.sev()?;
        self.check_output(around, at, size_of::<CsrParameters>() as u64)?;
        let given = parameters.length.get();
        parameters.length = U32::new(CERTIFICATE_LENGTH);
        if given < CERTIFICATE_LENGTH {
            around.store(at, &parameters);
            return Err(Status::InvalidLength);
        }
        self.check_output(around, parameters.address.get(), CERTIFICATE_LENGTH.into())?;
        around.store(parameters.address.get(), &Certificate::new(Usage::Pek, self.pek().public()));
        around.store(at, &parameters);
        Ok(())
    }

    /// PEK_CERT_IMPORT (55766, 5.9): the platform gets an owner, who has signed its PEK.
    pub(super) fn pek_cert_import(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: ImportParameters = around.parameters(at)?;
        self.check_no_guests()?;
        if self.is_externally_owned() {
            return Err(Status::AlreadyOwned);
        }
        if [parameters.pek_length, parameters.oca_length].iter().any(|length| length.get() != CERTIFICATE_LENGTH) {
            return Err(Status::InvalidLength);
        }
        let pek: Certificate = around.load(parameters.pek_address.get())?;
        let oca: Certificate = around.load(parameters.oca_address.get())?;
        let own = pek.same_subject(&Certificate::new(Usage::Pek, self.pek().public()));
        if !own || !pek.is_signed_by(Usage::Oca, &oca) || !oca.is_signed_by(Usage::Oca, &oca) {
            return Err(Status::InvalidCertificate);
        }
        let owner = Owner { authority: Kept::new(&oca), pek: Kept::new(&pek) };
        self.identity = Identity { owner: Some(owner), pdh: self.identity.pdh + 1, ..self.identity };
        Ok(())
    }

    /// PDH_CERT_EXPORT (55766, 5.11): what a guest's owner and other platforms want to see.
    pub(super) fn pdh_cert_export(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: ExportParameters = around.parameters(at)?;
        self.sev()?;
        self.check_output(around, at, size_of::<ExportParameters>() as u64)?;
        let short = parameters.pdh_length.get() < CERTIFICATE_LENGTH || parameters.chain_length.get() < CHAIN_LENGTH;
        parameters.pdh_length = U32::new(CERTIFICATE_LENGTH);
        parameters.chain_length = U32::new(CHAIN_LENGTH);
        if !short {
            self.check_output(around, parameters.pdh_address.get(), CERTIFICATE_LENGTH.into())?;
            self.check_output(around, parameters.chain_address.get(), CHAIN_LENGTH.into())?;
            around.store(parameters.pdh_address.get(), &self.pdh_certificate());
            around.store(parameters.chain_address.get(), &self.chain());
        }
        around.store(at, &parameters);
        if short { Err(Status::InvalidLength) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalMemory;
    use crate::psp::Command;
    use crate::psp::test_machine::{BUFFER, TestMachine};

    const PDH: u64 = 0x3000;
    const CHAIN: u64 = 0x4000;

    fn initialised() -> TestMachine {
        let mut machine = TestMachine::new();
        assert_eq!(machine.init_sev(), Status::Success);
        machine
    }

    fn export(machine: &mut TestMachine) -> (Certificate, Chain) {
        let words = [PDH, CERTIFICATE_LENGTH.into(), CHAIN, CHAIN_LENGTH.into()];
        assert_eq!(machine.execute_words(Command::PdhCertExport, &words), Status::Success);
        let (_, mut around) = machine.parts();
        (around.load(PDH).unwrap(), around.load(CHAIN).unwrap())
    }

    fn import(machine: &mut TestMachine, pek: &Certificate, oca: &Certificate) -> Status {
        machine.memory.write(PDH, pek.as_bytes());
        machine.memory.write(CHAIN, oca.as_bytes());
        let words = [PDH, CERTIFICATE_LENGTH.into(), CHAIN, CERTIFICATE_LENGTH.into()];
        machine.execute_words(Command::PekCertImport, &words)
    }

    #[test]
    fn the_chain_vouches_for_the_pdh() {
        let mut machine = initialised();
        let (pdh, chain) = export(&mut machine);
        assert!(chain.vouches_for(&pdh));
        assert_eq!(machine.execute(Command::PdhGen, &[]), Status::Success);
        let (new, _) = export(&mut machine);
        assert!(chain.vouches_for(&new) && !new.same_subject(&pdh));
        assert_eq!(machine.execute(Command::PekGen, &[]), Status::Success);
        let (newest, _) = export(&mut machine);
        assert!(!chain.vouches_for(&newest), "by another PEK");
    }

    #[test]
    fn too_short_buffers_learn_how_long_certificates_are() {
        let mut machine = initialised();
        assert_eq!(machine.execute_words(Command::PdhCertExport, &[PDH, 0, CHAIN, 0]), Status::InvalidLength);
        let lengths = machine.output::<28>(BUFFER);
        assert_eq!((&lengths[8..12], &lengths[24..]), (&[0x24, 8, 0, 0][..], &[0x6c, 0x18, 0, 0][..]));
        assert_eq!(machine.execute_words(Command::PekCsr, &[PDH, 0]), Status::InvalidLength);
        assert_eq!(machine.output::<12>(BUFFER)[8..], [0x24, 8, 0, 0]);
    }

    #[test]
    fn an_owner_signs_the_pek_and_is_there_until_new_keys_are() {
        let mut machine = initialised();
        assert_eq!(machine.execute_words(Command::PekCsr, &[PDH, CERTIFICATE_LENGTH.into()]), Status::Success);
        let (_, mut around) = machine.parts();
        let request: Certificate = around.load(PDH).unwrap();
        let owner = PrivateKey::derived(&[9; 32], b"owner");
        let oca = Certificate::new(Usage::Oca, owner.public()).signed_by(Usage::Oca, &owner);
        assert_eq!(import(&mut machine, &request, &oca), Status::InvalidCertificate, "not signed");
        let pek = request.signed_by(Usage::Oca, &owner);
        let stranger = Certificate::new(Usage::Pek, owner.public()).signed_by(Usage::Oca, &owner);
        assert_eq!(import(&mut machine, &stranger, &oca), Status::InvalidCertificate, "another platform's");
        assert_eq!(import(&mut machine, &pek, &oca), Status::Success);
        assert_eq!(import(&mut machine, &pek, &oca), Status::AlreadyOwned);
        let (pdh, chain) = export(&mut machine);
        assert!(chain.vouches_for(&pdh) && chain.oca.same_subject(&oca));
        machine.execute(Command::PlatformStatus, &[0; 12]);
        assert_eq!(machine.output::<12>(BUFFER)[3], 1, "externally owned");
        assert_eq!(machine.execute(Command::PekGen, &[]), Status::Success);
        machine.execute(Command::PlatformStatus, &[0; 12]);
        assert_eq!(machine.output::<12>(BUFFER)[3], 0);
    }

    #[test]
    fn keys_change_without_guests_only() {
        let mut machine = TestMachine::new();
        assert_eq!(machine.execute(Command::PekGen, &[]), Status::InvalidPlatformState);
        assert_eq!(machine.execute(Command::PdhGen, &[]), Status::InvalidPlatformState);
        assert_eq!(machine.execute(Command::FactoryReset, &[]), Status::Success);
        machine.init_sev();
        assert_eq!(machine.execute(Command::FactoryReset, &[]), Status::InvalidPlatformState);
        machine.launch_start(0);
        assert_eq!(machine.execute(Command::PekGen, &[]), Status::InvalidPlatformState);
        assert_eq!(machine.execute(Command::PdhGen, &[]), Status::Success);
    }
}
