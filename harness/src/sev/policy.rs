//! What the owner of a guest allows.

use std::ops::BitOr;

/// The policy of a SEV or SEV-ES guest (SEV API, 2.1; `include/linux/psp-sev.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SevPolicy(pub u32);

impl SevPolicy {
    /// Nothing is forbidden, nothing is required.
    pub const NONE: SevPolicy = SevPolicy(0);
    /// The host may not debug.
    pub const NO_DEBUG: SevPolicy = SevPolicy(1 << 0);
    /// The key is not shared with other guests.
    pub const NO_KEY_SHARING: SevPolicy = SevPolicy(1 << 1);
    /// The register state is encrypted: SEV-ES.
    pub const ES: SevPolicy = SevPolicy(1 << 2);
    /// The guest may not be sent elsewhere.
    pub const NO_SEND: SevPolicy = SevPolicy(1 << 3);

    /// The firmware has to have this version of the API, at least.
    pub const fn firmware(major: u8, minor: u8) -> SevPolicy {
        SevPolicy((major as u32) << 16 | (minor as u32) << 24)
    }
}

impl BitOr for SevPolicy {
    type Output = SevPolicy;
    fn bitor(self, other: SevPolicy) -> SevPolicy {
        SevPolicy(self.0 | other.0)
    }
}

/// The policy of an SNP guest (SNP firmware ABI, 4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnpPolicy(pub u64);

impl SnpPolicy {
    /// The guest may run where two processors share a core.
    pub const SMT: SnpPolicy = SnpPolicy(1 << 16);
    /// Has to be set.
    pub const RESERVED_ONE: SnpPolicy = SnpPolicy(1 << 17);
    /// A migration agent may be bound to the guest.
    pub const MIGRATE_MA: SnpPolicy = SnpPolicy(1 << 18);
    /// The host may debug.
    pub const DEBUG: SnpPolicy = SnpPolicy(1 << 19);
    /// The guest runs on one socket only.
    pub const SINGLE_SOCKET: SnpPolicy = SnpPolicy(1 << 20);
    /// What every kernel and most hosts accept.
    pub const DEFAULT: SnpPolicy = SnpPolicy(SnpPolicy::SMT.0 | SnpPolicy::RESERVED_ONE.0);

    /// The firmware has to have this version of the ABI, at least.
    pub const fn firmware(major: u8, minor: u8) -> SnpPolicy {
        SnpPolicy((major as u64) << 8 | minor as u64)
    }
}

impl BitOr for SnpPolicy {
    type Output = SnpPolicy;
    fn bitor(self, other: SnpPolicy) -> SnpPolicy {
        SnpPolicy(self.0 | other.0)
    }
}
