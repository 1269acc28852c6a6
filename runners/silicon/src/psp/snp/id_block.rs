//! The ID block: what a guest's owner expects of a launch, signed (56860, 8.18).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::context::Launched;
use crate::psp::Status;
use crate::psp::ecdsa::{Hash, KeyDigest, PublicKeyBlock, SignatureBlock};
use crate::{Rule, Rules};

/// What the owner expects.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IdBlock {
    launch_digest: [u8; 48],
    family_id: [u8; 16],
    image_id: [u8; 16],
    version: U32,
    guest_svn: U32,
    policy: U64,
}

/// Who says so.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IdAuthentication {
    id_key_algorithm: U32,
    author_key_algorithm: U32,
    reserved: [u8; 56],
    id_block_signature: SignatureBlock,
    id_key: PublicKeyBlock,
    reserved_2: [u8; 60],
    id_key_signature: SignatureBlock,
    author_key: PublicKeyBlock,
    reserved_3: [u8; 892],
}

const VERSION: u32 = 1;
const ECDSA_P384_SHA384: u32 = 1;

/// What of an accepted ID block appears in the guest's reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) family_id: [u8; 16],
    pub(super) image_id: [u8; 16],
    pub(super) guest_svn: u32,
    pub(super) id_key: KeyDigest,
    pub(super) author_key: Option<KeyDigest>,
}

impl Identity {
    /// Holds a launch against the block, and the block against its signatures.
    pub(super) fn check(
        block: &IdBlock,
        authentication: &IdAuthentication,
        with_author: bool,
        launched: &Launched,
        rules: Rules,
    ) -> Result<Identity, Status> {
        let careful = rules.hold(Rule::IdBlock);
        if careful && block.launch_digest != *launched.digest.bytes() {
            return Err(Status::BadMeasurement);
        }
        if careful && block.policy.get() != launched.policy.0 {
            return Err(Status::PolicyFailure);
        }
        let known = |algorithm: U32, key: &PublicKeyBlock| algorithm.get() == ECDSA_P384_SHA384 && key.on_p384();
        let author_known = !with_author || known(authentication.author_key_algorithm, &authentication.author_key);
        if block.version.get() != VERSION
            || !known(authentication.id_key_algorithm, &authentication.id_key)
            || !author_known
        {
            return Err(Status::InvalidParameter);
        }
        let id_key = &authentication.id_key;
        let by_author = !with_author
            || authentication.author_key.verifies(id_key.as_bytes(), Hash::Sha384, &authentication.id_key_signature);
        let by_key = id_key.verifies(block.as_bytes(), Hash::Sha384, &authentication.id_block_signature);
        if careful && !(by_key && by_author) {
            return Err(Status::BadSignature);
        }
        Ok(Identity {
            family_id: block.family_id,
            image_id: block.image_id,
            guest_svn: block.guest_svn.get(),
            id_key: id_key.digest(),
            author_key: with_author.then(|| authentication.author_key.digest()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::SnpDigest;
    use super::*;
    use crate::encryption::Key;
    use crate::psp::ecdsa::PrivateKey;
    use crate::psp::policy::SnpPolicy;

    fn key(number: u8) -> (PrivateKey, PublicKeyBlock) {
        let key = PrivateKey::derived(&[number; 32], b"test");
        let public = key.public();
        (key, public)
    }

    fn launched() -> Launched {
        Launched {
            policy: SnpPolicy(0x3_0000),
            key: Key::numbered(1),
            asid: Some(5),
            digest: SnpDigest::EMPTY,
            message_keys: [[0; 32]; 4],
            message_counts: [0; 4],
            report_id: [0; 32],
            workarounds: [0; 16],
        }
    }

    fn block() -> IdBlock {
        IdBlock {
            launch_digest: [0; 48],
            family_id: [1; 16],
            image_id: [2; 16],
            version: U32::new(1),
            guest_svn: U32::new(9),
            policy: U64::new(0x3_0000),
        }
    }

    fn authenticated(block: &IdBlock) -> IdAuthentication {
        let ((id, id_key), (author, author_key)) = (key(1), key(2));
        IdAuthentication {
            id_key_algorithm: U32::new(1),
            author_key_algorithm: U32::new(1),
            reserved: [0; 56],
            id_block_signature: id.sign(block.as_bytes(), Hash::Sha384),
            id_key_signature: author.sign(id_key.as_bytes(), Hash::Sha384),
            id_key,
            reserved_2: [0; 60],
            author_key,
            reserved_3: [0; 892],
        }
    }

    #[test]
    fn the_layout_is_the_specifications() {
        assert_eq!(size_of::<IdBlock>(), 96);
        assert_eq!(size_of::<IdAuthentication>(), 4096);
        assert_eq!(std::mem::offset_of!(IdAuthentication, id_key), 0x240);
        assert_eq!(std::mem::offset_of!(IdAuthentication, id_key_signature), 0x680);
        assert_eq!(std::mem::offset_of!(IdAuthentication, author_key), 0x880);
    }

    #[test]
    fn a_block_that_fits_is_taken() {
        for with_author in [false, true] {
            let block = block();
            let identity =
                Identity::check(&block, &authenticated(&block), with_author, &launched(), Rules::default()).unwrap();
            assert_eq!((identity.guest_svn, identity.family_id), (9, [1; 16]));
            assert_eq!(identity.author_key.is_some(), with_author);
        }
    }

    #[test]
    fn a_block_of_another_launch_is_refused() {
        let check = |block: &IdBlock| {
            Identity::check(block, &authenticated(block), false, &launched(), Rules::default()).unwrap_err()
        };
        let mut digest = block();
        digest.launch_digest[3] = 1;
        assert_eq!(check(&digest), Status::BadMeasurement);
        assert_eq!(check(&IdBlock { policy: U64::new(0x2_0000), ..block() }), Status::PolicyFailure);
        assert_eq!(check(&IdBlock { version: U32::new(2), ..block() }), Status::InvalidParameter);
    }

    #[test]
    fn a_block_that_is_not_signed_is_refused() {
        let block = block();
        let mut authentication = authenticated(&block);
        let changed = IdBlock { guest_svn: U32::new(10), ..block.clone() };
        assert_eq!(
            Identity::check(&changed, &authentication, false, &launched(), Rules::default()),
            Err(Status::BadSignature)
        );
        authentication.id_key_signature = key(3).0.sign(authentication.id_key.as_bytes(), Hash::Sha384);
        assert!(Identity::check(&block, &authentication, false, &launched(), Rules::default()).is_ok());
        assert_eq!(
            Identity::check(&block, &authentication, true, &launched(), Rules::default()),
            Err(Status::BadSignature)
        );
        authentication.id_key_algorithm = U32::new(2);
        assert_eq!(
            Identity::check(&block, &authentication, false, &launched(), Rules::default()),
            Err(Status::InvalidParameter)
        );
    }
}
