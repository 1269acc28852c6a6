//! The version of the protocol: a hash of all that both sides have to agree on, so that no change of it can be forgotten.

use crate::layout::NUMBERS;
use crate::op::TABLE;

/// The version, in the `.privet` section of every payload: FNV-1a of the table of operations and of the layout.
pub const VERSION: u32 = {
    let mut hash = 0x811c_9dc5;
    let mut at = 0;
    while at < TABLE.len() {
        hash = add(hash, TABLE.as_bytes()[at]);
        at += 1;
    }
    let mut at = 0;
    while at < NUMBERS.len() {
        hash = add(add(hash, NUMBERS[at] as u8), (NUMBERS[at] >> 8) as u8);
        at += 1;
    }
    hash
};

const fn add(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as u32).wrapping_mul(0x0100_0193)
}
