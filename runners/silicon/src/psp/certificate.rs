//! Certificates of SEV's own kind (55766, appendix C).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ecdsa::{Hash, PrivateKey, PublicKeyBlock, SignatureBlock};
use super::{API_MAJOR, API_MINOR};

/// Bytes of a certificate.
pub(super) const CERTIFICATE_LENGTH: u32 = 2084;
const VERSION: u32 = 1;
/// Bytes that are signed: all before the signatures.
const SIGNED: usize = 0x414;

/// What a key is for (55766, "Key Usages").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Usage {
    /// No key.
    None = 0x1000,
    /// The owner's certificate authority.
    Oca = 0x1001,
    /// Platform endorsement key.
    Pek = 0x1002,
    /// Platform Diffie-Hellman key.
    Pdh = 0x1003,
    /// Chip endorsement key.
    Cek = 0x1004,
}

/// What is computed with a key (55766, "Key Algorithms").
mod algorithm {
    pub(super) const NONE: u32 = 0;
    pub(super) const ECDSA_SHA256: u32 = 0x002;
    pub(super) const ECDH_SHA256: u32 = 0x003;
    pub(super) const ECDSA_SHA384: u32 = 0x102;
    pub(super) const ECDH_SHA384: u32 = 0x103;
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Signed {
    usage: U32,
    algorithm: U32,
    signature: SignatureBlock,
}

impl Signed {
    const NONE: Signed = Signed {
        usage: U32::new(Usage::None as u32),
        algorithm: U32::new(algorithm::NONE),
        signature: SignatureBlock::NONE,
    };
}

/// A certificate, which may be nonsense: it comes from the host.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Certificate {
    version: U32,
    api_major: u8,
    api_minor: u8,
    reserved: [u8; 2],
    usage: U32,
    algorithm: U32,
    key: PublicKeyBlock,
    signatures: [Signed; 2],
}

impl Certificate {
    /// Of a key that nobody vouches for yet.
    pub(super) fn new(usage: Usage, key: PublicKeyBlock) -> Certificate {
        let algorithm = if usage == Usage::Pdh { algorithm::ECDH_SHA256 } else { algorithm::ECDSA_SHA256 };
        Certificate {
            version: U32::new(VERSION),
            api_major: API_MAJOR,
            api_minor: API_MINOR,
            reserved: [0; 2],
            usage: U32::new(usage as u32),
            algorithm: U32::new(algorithm),
            key,
            signatures: [Signed::NONE; 2],
        }
    }

    /// With the signature of a key of this usage in the first place that is free.
    pub(super) fn signed_by(mut self, usage: Usage, key: &PrivateKey) -> Certificate {
        let signature = key.sign(self.signed_bytes(), Hash::Sha256);
        let free = self.signatures.iter_mut().find(|signed| signed.usage.get() == Usage::None as u32);
        if let Some(signed) = free {
            *signed = Signed { usage: U32::new(usage as u32), algorithm: U32::new(algorithm::ECDSA_SHA256), signature };
        }
        self
    }

    /// The key, if the certificate is one of this usage.
    pub(super) fn key(&self, usage: Usage) -> Option<&PublicKeyBlock> {
        let exchanges = matches!(self.algorithm.get(), algorithm::ECDH_SHA256 | algorithm::ECDH_SHA384);
        let signs = matches!(self.algorithm.get(), algorithm::ECDSA_SHA256 | algorithm::ECDSA_SHA384);
        let fits = if usage == Usage::Pdh { exchanges } else { signs };
        let valid = self.version.get() == VERSION && self.usage.get() == usage as u32 && fits && self.key.on_p384();
        valid.then_some(&self.key)
    }

    /// Whether `signer`, of this usage, has signed it.
    pub(super) fn is_signed_by(&self, usage: Usage, signer: &Certificate) -> bool {
        signer.key(usage).is_some_and(|key| {
            self.signatures.iter().filter(|signed| signed.usage.get() == usage as u32).any(|signed| {
                let hash = match signed.algorithm.get() {
                    algorithm::ECDSA_SHA256 => Hash::Sha256,
                    algorithm::ECDSA_SHA384 => Hash::Sha384,
                    _ => return false,
                };
                key.verifies(self.signed_bytes(), hash, &signed.signature)
            })
        })
    }

    /// Whether two certificates are about the same thing, whoever has signed them.
    pub(super) fn same_subject(&self, other: &Certificate) -> bool {
        self.signed_bytes() == other.signed_bytes()
    }

    fn signed_bytes(&self) -> &[u8] {
        &self.as_bytes()[..SIGNED]
    }
}

/// A certificate that the firmware keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept(Vec<u8>);

impl Kept {
    pub(super) fn new(certificate: &Certificate) -> Kept {
        Kept(certificate.as_bytes().to_vec())
    }

    /// None only of what never was one.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        Certificate::read_from_bytes(&self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn key(number: u8) -> PrivateKey {
        PrivateKey::derived(&[number; 32], b"test")
    }

    /// 55766, table "SEV Certificate Format".
    #[test]
    fn the_layout_is_the_specifications() {
        assert_eq!(size_of::<Certificate>(), CERTIFICATE_LENGTH as usize);
        assert_eq!(std::mem::offset_of!(Certificate, signatures), SIGNED);
        let bytes = Certificate::new(Usage::Pdh, key(1).public());
        assert_eq!(bytes.as_bytes()[..16], [1, 0, 0, 0, 1, 55, 0, 0, 3, 0x10, 0, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn a_certificate_is_signed_by_whom_it_says() {
        let authority = Certificate::new(Usage::Oca, key(1).public());
        let other = Certificate::new(Usage::Oca, key(2).public());
        let pek = Certificate::new(Usage::Pek, key(3).public()).signed_by(Usage::Oca, &key(1));
        assert!(pek.is_signed_by(Usage::Oca, &authority));
        assert!(!pek.is_signed_by(Usage::Oca, &other));
        assert!(!pek.is_signed_by(Usage::Cek, &authority), "it is no chip's key");
        let mut changed = pek.clone();
        changed.api_minor ^= 1;
        assert!(!changed.is_signed_by(Usage::Oca, &authority));
        assert!(!changed.same_subject(&pek) && pek.same_subject(&pek.clone()));
    }

    #[test]
    fn a_key_is_good_for_its_own_usage() {
        let pek = Certificate::new(Usage::Pek, key(3).public());
        assert!(pek.key(Usage::Pek).is_some() && pek.key(Usage::Pdh).is_none());
        let renamed = Certificate { usage: U32::new(Usage::Pdh as u32), ..pek.clone() };
        assert!(renamed.key(Usage::Pdh).is_none(), "it is for signatures");
        assert!(Certificate::new_zeroed().key(Usage::Pek).is_none());
        assert_eq!(Kept::new(&pek).certificate().unwrap().as_bytes(), pek.as_bytes());
    }
}
