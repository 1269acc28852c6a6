//! The owner of a SEV or SEV-ES guest, who trusts the platform's firmware and nothing between (SEV API 55766, 2.1): agrees on
//! keys with it, finds in its measurement what was launched, and sends secrets that only the guest will see.

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::{Hmac, KeyInit, Mac};
use p384::PublicKey;
use p384::ecdh::diffie_hellman;
use sha2::{Digest, Sha256};

use super::platform_command::{CERTIFICATE, Version};
use super::policy::SevPolicy;
use crate::outcome::{Outcome, Stop};
use crate::owner_key::{self, NUMBER};

/// Where things are in a certificate (appendix C).
const API: usize = 4;
const USAGE: usize = 8;
const ALGORITHM: usize = 12;
const CURVE: usize = 16;
const X: usize = 20;
const Y: usize = 92;
/// Usage, algorithm and signature, twice.
const SIGNATURES: [usize; 2] = [0x414, 0x61c];

const DIFFIE_HELLMAN: u32 = 0x1003;
const NOBODY: u32 = 0x1000;
const ECDH_SHA256: u32 = 3;
const P384: u32 = 2;

/// What comes first in what is authenticated, so that it can be taken for nothing else.
const SECRET: u8 = 1;
const DATA: u8 = 2;
const MEASUREMENT: u8 = 4;

/// The owner, in a session for one guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    policy: SevPolicy,
    /// For encryption (TEK), and for integrity (TIK).
    encryption: [u8; 16],
    integrity: [u8; 16],
}

/// What the firmware needs for the session: the two blobs of `LAUNCH_START`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The owner's own Diffie-Hellman certificate, for which nobody vouches.
    pub certificate: Vec<u8>,
    /// Nonce, wrapped keys, IV, the keys' MAC, the policy's MAC.
    pub session: Vec<u8>,
}

/// A secret on its way, or memory of a guest: what `LAUNCH_SECRET` and `RECEIVE_UPDATE_DATA` take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Flags, IV and MAC.
    pub header: Vec<u8>,
    /// The encrypted bytes.
    pub bytes: Vec<u8>,
}

impl Offer {
    /// Bytes of the session.
    pub const SESSION: usize = 128;
}

impl Owner {
    /// Offers a session to the platform of this Diffie-Hellman certificate, for a guest of this policy. All that would be
    /// random follows from the seed.
    ///
    /// # Errors
    /// `Stop::Fail` if there is no key in the certificate.
    pub fn offer(platform: &[u8], policy: SevPolicy, seed: u64) -> Outcome<(Owner, Offer)> {
        let own = owner_key::from_seed(seed);
        let other =
            key_of(platform).ok_or_else(|| Stop::Fail("the platform's certificate has no key on P-384".into()))?;
        let shared = diffie_hellman(own.to_nonzero_scalar(), other.as_affine());
        let drawn = Sha256::digest([&seed.to_le_bytes()[..], b"session"].concat());
        let (nonce, iv) = (sixteen(&drawn[..16]), sixteen(&drawn[16..]));
        let master = derived(shared.raw_secret_bytes(), "sev-master-secret", &nonce);
        let (wrapping, sealing) = (derived(&master, "sev-kek", &[]), derived(&master, "sev-kik", &[]));

        let mut keys: [u8; 32] = Sha256::digest([&seed.to_le_bytes()[..], b"keys"].concat()).into();
        let owner = Owner { policy, encryption: sixteen(&keys[..16]), integrity: sixteen(&keys[16..]) };
        crypt(wrapping, iv, &mut keys);
        let mut session = Vec::new();
        session.extend(nonce);
        session.extend(keys);
        session.extend(iv);
        session.extend(mac(&sealing, &[&keys]));
        session.extend(owner.mac(&[&policy.0.to_le_bytes()]));
        Ok((owner, Offer { certificate: certificate(&own.public_key(), platform), session }))
    }

    /// The MAC of `LAUNCH_MEASURE` for this launch digest and nonce, by firmware of this version (6.5.2).
    pub fn measurement(&self, version: Version, digest: [u8; 32], nonce: [u8; 16]) -> [u8; 32] {
        let version = [MEASUREMENT, version.major, version.minor, version.build];
        self.mac(&[&version, &self.policy.0.to_le_bytes(), &digest, &nonce])
    }

    /// Seals a secret for the guest that was measured so; its IV is drawn from the seed.
    pub fn seal(&self, measurement: [u8; 32], secret: &[u8], seed: u64) -> Packet {
        self.packet(SECRET, secret, &measurement, seed)
    }

    /// Seals memory of a guest that the owner, and no platform, sends; likewise.
    pub fn send(&self, memory: &[u8], seed: u64) -> Packet {
        self.packet(DATA, memory, &[], seed)
    }

    fn packet(&self, content: u8, bytes: &[u8], measurement: &[u8], seed: u64) -> Packet {
        let iv = sixteen(&Sha256::digest(seed.to_le_bytes())[..16]);
        let mut bytes = bytes.to_vec();
        crypt(self.encryption, iv, &mut bytes);
        let flags = 0_u32.to_le_bytes();
        let length = (bytes.len() as u32).to_le_bytes();
        let mac = self.mac(&[&[content], &flags, &iv, &length, &length, &bytes, measurement]);
        Packet { header: [&flags[..], &iv, &mac].concat(), bytes }
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.integrity, parts)
    }
}

fn sixteen(bytes: &[u8]) -> [u8; 16] {
    std::array::from_fn(|index| bytes[index])
}

/// The key in a certificate. Numbers there have 72 bytes, least significant first.
fn key_of(certificate: &[u8]) -> Option<PublicKey> {
    const UNCOMPRESSED: u8 = 4;
    let number = |at: usize| certificate.get(at..at + NUMBER).map(|bytes| bytes.iter().rev().copied());
    let point: Vec<u8> = std::iter::once(UNCOMPRESSED).chain(number(X)?).chain(number(Y)?).collect();
    PublicKey::from_sec1_bytes(&point).ok()
}

/// A certificate of a key, of the API's version that `like` has.
fn certificate(key: &PublicKey, like: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; CERTIFICATE];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &1_u32.to_le_bytes());
    put(API, &like[API..API + 2]);
    put(USAGE, &DIFFIE_HELLMAN.to_le_bytes());
    put(ALGORITHM, &ECDH_SHA256.to_le_bytes());
    put(CURVE, &P384.to_le_bytes());
    let [x, y] = owner_key::coordinates(key);
    put(X, &x);
    put(Y, &y);
    SIGNATURES.into_iter().for_each(|at| put(at, &NOBODY.to_le_bytes()));
    bytes
}

/// AES-128 in counter mode, which encrypts and decrypts alike.
fn crypt(key: [u8; 16], iv: [u8; 16], bytes: &mut [u8]) {
    Ctr128BE::<Aes128>::new(&key.into(), &iv.into()).apply_keystream(bytes);
}

/// HMAC-SHA-256 with a key of at most 64 bytes.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC itself pads a key to the hash's block.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// 16 bytes that follow from a key and what they are for (NIST SP 800-108, counter mode with HMAC-SHA-256).
fn derived(key: &[u8], label: &str, context: &[u8]) -> [u8; 16] {
    const BITS: u32 = 128;
    sixteen(&mac(key, &[&1_u32.to_le_bytes(), label.as_bytes(), &[0], context, &BITS.to_le_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The platform's side of the exchange, by its own key.
    #[test]
    fn both_sides_come_to_the_same_keys() {
        let platform = owner_key::from_seed(1);
        let other = certificate(&platform.public_key(), &[0; 6]);
        let (owner, offer) = Owner::offer(&other, SevPolicy::ES, 2).unwrap();
        assert_eq!((offer.certificate.len(), offer.session.len()), (CERTIFICATE, Offer::SESSION));

        let shared = diffie_hellman(platform.to_nonzero_scalar(), key_of(&offer.certificate).unwrap().as_affine());
        let (nonce, iv) = (&offer.session[..16], sixteen(&offer.session[48..64]));
        let master = derived(shared.raw_secret_bytes(), "sev-master-secret", nonce);
        assert_eq!(mac(&derived(&master, "sev-kik", &[]), &[&offer.session[16..48]]), offer.session[64..96]);
        let mut keys = offer.session[16..48].to_vec();
        crypt(derived(&master, "sev-kek", &[]), iv, &mut keys);
        assert_eq!(keys, [owner.encryption, owner.integrity].concat());
        assert_eq!(owner.mac(&[&SevPolicy::ES.0.to_le_bytes()]), offer.session[96..]);
        assert!(Owner::offer(&[0; CERTIFICATE], SevPolicy::ES, 2).is_err());
    }

    #[test]
    fn a_secret_is_sealed_for_one_measurement() {
        let other = certificate(&owner_key::from_seed(1).public_key(), &[0; 6]);
        let (owner, _) = Owner::offer(&other, SevPolicy::NONE, 3).unwrap();
        let packet = owner.seal([5; 32], b"sixteen of owner", 4);
        assert_eq!((packet.header.len(), packet.bytes.len()), (52, 16));
        let elsewhere = owner.seal([6; 32], b"sixteen of owner", 4);
        assert_eq!(packet.bytes, elsewhere.bytes);
        assert_ne!(packet.header, elsewhere.header);
        let mut opened = packet.bytes.clone();
        crypt(owner.encryption, sixteen(&packet.header[4..20]), &mut opened);
        assert_eq!(opened, b"sixteen of owner");
    }
}
