//! The identity block: what an owner demands of a launch, and signs (SEV-SNP firmware ABI, 8.18, "Identity Block").

use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey};

use super::snp::SnpDigest;
use crate::owner_key;
use crate::sev::SnpPolicy;
use crate::units::PAGE_SIZE;

const ALGORITHM: u32 = 1;
const CURVE: u32 = 2;
/// Bytes of a number in a key or a signature, least significant first.
const NUMBER: usize = 0x48;
/// Bytes of a public key.
const KEY: usize = 0x404;

/// Where things are in the authentication.
const SIGNATURE_OF_BLOCK: usize = 0x40;
const ID_KEY: usize = 0x240;
const SIGNATURE_OF_KEY: usize = 0x680;
const AUTHOR_KEY: usize = 0x880;

/// What is demanded. All else of the block is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdBlock {
    /// What was measured, without an error.
    pub digest: SnpDigest,
    /// The policy, to the bit.
    pub policy: SnpPolicy,
    /// 1.
    pub version: u32,
}

impl IdBlock {
    /// Bytes of a block.
    pub const LENGTH: usize = 96;

    /// A block of the only version there is.
    pub fn new(digest: SnpDigest, policy: SnpPolicy) -> IdBlock {
        IdBlock { digest, policy, version: 1 }
    }

    /// As the firmware reads it.
    pub fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..0x30].copy_from_slice(&self.digest.bytes());
        bytes[0x50..0x54].copy_from_slice(&self.version.to_le_bytes());
        bytes[0x58..].copy_from_slice(&self.policy.0.to_le_bytes());
        bytes
    }

    /// The block's authentication: signed with `id_key`, which `author` has signed if there is one.
    pub fn authentication(&self, id_key: &IdKey, author: Option<&IdKey>) -> [u8; PAGE_SIZE as usize] {
        let mut bytes = [0; PAGE_SIZE as usize];
        let mut put = |offset: usize, part: &[u8]| bytes[offset..offset + part.len()].copy_from_slice(part);
        put(0, &ALGORITHM.to_le_bytes());
        put(SIGNATURE_OF_BLOCK, &id_key.sign(&self.bytes()));
        put(ID_KEY, &id_key.public());
        if let Some(author) = author {
            put(4, &ALGORITHM.to_le_bytes());
            put(SIGNATURE_OF_KEY, &author.sign(&id_key.public()));
            put(AUTHOR_KEY, &author.public());
        }
        bytes
    }
}

/// A key on P-384 that nobody else has, and that is thrown away with the row.
pub struct IdKey(SigningKey);

impl IdKey {
    /// The key that follows from a seed.
    pub fn from_seed(seed: u64) -> IdKey {
        IdKey(owner_key::from_seed(seed).into())
    }

    fn sign(&self, message: &[u8]) -> [u8; 2 * NUMBER] {
        let signature: Signature = self.0.sign(message);
        let (r, s) = signature.split_bytes();
        let mut bytes = [0; 2 * NUMBER];
        put(&mut bytes, 0, &owner_key::reversed(&r));
        put(&mut bytes, NUMBER, &owner_key::reversed(&s));
        bytes
    }

    fn public(&self) -> [u8; KEY] {
        let [x, y] = owner_key::coordinates(&self.0.verifying_key().into());
        let mut bytes = [0; KEY];
        put(&mut bytes, 0, &CURVE.to_le_bytes());
        put(&mut bytes, 4, &x);
        put(&mut bytes, 4 + NUMBER, &y);
        bytes
    }
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}
