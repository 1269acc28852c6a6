//! Keys and signatures of ECDSA on P-384 as AMD lays them out: numbers of 72 bytes, least significant first.

use p384::ecdh::diffie_hellman;
use p384::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const CURVE_P384: u32 = 2;
/// Bytes of a number on the curve.
const NUMBER: usize = 48;

/// What a message is hashed with before it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of SEV's certificates and reports.
    Sha256,
    /// Of SNP's.
    Sha384,
}

impl Hash {
    fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha384 => Sha384::digest(message).to_vec(),
        }
    }
}

/// Public key in a certificate or an ID authentication block (56860, "Format for an ECDSA P-384 Public Key"; 55766,
/// C.2).
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PublicKeyBlock {
    curve: U32,
    x: [u8; 72],
    y: [u8; 72],
    reserved: [u8; 880],
}

/// Signature in a certificate, an ID authentication block or a report.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
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

    /// Signs with ECDSA, the same message always alike.
    pub(super) fn sign(&self, message: &[u8], hash: Hash) -> SignatureBlock {
        // A digest is too short for no curve here, which is all that could go wrong.
        let Ok(signature) = PrehashSigner::<Signature>::sign_prehash(&self.0, &hash.of(message)) else {
            return SignatureBlock::NONE;
        };
        let (r, s) = signature.split_bytes();
        SignatureBlock { r: little_endian(&r), s: little_endian(&s), reserved: [0; 368] }
    }

    /// What only the owners of both keys know (ECDH): the coordinate x, most significant byte first.
    pub(super) fn shared_secret(&self, other: &PublicKeyBlock) -> Option<[u8; NUMBER]> {
        let secret = diffie_hellman(self.0.as_nonzero_scalar(), other.key()?.as_affine());
        secret.raw_secret_bytes().as_slice().try_into().ok()
    }

    /// The public key.
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
    /// The numbers r and s, of 72 bytes each.
    pub(super) fn numbers(&self) -> [u8; 144] {
        std::array::from_fn(|index| if index < 72 { self.r[index] } else { self.s[index - 72] })
    }

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

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], hash: Hash, signature: &SignatureBlock) -> bool {
        let signature = big_endian(&signature.r).zip(big_endian(&signature.s));
        let signature = signature.and_then(|(r, s)| Signature::from_scalars(r, s).ok());
        match (self.key(), signature) {
            (Some(key), Some(signature)) => key.verify_prehash(&hash.of(message), &signature).is_ok(),
            _ => false,
        }
    }

    pub(super) fn digest(&self) -> KeyDigest {
        KeyDigest(Sha384::digest(self.as_bytes()).to_vec())
    }
}
