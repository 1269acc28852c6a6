//! Messages that an SNP guest and the firmware seal for each other. The row writes and reads them with a key that the guest
//! has told it: what no real guest would do.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use privet_harness::guest::Guest;
use privet_harness::launch::SECRETS;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::units::{Gva, PAGE_SIZE};

pub(super) const MESSAGES: &str = "SEV-SNP firmware ABI, chapter 7 and 8.26";

/// Bytes of a message's header, where in it the authenticated part begins, and where the sequence number is.
const HEADER: usize = 0x60;
const AUTHENTICATED: usize = 0x30;
pub(super) const SEQUENCE: usize = 0x20;
/// Where the algorithm is, the key's number, and the content.
pub(super) const ALGORITHM: usize = AUTHENTICATED;
pub(super) const KEY: usize = 0x3c;
pub(super) const CONTENT: usize = HEADER;

/// Types of messages.
const KEY_REQUEST: u8 = 3;
pub(super) const KEY_RESPONSE: u8 = 4;
const REPORT_REQUEST: u8 = 5;
pub(super) const REPORT_RESPONSE: u8 = 6;

/// The guest's key of VMPL 0, which it reads out of its page of secrets.
pub(super) fn key(g: &Guest) -> Outcome<Aes256Gcm> {
    key_of(g, 0)
}

/// The guest's key of a VMPL.
pub(super) fn key_of(g: &Guest, vmpl: u8) -> Outcome<Aes256Gcm> {
    let key = g.vcpu(0).read_bytes(Gva(SECRETS.0 + 0x20 + u64::from(vmpl) * 0x20), 32)?;
    Aes256Gcm::new_from_slice(&key).map_err(|_| Stop::Error("a key has 32 bytes".into()))
}

/// The sequence number, in 12 bytes.
fn nonce(message: &[u8]) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&message[SEQUENCE..SEQUENCE + 8]);
    nonce.into()
}

/// A request for a report with this sequence number and this data in it, of VMPL 0 about itself.
pub(super) fn report_request(key: &Aes256Gcm, sequence: u64, data: [u8; 64]) -> Outcome<Vec<u8>> {
    report_request_about(0, (key, 0), sequence, data)
}

/// The same of another VMPL, with its key, about any.
pub(super) fn report_request_about(
    vmpl: u8,
    (key, of): (&Aes256Gcm, u8),
    sequence: u64,
    data: [u8; 64],
) -> Outcome<Vec<u8>> {
    // The guest's data, a VMPL, and zeroes.
    let mut content = [0; 96];
    content[..64].copy_from_slice(&data);
    content[64] = vmpl;
    sealed((key, of), sequence, REPORT_REQUEST, &content)
}

/// A request for a key that follows from the guest's root key alone.
pub(super) fn key_request(key: &Aes256Gcm, sequence: u64) -> Outcome<Vec<u8>> {
    sealed((key, 0), sequence, KEY_REQUEST, &[0; 32])
}

fn sealed((key, of): (&Aes256Gcm, u8), sequence: u64, message_type: u8, content: &[u8]) -> Outcome<Vec<u8>> {
    let mut message = vec![0; PAGE_SIZE as usize];
    message[SEQUENCE..SEQUENCE + 8].copy_from_slice(&sequence.to_le_bytes());
    // AES-256-GCM, version 1 of the header, and its length; then type, version and length of what follows.
    let header = [1, 1, HEADER as u8, 0, message_type, 1, content.len() as u8, 0];
    message[AUTHENTICATED..AUTHENTICATED + 8].copy_from_slice(&header);
    message[KEY] = of;
    let mut content = content.to_vec();
    let sealed =
        key.encrypt_inout_detached(&nonce(&message), &message[AUTHENTICATED..HEADER], content.as_mut_slice().into());
    let tag = sealed.map_err(|_| Stop::Error("a message cannot be encrypted".into()))?;
    message[..16].copy_from_slice(&tag);
    message[HEADER..HEADER + content.len()].copy_from_slice(&content);
    Ok(message)
}

/// Type and content of a response.
pub(super) fn opened(key: &Aes256Gcm, response: &[u8]) -> Outcome<(u8, Vec<u8>)> {
    let length = usize::from(u16::from_le_bytes([response[0x36], response[0x37]]));
    let mut content = response[HEADER..].get(..length).unwrap_or_default().to_vec();
    let tag = Tag::try_from(&response[..16]).map_err(|_| Stop::Error("a tag has 16 bytes".into()))?;
    key.decrypt_inout_detached(&nonce(response), &response[AUTHENTICATED..HEADER], content.as_mut_slice().into(), &tag)
        .map_err(|_| Stop::Fail("the firmware's message is not sealed with the guest's key".into()))?;
    Ok((response[0x34], content))
}
