//! Keys and signatures of ECDSA on P-384 as AMD lays them out: numbers of 72 bytes, least significant first.

use p384::ecdsa::signature::{Signer, Verifier};
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const CURVE_P384: u32 = 2;
/// Bytes of a number on the curve.
const NUMBER: usize = 48;

/// Public key in an ID authentication block (56860, "Format for an ECDSA P-384 Public Key").
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PublicKeyBlock {
    curve: U32,
    x: [u8; 72],
    y: [u8; 72],
    reserved: [u8; 880],
}

/// Signature in an ID authentication block or a report.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SignatureBlock {
    r: [u8; 72],
    s: [u8; 72],
    reserved: [u8; 368],
}

/// Digest of a public key, as reports show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyDigest(Vec<u8>);

impl KeyDigest {
    pub(super) fn bytes(&self) -> [u8; 48] {
        std::array::from_fn(|index| self.0.get(index).copied().unwrap_or(0))
    }
}

/// A key pair.
#[derive(Debug, Clone)]
pub(super) struct PrivateKey(SigningKey);

impl PrivateKey {
    /// The key that follows from a secret and what it is for.
    pub(super) fn derived(secret: &[u8; 32], purpose: &[u8]) -> PrivateKey {
        // Nearly every number of 48 bytes is a key.
        let mut attempt = 0_u32;
        loop {
            let hash = Sha384::new().chain_update(secret).chain_update(purpose).chain_update(attempt.to_le_bytes());
            if let Ok(key) = SigningKey::from_slice(&hash.finalize()) {
                return PrivateKey(key);
            }
            attempt += 1;
        }
    }

    /// Signs with ECDSA and SHA-384, the same message always alike.
    pub(super) fn sign(&self, message: &[u8]) -> SignatureBlock {
        let signature: Signature = self.0.sign(message);
        let (r, s) = signature.split_bytes();
        SignatureBlock { r: little_endian(&r), s: little_endian(&s), reserved: [0; 368] }
    }

    /// The public key.
    #[cfg(test)]
    pub(super) fn public(&self) -> PublicKeyBlock {
        let point = self.0.verifying_key().to_sec1_point(false);
        let (x, y) = point.as_bytes()[1..].split_at(NUMBER);
        PublicKeyBlock { curve: U32::new(CURVE_P384), x: little_endian(x), y: little_endian(y), reserved: [0; 880] }
    }
}

fn little_endian(number: &[u8]) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes.iter_mut().zip(number.iter().rev()).for_each(|(to, from)| *to = *from);
    bytes
}

impl SignatureBlock {
    /// No signature.
    pub(super) const NONE: SignatureBlock = SignatureBlock { r: [0; 72], s: [0; 72], reserved: [0; 368] };
}

fn big_endian(number: &[u8; 72]) -> Option<[u8; NUMBER]> {
    let (value, above) = number.split_first_chunk::<NUMBER>()?;
    let mut bytes = *value;
    bytes.reverse();
    above.iter().all(|&byte| byte == 0).then_some(bytes)
}

impl PublicKeyBlock {
    /// The key, if it is one on P-384.
    fn key(&self) -> Option<VerifyingKey> {
        if self.curve.get() != CURVE_P384 {
            return None;
        }
        let mut point = [4; 1 + 2 * NUMBER];
        point[1..=NUMBER].copy_from_slice(&big_endian(&self.x)?);
        point[1 + NUMBER..].copy_from_slice(&big_endian(&self.y)?);
        VerifyingKey::from_sec1_bytes(&point).ok()
    }

    pub(super) fn on_p384(&self) -> bool {
        self.key().is_some()
    }

    /// Whether `signature` is this key's over `message`, hashed with SHA-384.
    pub(super) fn verifies(&self, message: &[u8], signature: &SignatureBlock) -> bool {
        let signature = big_endian(&signature.r).zip(big_endian(&signature.s));
        let signature = signature.and_then(|(r, s)| Signature::from_scalars(r, s).ok());
        match (self.key(), signature) {
            (Some(key), Some(signature)) => key.verify(message, &signature).is_ok(),
            _ => false,
        }
    }

    pub(super) fn digest(&self) -> KeyDigest {
        KeyDigest(Sha384::digest(self.as_bytes()).to_vec())
    }
}
