//! The page through which the firmware tells a guest its secrets (56860, 8.17.2.5).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::context::Launched;

const VERSION: u32 = 3;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SecretsPage {
    version: U32,
    imi_enabled: U32,
    family_model_stepping: U32,
    reserved: U32,
    workarounds: [u8; 16],
    message_keys: [[u8; 32]; 4],
    guest_os: [u8; 96],
    vmsa_tweak_bitmap: [u8; 64],
    svsm_base: U64,
    svsm_size: U64,
    svsm_caa: U64,
    svsm_max_version: U32,
    svsm_guest_vmpl: u8,
    reserved_2: [u8; 3],
    tsc_factor: U32,
    rest: [u8; 4096 - 0x164],
}

/// The secrets of a guest on a processor of this family, model and stepping (CPUID.1:EAX). No register of the VMSA
/// is tweaked, and there is no SVSM.
pub(super) fn secrets_page(launched: &Launched, family_model_stepping: u32) -> Vec<u8> {
    let page = SecretsPage {
        version: U32::new(VERSION),
        imi_enabled: U32::ZERO,
        family_model_stepping: U32::new(family_model_stepping),
        reserved: U32::ZERO,
        workarounds: launched.workarounds,
        message_keys: launched.message_keys,
        guest_os: [0; 96],
        vmsa_tweak_bitmap: [0; 64],
        svsm_base: U64::ZERO,
        svsm_size: U64::ZERO,
        svsm_caa: U64::ZERO,
        svsm_max_version: U32::ZERO,
        svsm_guest_vmpl: 0,
        reserved_2: [0; 3],
        tsc_factor: U32::ZERO,
        rest: [0; 4096 - 0x164],
    };
    page.as_bytes().to_vec()
}
