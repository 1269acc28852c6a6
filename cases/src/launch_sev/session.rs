//! What an owner offers, as commands are told it, and what somebody has made of it on the way.

use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Memory, Offer, Session};
use privet_harness::units::PAGE_SIZE;

/// What `give` says of an owner's session, in memory.
pub(super) fn with_session<T>(offer: &Offer, give: impl FnOnce(Session<'_>) -> T) -> Outcome<T> {
    let blobs = Mapping::anonymous(2 * PAGE_SIZE)?;
    blobs.write(0, &offer.certificate)?;
    blobs.write(PAGE_SIZE, &offer.session)?;
    Ok(give(Session {
        dh_certificate: (Memory::In(&blobs, 0), offer.certificate.len() as u32),
        keys: (Memory::In(&blobs, PAGE_SIZE), offer.session.len() as u32),
    }))
}

/// The same bytes but for one bit of the byte `at`.
pub(super) fn with_bit_changed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes
}
