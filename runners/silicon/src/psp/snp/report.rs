//! The attestation report (56860, 7.3), version 3.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::context::{Finished, Launched};
use super::platform::SnpSettings;
use crate::psp::ecdsa::{Hash, KeyDigest, PrivateKey, SignatureBlock};
use crate::psp::{API_MAJOR, API_MINOR, BUILD};

const VERSION: u32 = 3;
const ECDSA_P384_SHA384: u32 = 1;
/// Bytes that are signed.
const SIGNED: usize = 0x2A0;

/// The report as it is laid out.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Report {
    version: U32,
    guest_svn: U32,
    policy: U64,
    family_id: [u8; 16],
    image_id: [u8; 16],
    vmpl: U32,
    signature_algorithm: U32,
    current_tcb: [u8; 8],
    platform_info: U64,
    /// Bit 0 author key present, bit 1 chip key masked, bits 4:2 signing key.
    flags: U32,
    reserved: U32,
    report_data: [u8; 64],
    measurement: [u8; 48],
    host_data: [u8; 32],
    id_key_digest: [u8; 48],
    author_key_digest: [u8; 48],
    report_id: [u8; 32],
    report_id_agent: [u8; 32],
    reported_tcb: [u8; 8],
    cpuid_family: u8,
    cpuid_model: u8,
    cpuid_stepping: u8,
    reserved_2: [u8; 21],
    chip_id: [u8; 64],
    committed_tcb: [u8; 8],
    current_version: [u8; 4],
    committed_version: [u8; 4],
    launch_tcb: [u8; 8],
    reserved_3: [u8; 168],
    signature: SignatureBlock,
}

/// What the chip puts into every report.
pub(super) struct ChipIdentity<'a> {
    pub(super) settings: &'a SnpSettings,
    pub(super) chip_id: [u8; 64],
    pub(super) smt: bool,
    /// CPUID.1:EAX.
    pub(super) family_model_stepping: u32,
    /// VCEK, which signs.
    pub(super) key: Option<&'a PrivateKey>,
}

/// A digest in a report; zeros where there is none.
fn field(digest: Option<&KeyDigest>) -> [u8; 48] {
    digest.map_or([0; 48], KeyDigest::bytes)
}

impl Report {
    /// A report about a guest. With the chip's key masked, or forbidden by the launch, nothing is signed.
    pub(super) fn new(
        chip: &ChipIdentity<'_>,
        launched: &Launched,
        finished: &Finished,
        vmpl: u32,
        report_data: [u8; 64],
    ) -> Report {
        let identity = finished.identity.as_ref();
        let author = identity.and_then(|identity| identity.author_key.as_ref());
        let masked = chip.settings.mask_chip_key || finished.no_chip_key;
        let signing_key = if masked { 7 } else { 0 };
        let [stepping_model, family_model, extended, _] = chip.family_model_stepping.to_le_bytes();
        let current = chip.settings.current().bytes();
        let version = [BUILD, API_MINOR, API_MAJOR, 0];
        let mut report = Report {
            version: U32::new(VERSION),
            guest_svn: U32::new(identity.map_or(0, |identity| identity.guest_svn)),
            policy: U64::new(launched.policy.0),
            family_id: identity.map_or([0; 16], |identity| identity.family_id),
            image_id: identity.map_or([0; 16], |identity| identity.image_id),
            vmpl: U32::new(vmpl),
            signature_algorithm: U32::new(ECDSA_P384_SHA384),
            current_tcb: current,
            platform_info: U64::new(chip.smt.into()),
            flags: U32::new(
                u32::from(author.is_some()) | u32::from(chip.settings.mask_chip_key) << 1 | signing_key << 2,
            ),
            reserved: U32::ZERO,
            report_data,
            measurement: *launched.digest.bytes(),
            host_data: finished.host_data,
            id_key_digest: field(identity.map(|identity| &identity.id_key)),
            author_key_digest: field(author),
            report_id: launched.report_id,
            // No guest has a migration agent.
            report_id_agent: [0xFF; 32],
            reported_tcb: chip.settings.reported.bytes(),
            cpuid_family: (family_model & 0xF) + (extended >> 4 | (chip.family_model_stepping >> 20) as u8 & 0xF0),
            cpuid_model: extended << 4 | stepping_model >> 4,
            cpuid_stepping: stepping_model & 0xF,
            reserved_2: [0; 21],
            chip_id: if chip.settings.mask_chip_id { [0; 64] } else { chip.chip_id },
            committed_tcb: chip.settings.committed.bytes(),
            current_version: version,
            committed_version: version,
            launch_tcb: current,
            reserved_3: [0; 168],
            signature: SignatureBlock::NONE,
        };
        if let Some(key) = chip.key.filter(|_| !masked) {
            report.signature = key.sign(&report.as_bytes()[..SIGNED], Hash::Sha384);
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_the_specifications() {
        assert_eq!(size_of::<Report>(), 0x4A0);
        assert_eq!(offset_of!(Report, report_data), 0x50);
        assert_eq!(offset_of!(Report, measurement), 0x90);
        assert_eq!(offset_of!(Report, id_key_digest), 0xE0);
        assert_eq!(offset_of!(Report, report_id), 0x140);
        assert_eq!(offset_of!(Report, reported_tcb), 0x180);
        assert_eq!(offset_of!(Report, chip_id), 0x1A0);
        assert_eq!(offset_of!(Report, launch_tcb), 0x1F0);
        assert_eq!(offset_of!(Report, signature), SIGNED);
    }
}
