//! Sending a running guest to another platform (55766, chapter 6: SEND_START to SEND_CANCEL).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::certificate::{CERTIFICATE_LENGTH, Certificate, Usage};
use super::guest::Phase;
use super::identity::{CHAIN_LENGTH, Chain};
use super::packet::{Content, HEADER_LENGTH, PacketHeader, PacketParameters};
use super::session::{SESSION_LENGTH, Session, TransportKeys};
use super::{Psp, Status, Surroundings};
use crate::Rule;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct StartParameters {
    handle: U32,
    policy: U32,
    pdh_address: U64,
    pdh_length: U32,
    reserved: U32,
    chain_address: U64,
    chain_length: U32,
    reserved_2: U32,
    amd_address: U64,
    amd_length: U32,
    reserved_3: U32,
    session_address: U64,
    session_length: U32,
}

impl Psp {
    /// SEND_START: agrees on a channel with the platform whose certificates these are. Without room for the session
    /// it tells how long one is.
    pub(super) fn send_start(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: StartParameters = around.parameters(at)?;
        let policy = self.active_guest(parameters.handle, |phase| *phase == Phase::Running)?.policy;
        self.check_output(around, at, size_of::<StartParameters>() as u64)?;
        let given = parameters.session_length.get();
        parameters.session_length = U32::new(SESSION_LENGTH);
        parameters.policy = U32::new(policy.0);
        if given < SESSION_LENGTH {
            around.store(at, &parameters);
            return Err(Status::InvalidLength);
        }
        self.demand(Rule::SendPolicy, !policy.no_send(), Status::PolicyFailure)?;
        // Whom AMD vouches for is not known here: nobody has signed the chips of sims.
        if policy.only_to_amd() {
            return Err(Status::Unsupported);
        }
        let pdh = self.target(around, &parameters, policy.only_within_domain())?;
        let to = parameters.session_address.get();
        self.check_output(around, to, SESSION_LENGTH.into())?;
        let keys = TransportKeys::fresh(&mut self.entropy);
        let key = pdh.key(Usage::Pdh).ok_or(Status::InvalidCertificate)?;
        let session = Session::offer(&self.pdh(), key, policy, &keys, &mut self.entropy)?;
        around.store(to, &session);
        around.store(at, &parameters);
        let guest = self.guest(parameters.handle)?;
        guest.transport = keys;
        guest.phase = Phase::Sending;
        Ok(())
    }

    /// The certificate of the platform that the guest goes to.
    fn target(
        &self,
        around: &mut Surroundings<'_>,
        parameters: &StartParameters,
        same_owner: bool,
    ) -> Result<Certificate, Status> {
        if parameters.pdh_length.get() != CERTIFICATE_LENGTH || parameters.chain_length.get() != CHAIN_LENGTH {
            return Err(Status::InvalidLength);
        }
        let pdh: Certificate = around.load(parameters.pdh_address.get())?;
        let chain: Chain = around.load(parameters.chain_address.get())?;
        let proven = chain.vouches_for(&pdh) && (!same_owner || chain.oca.same_subject(&self.chain().oca));
        self.demand(Rule::SendTarget, proven, Status::InvalidCertificate)?;
        Ok(pdh)
    }

    /// SEND_UPDATE_DATA: memory of the guest for the channel. Without room for the header it tells how long one is.
    pub(super) fn send_update_data(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: PacketParameters = around.parameters(at)?;
        let guest = self.active_guest(parameters.handle, |phase| *phase == Phase::Sending)?;
        let (keys, key) = (guest.transport.clone(), guest.key);
        self.check_output(around, at, size_of::<PacketParameters>() as u64)?;
        let given = parameters.header_length.get();
        parameters.header_length = U32::new(HEADER_LENGTH);
        if given < HEADER_LENGTH {
            around.store(at, &parameters);
            return Err(Status::InvalidLength);
        }
        parameters.check_guest_range()?;
        let length = parameters.guest_length.get();
        if parameters.transport_length.get() < length {
            return Err(Status::InvalidLength);
        }
        self.check_output(around, parameters.header_address.get(), HEADER_LENGTH.into())?;
        self.check_output(around, parameters.transport_address.get(), length.into())?;
        let mut bytes = around.bytes(key, parameters.guest_address(), length)?;
        let header = PacketHeader::seal(&keys, Content::Data, self.entropy.bytes(), &mut bytes);
        around.store(parameters.header_address.get(), &header);
        around.memory.write(parameters.transport_address.get(), &bytes);
        parameters.transport_length = U32::new(length);
        around.store(at, &parameters);
        Ok(())
    }

    /// SEND_FINISH: the guest is elsewhere now.
    pub(super) fn send_finish(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        self.end_sending(around, at, Phase::Sent)
    }

    /// SEND_CANCEL: the guest stays.
    pub(super) fn send_cancel(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        self.end_sending(around, at, Phase::Running)
    }

    fn end_sending(&mut self, around: &mut Surroundings<'_>, at: u64, phase: Phase) -> Result<(), Status> {
        let guest = self.guest(around.parameters(at)?)?;
        if guest.phase != Phase::Sending {
            return Err(Status::InvalidGuestState);
        }
        guest.phase = phase;
        Ok(())
    }
}
