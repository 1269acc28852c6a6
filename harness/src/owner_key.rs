//! Keys on P-384 of somebody who owns a guest, thrown away with the row; and numbers as AMD's firmware has them.

use p384::elliptic_curve::sec1::ToSec1Point;
use p384::{PublicKey, SecretKey};
use sha2::{Digest, Sha384};

/// Bytes of a number on the curve.
pub(crate) const NUMBER: usize = 48;

/// The key that follows from a seed.
pub(crate) fn from_seed(seed: u64) -> SecretKey {
    // Nearly every hash is a key.
    let mut hash = Sha384::digest(seed.to_le_bytes());
    loop {
        match SecretKey::from_slice(&hash) {
            Ok(key) => return key,
            Err(_) => hash = Sha384::digest(hash),
        }
    }
}

/// The coordinates of a public key, least significant byte first.
pub(crate) fn coordinates(key: &PublicKey) -> [Vec<u8>; 2] {
    let point = key.to_sec1_point(false);
    let (x, y) = point.as_bytes()[1..].split_at(NUMBER);
    [x, y].map(reversed)
}

/// A number with its other end first.
pub(crate) fn reversed(number: &[u8]) -> Vec<u8> {
    number.iter().rev().copied().collect()
}
