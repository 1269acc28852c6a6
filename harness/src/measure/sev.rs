//! The launch digest of SEV and SEV-ES guests (SEV API, LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA).

use sha2::{Digest, Sha256};

/// SHA-256 over all that was encrypted, in order. Where it lies in the guest is not a part of it.
#[derive(Clone, Debug, Default)]
pub struct SevDigest(Sha256);

impl SevDigest {
    /// Before anything is encrypted.
    pub fn new() -> SevDigest {
        SevDigest::default()
    }

    /// Takes in bytes that LAUNCH_UPDATE_DATA encrypts, or the page of LAUNCH_UPDATE_VMSA.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all so far.
    pub fn bytes(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_and_order_count() {
        let of = |parts: &[&[u8]]| {
            let mut digest = SevDigest::new();
            parts.iter().for_each(|part| digest.update(part));
            digest.bytes()
        };
        assert_eq!(of(&[]), <[u8; 32]>::from(Sha256::digest([])));
        assert_eq!(of(&[&[1; 32], &[2; 16]]), of(&[&[1; 16], &[1; 16], &[2; 16]]));
        assert_ne!(of(&[&[1; 16], &[2; 16]]), of(&[&[2; 16], &[1; 16]]));
    }
}
