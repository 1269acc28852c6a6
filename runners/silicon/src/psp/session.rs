//! The channel between the firmware and a guest's owner, or the firmware of another platform (55766, 2.1 and
//! "Session Data").

use aes::Aes128;
use aes::cipher::Array;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Status;
use super::ecdsa::{PrivateKey, PublicKeyBlock};
use super::entropy::Entropy;
use super::policy::SevPolicy;
use crate::{Rule, Rules};

/// Keys of the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransportKeys {
    /// Encryption: TEK.
    pub(super) encryption: [u8; 16],
    /// Integrity: TIK.
    pub(super) integrity: [u8; 16],
}

impl TransportKeys {
    /// Keys that nobody else has.
    pub(super) fn fresh(entropy: &mut Entropy) -> TransportKeys {
        TransportKeys { encryption: entropy.bytes(), integrity: entropy.bytes() }
    }

    /// Encrypts or decrypts, which is the same.
    pub(super) fn crypt(&self, iv: [u8; 16], bytes: &mut [u8]) {
        crypt(self.encryption, iv, bytes);
    }

    /// HMAC-SHA-256 with TIK.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.integrity, parts)
    }
}

/// AES-128 in counter mode.
fn crypt(key: [u8; 16], iv: [u8; 16], bytes: &mut [u8]) {
    Ctr128BE::<Aes128>::new(&Array::from(key), &Array::from(iv)).apply_keystream(bytes);
}

/// HMAC-SHA-256 with a key of at most 64 bytes.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC itself pads a key to the hash's block.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// 16 bytes that follow from a key and what they are for (NIST SP 800-108, counter mode with HMAC-SHA-256).
fn derived(key: &[u8], label: &str, context: &[u8]) -> [u8; 16] {
    let bits = 128_u32.to_le_bytes();
    let block = mac(key, &[&1_u32.to_le_bytes(), label.as_bytes(), &[0], context, &bits]);
    std::array::from_fn(|index| block[index])
}

/// Session data as commands take and give it.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Session {
    nonce: [u8; 16],
    /// TEK and TIK.
    wrapped_keys: [u8; 32],
    iv: [u8; 16],
    wrapped_mac: [u8; 32],
    policy_mac: [u8; 32],
}

/// Bytes of it.
pub(super) const SESSION_LENGTH: u32 = size_of::<Session>() as u32;

/// Keys that wrap those of the channel: for encryption KEK, for integrity KIK.
fn wrapping_keys(own: &PrivateKey, other: &PublicKeyBlock, nonce: &[u8; 16]) -> Result<[[u8; 16]; 2], Status> {
    let secret = own.shared_secret(other).ok_or(Status::InvalidCertificate)?;
    let master = derived(&secret, "sev-master-secret", nonce);
    Ok([derived(&master, "sev-kek", &[]), derived(&master, "sev-kik", &[])])
}

impl Session {
    /// A session with the owner of `other` for a guest of this policy.
    pub(super) fn offer(
        own: &PrivateKey,
        other: &PublicKeyBlock,
        policy: SevPolicy,
        keys: &TransportKeys,
        entropy: &mut Entropy,
    ) -> Result<Session, Status> {
        let (nonce, iv) = (entropy.bytes(), entropy.bytes());
        let [kek, kik] = wrapping_keys(own, other, &nonce)?;
        let mut wrapped_keys = [0; 32];
        wrapped_keys[..16].copy_from_slice(&keys.encryption);
        wrapped_keys[16..].copy_from_slice(&keys.integrity);
        crypt(kek, iv, &mut wrapped_keys);
        Ok(Session {
            nonce,
            wrapped_keys,
            iv,
            wrapped_mac: mac(&kik, &[&wrapped_keys]),
            policy_mac: keys.mac(&[&policy.0.to_le_bytes()]),
        })
    }

    /// The keys of a session that the owner of `other` offers for a guest of this policy.
    pub(super) fn accept(
        &self,
        own: &PrivateKey,
        other: &PublicKeyBlock,
        policy: SevPolicy,
        rules: Rules,
    ) -> Result<TransportKeys, Status> {
        let [kek, kik] = wrapping_keys(own, other, &self.nonce)?;
        if mac(&kik, &[&self.wrapped_keys]) != self.wrapped_mac {
            return Err(Status::BadMeasurement);
        }
        let mut unwrapped = self.wrapped_keys;
        crypt(kek, self.iv, &mut unwrapped);
        let keys = TransportKeys {
            encryption: std::array::from_fn(|index| unwrapped[index]),
            integrity: std::array::from_fn(|index| unwrapped[16 + index]),
        };
        if keys.mac(&[&policy.0.to_le_bytes()]) != self.policy_mac && rules.hold(Rule::SessionPolicy) {
            return Err(Status::BadMeasurement);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn offered(policy: u32) -> (PrivateKey, PrivateKey, TransportKeys, Session) {
        let [one, two] = [1, 2].map(|number| PrivateKey::derived(&[number; 32], b"test"));
        let mut entropy = Entropy::new([7; 32]);
        let keys = TransportKeys::fresh(&mut entropy);
        let session = Session::offer(&one, &two.public(), SevPolicy(policy), &keys, &mut entropy).unwrap();
        (one, two, keys, session)
    }

    #[test]
    fn both_sides_have_the_same_keys_and_nobody_else() {
        let (one, two, keys, session) = offered(4);
        assert_eq!(session.accept(&two, &one.public(), SevPolicy(4), Rules::default()), Ok(keys));
        assert_eq!(session.accept(&one, &one.public(), SevPolicy(4), Rules::default()), Err(Status::BadMeasurement));
        assert_eq!(
            session.accept(&two, &PublicKeyBlock::new_zeroed(), SevPolicy(4), Rules::default()),
            Err(Status::InvalidCertificate)
        );
    }

    #[test]
    fn a_session_is_for_one_policy_and_cannot_be_changed() {
        let (one, two, _, session) = offered(4);
        assert_eq!(session.accept(&two, &one.public(), SevPolicy(0), Rules::default()), Err(Status::BadMeasurement));
        for byte in [0, 0x10, 0x40, 0x60] {
            let mut bytes = session.as_bytes().to_vec();
            bytes[byte] ^= 1;
            let changed = Session::read_from_bytes(&bytes).unwrap();
            assert_eq!(
                changed.accept(&two, &one.public(), SevPolicy(4), Rules::default()),
                Err(Status::BadMeasurement),
                "{byte:#x}"
            );
        }
        assert_eq!(SESSION_LENGTH, 128);
    }

    /// NIST SP 800-38A, F.5.1.
    #[test]
    fn counter_mode_is_the_standards() {
        let key = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes();
        let iv = 0xf0f1_f2f3_f4f5_f6f7_f8f9_fafb_fcfd_feff_u128.to_be_bytes();
        let mut block = 0x6bc1_bee2_2e40_9f96_e93d_7e11_7393_172a_u128.to_be_bytes();
        crypt(key, iv, &mut block);
        assert_eq!(block, 0x874d_6191_b620_e326_1bef_6864_990d_b6ce_u128.to_be_bytes());
    }
}
