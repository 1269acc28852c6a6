//! SNP_GUEST_REQUEST (56860, 8.26 and chapter 7): messages between a guest and the firmware that the host only carries.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hmac::{Hmac, Mac};
use sha2::Sha384;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::context::{Context, Finished, Launched};
use super::report::{ChipIdentity, Report};
use crate::Rule;
use crate::encryption::Key;
use crate::psp::ecdsa::PrivateKey;
use crate::psp::{Psp, Status, Surroundings};

const AES_256_GCM: u8 = 1;
const HEADER_VERSION: u8 = 1;
const HEADER_SIZE: usize = 0x60;
/// Where in the header the authenticated part begins.
const AUTHENTICATED: usize = 0x30;
const PAYLOAD_SIZE: usize = 4096 - HEADER_SIZE;

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    tag: [u8; 32],
    sequence: U64,
    reserved: [u8; 8],
    algorithm: u8,
    version: u8,
    size: U16,
    message_type: u8,
    message_version: u8,
    message_size: U16,
    reserved_2: U32,
    message_key: u8,
    reserved_3: [u8; 35],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Message {
    header: Header,
    payload: [u8; PAYLOAD_SIZE],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ReportRequest {
    report_data: [u8; 64],
    vmpl: U32,
    key_selection: U32,
    reserved: [u8; 24],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct KeyRequest {
    /// Bit 0: from the chip's root; else from the guest's.
    root: U32,
    reserved: U32,
    fields: U64,
    vmpl: U32,
    guest_svn: U32,
    tcb_version: U64,
}

/// Types of messages.
mod message_type {
    pub(super) const KEY_REQUEST: u8 = 3;
    pub(super) const KEY_RESPONSE: u8 = 4;
    pub(super) const REPORT_REQUEST: u8 = 5;
    pub(super) const REPORT_RESPONSE: u8 = 6;
}

/// Status inside of a response, which is the guest's own business.
const INVALID_PARAMETERS: u32 = 0x16;

/// Sequence number in the nonce; nobody uses one twice with a key.
fn nonce(sequence: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&sequence.to_le_bytes());
    nonce.into()
}

impl Message {
    fn authenticated(header: &Header) -> &[u8] {
        &header.as_bytes()[AUTHENTICATED..]
    }

    /// The payload of a request, if it is the guest's with this key.
    fn open(&mut self, key: &[u8; 32]) -> Result<&[u8], Status> {
        let Message { header, payload } = self;
        let payload = payload.get_mut(..header.message_size.get().into()).ok_or(Status::InvalidParameter)?;
        let mut tag = [0; 16];
        tag.copy_from_slice(&header.tag[..16]);
        let opened = Aes256Gcm::new(key.into()).decrypt_inout_detached(
            &nonce(header.sequence.get()),
            Message::authenticated(header),
            (&mut *payload).into(),
            &Tag::from(tag),
        );
        opened.map_err(|_| Status::BadMeasurement)?;
        Ok(payload)
    }

    /// The answer to `request` with this payload.
    fn seal(request: &Header, message_type: u8, content: &[u8], key: &[u8; 32]) -> Result<Message, Status> {
        let mut header = Header {
            tag: [0; 32],
            sequence: U64::new(request.sequence.get().wrapping_add(1)),
            message_type,
            message_size: U16::new(content.len() as u16),
            ..request.clone()
        };
        let mut payload = [0; PAYLOAD_SIZE];
        payload[..content.len()].copy_from_slice(content);
        let tag = Aes256Gcm::new(key.into())
            .encrypt_inout_detached(
                &nonce(header.sequence.get()),
                Message::authenticated(&header),
                (&mut payload[..content.len()]).into(),
            )
            .map_err(|_| Status::InvalidParameter)?;
        header.tag[..16].copy_from_slice(&tag);
        Ok(Message { header, payload })
    }
}

impl Psp {
    /// SNP_GUEST_REQUEST.
    pub(in crate::psp) fn snp_guest_request(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let [context, request, response]: [U64; 3] = around.parameters(at)?;
        let Context::Running(launched, finished) = self.context(around, context)?.clone() else {
            return Err(Status::InvalidGuestState);
        };
        around.check_firmware_page(response.get())?;
        let page = around.bytes(Key::PLAIN, request.get(), 4096)?;
        let mut message = Message::read_from_bytes(&page).map_err(|_| Status::InvalidParameter)?;
        let header = message.header.clone();
        let well_formed = header.version == HEADER_VERSION
            && usize::from(header.size.get()) == HEADER_SIZE
            && header.algorithm == AES_256_GCM;
        let slot = usize::from(header.message_key);
        let (Some(key), Some(&count)) = (launched.message_keys.get(slot), launched.message_counts.get(slot)) else {
            return Err(Status::InvalidParameter);
        };
        if !well_formed {
            return Err(Status::InvalidParameter);
        }
        // A guest's requests are odd, the responses even; nobody repeats one.
        self.demand(Rule::MessageOrder, header.sequence.get() == count + 1, Status::AeadOverflow)?;
        let content = message.open(key)?;
        let (kind, answer) = self.answer(around, &header, content, &launched, &finished)?;
        let sealed = Message::seal(&header, kind, &answer, key)?;
        if let Context::Running(launched, _) = self.context(around, context)? {
            launched.message_counts[slot] = count + 2;
        }
        around.store(response.get(), &sealed);
        Ok(())
    }

    /// Type and content of the answer to a request.
    fn answer(
        &mut self,
        around: &Surroundings<'_>,
        header: &Header,
        content: &[u8],
        launched: &Launched,
        finished: &Finished,
    ) -> Result<(u8, Vec<u8>), Status> {
        let lowest = if self.rules.hold(Rule::MessageVmpl) { u32::from(header.message_key) } else { 0 };
        match header.message_type {
            message_type::REPORT_REQUEST => {
                let request = ReportRequest::read_from_bytes(content).map_err(|_| Status::InvalidParameter)?;
                let valid = (lowest..=3).contains(&request.vmpl.get()) && request.key_selection.get() <= 1;
                let report = valid.then(|| self.report(around, launched, finished, &request));
                Ok((message_type::REPORT_RESPONSE, report_response(report.as_ref())))
            }
            message_type::KEY_REQUEST => {
                let request = KeyRequest::read_from_bytes(content).map_err(|_| Status::InvalidParameter)?;
                let valid = (lowest..=3).contains(&request.vmpl.get()) && request.fields.get() >> 6 == 0;
                let key = if valid { self.derived_key(launched, &request) } else { [0; 32] };
                let mut response = vec![0; 32];
                response[..4].copy_from_slice(&if valid { 0 } else { INVALID_PARAMETERS }.to_le_bytes());
                response.extend(key);
                Ok((message_type::KEY_RESPONSE, response))
            }
            _ => Err(Status::InvalidParameter),
        }
    }

    fn report(
        &self,
        around: &Surroundings<'_>,
        launched: &Launched,
        finished: &Finished,
        request: &ReportRequest,
    ) -> Report {
        let key = self.endorsement_key();
        let chip = ChipIdentity {
            settings: &self.snp_settings,
            chip_id: self.chip_id(),
            smt: around.setup.smt,
            family_model_stepping: (around.cpuid)(1, 0).eax,
            key: self.rules.hold(Rule::ReportSignature).then_some(&key),
        };
        Report::new(&chip, launched, finished, request.vmpl.get(), request.report_data)
    }

    /// VCEK: the chip's key for this version of its firmware. It is the sim's own, and no AMD key vouches for it.
    fn endorsement_key(&self) -> PrivateKey {
        PrivateKey::derived(&self.seed, &self.snp_settings.reported.bytes())
    }

    /// A key that this guest, or one launched alike, gets again: it follows from the root and from what the guest wants
    /// to be mixed in.
    fn derived_key(&self, launched: &Launched, request: &KeyRequest) -> [u8; 32] {
        let mut block = [0; 128];
        block[..32].copy_from_slice(&self.seed);
        let mut mac = Hmac::<Sha384>::new(&block.into());
        mac.update(request.as_bytes());
        let mixed: [(u64, &[u8]); 2] = [(1 << 0, &launched.policy.0.to_le_bytes()), (1 << 3, launched.digest.bytes())];
        for (_, part) in mixed.into_iter().filter(|(bit, _)| request.fields.get() & bit != 0) {
            mac.update(part);
        }
        let mut key = [0; 32];
        key.copy_from_slice(&mac.finalize().into_bytes()[..32]);
        key
    }
}

/// Status, size, and the report if there is one.
fn report_response(report: Option<&Report>) -> Vec<u8> {
    let status = if report.is_some() { 0 } else { INVALID_PARAMETERS };
    let size = report.map_or(0, |report| report.as_bytes().len() as u32);
    let mut response = vec![0; 32];
    response[..4].copy_from_slice(&status.to_le_bytes());
    response[4..8].copy_from_slice(&size.to_le_bytes());
    response.extend(report.map_or(&[][..], |report| report.as_bytes()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalMemory;
    use crate::psp::Command;
    use crate::psp::ecdsa::{Hash, PublicKeyBlock, SignatureBlock};
    use crate::psp::test_machine::TestMachine;
    use crate::rmp::PageState;

    const CONTEXT: u64 = 0x3000;
    const REQUEST: u64 = 0x4000;
    const RESPONSE: u64 = 0x5000;

    /// A running guest without any page.
    fn running() -> TestMachine {
        let mut machine = TestMachine::with_snp();
        machine.set_state(CONTEXT, PageState::Firmware);
        machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]);
        machine.snp_launch_start(CONTEXT, 0x2_0000);
        machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]);
        let mut parameters = [0; 64];
        parameters[..8].copy_from_slice(&CONTEXT.to_le_bytes());
        parameters[32..].fill(0x77);
        assert_eq!(machine.execute(Command::SnpLaunchFinish, &parameters), Status::Success);
        machine.set_state(RESPONSE, PageState::Firmware);
        machine
    }

    fn key(machine: &mut TestMachine, slot: usize) -> [u8; 32] {
        let (psp, mut around) = machine.parts();
        psp.context(&mut around, U64::new(CONTEXT)).unwrap().launched().unwrap().message_keys[slot]
    }

    /// Sends a request as drivers/virt/coco/sev-guest does.
    fn send(machine: &mut TestMachine, sequence: u64, slot: u8, message_type: u8, content: &[u8]) -> Status {
        let header = Header {
            tag: [0; 32],
            sequence: U64::new(sequence - 1),
            reserved: [0; 8],
            algorithm: 1,
            version: 1,
            size: U16::new(0x60),
            message_type: 0,
            message_version: 1,
            message_size: U16::ZERO,
            reserved_2: U32::ZERO,
            message_key: slot,
            reserved_3: [0; 35],
        };
        let key = key(machine, slot.into());
        let message = Message::seal(&header, message_type, content, &key).unwrap();
        machine.memory.write(REQUEST, message.as_bytes());
        machine.execute_words(Command::SnpGuestRequest, &[CONTEXT, REQUEST, RESPONSE])
    }

    fn received(machine: &mut TestMachine, slot: usize) -> (Header, Vec<u8>) {
        let key = key(machine, slot);
        let mut message = Message::read_from_bytes(&machine.output::<4096>(RESPONSE)).unwrap();
        let content = message.open(&key).unwrap().to_vec();
        (message.header.clone(), content)
    }

    fn report_request(vmpl: u8) -> [u8; 96] {
        let mut request = [0x5A; 96];
        request[64..].fill(0);
        request[64] = vmpl;
        request
    }

    #[test]
    fn a_guest_gets_a_report_that_the_chip_has_signed() {
        let mut machine = running();
        assert_eq!(send(&mut machine, 1, 0, 5, &report_request(1)), Status::Success);
        let (header, response) = received(&mut machine, 0);
        assert_eq!((header.message_type, header.sequence.get()), (6, 2));
        assert_eq!(response[..8], [0, 0, 0, 0, 0xA0, 4, 0, 0]);
        let report = &response[32..];
        assert_eq!((report[0], report[0x30]), (3, 1));
        assert_eq!((&report[0x50..0x90], &report[0xC0..0xE0]), (&[0x5A; 64][..], &[0x77; 32][..]));
        // CPUID.1:EAX 0xA10F11: family 19h, model 11h, stepping 1.
        assert_eq!(report[0x188..0x18B], [0x19, 0x11, 1]);
        let public: PublicKeyBlock = machine.psp.endorsement_key().public();
        let signature = SignatureBlock::read_from_bytes(&report[0x2A0..]).unwrap();
        assert!(public.verifies(&report[..0x2A0], Hash::Sha384, &signature));
        assert!(!public.verifies(&report[1..0x2A1], Hash::Sha384, &signature));
    }

    #[test]
    fn a_message_is_taken_once_and_in_order() {
        let mut machine = running();
        assert_eq!(send(&mut machine, 3, 0, 5, &report_request(0)), Status::AeadOverflow);
        assert_eq!(send(&mut machine, 1, 0, 5, &report_request(0)), Status::Success);
        assert_eq!(send(&mut machine, 1, 0, 5, &report_request(0)), Status::AeadOverflow, "a replay");
        assert_eq!(send(&mut machine, 3, 0, 5, &report_request(0)), Status::Success);
        assert_eq!(send(&mut machine, 1, 1, 5, &report_request(1)), Status::Success, "each key counts for itself");
    }

    #[test]
    fn a_message_that_the_host_has_changed_is_none() {
        let mut machine = running();
        send(&mut machine, 1, 0, 5, &report_request(0));
        let mut page: [u8; 4096] = machine.output(REQUEST);
        page[0x20] = 3;
        page[0x70] ^= 1;
        machine.memory.write(REQUEST, &page);
        let words = [CONTEXT, REQUEST, RESPONSE];
        assert_eq!(machine.execute_words(Command::SnpGuestRequest, &words), Status::BadMeasurement);
    }

    #[test]
    fn a_vmpl_cannot_speak_for_one_above_it() {
        let mut machine = running();
        assert_eq!(send(&mut machine, 1, 2, 5, &report_request(1)), Status::Success);
        assert_eq!(received(&mut machine, 2).1[..8], [0x16, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_key_follows_from_what_is_asked_for() {
        let mut machine = running();
        let mut derive = |sequence, fields: u8, vmpl: u8| {
            let mut request = [0; 32];
            request[8] = fields;
            request[16] = vmpl;
            assert_eq!(send(&mut machine, sequence, 0, 3, &request), Status::Success);
            received(&mut machine, 0).1[32..].to_vec()
        };
        let first = derive(1, 1, 0);
        assert_eq!(first, derive(3, 1, 0));
        assert_ne!(first, derive(5, 9, 0));
        assert_ne!(first, derive(7, 1, 1));
    }

    #[test]
    fn only_running_guests_ask_and_only_into_the_firmwares_pages() {
        let mut machine = running();
        machine.set_state(RESPONSE, PageState::Hypervisor);
        assert_eq!(send(&mut machine, 1, 0, 5, &report_request(0)), Status::InvalidPageState);
        assert_eq!(machine.execute_words(Command::SnpGuestRequest, &[0x9000, 0, 0]), Status::InvalidGuest);
    }
}
