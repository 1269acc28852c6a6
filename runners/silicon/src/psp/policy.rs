//! What a guest's owner allows, as the launch commands take it.

use serde::{Deserialize, Serialize};

use super::{API_MAJOR, API_MINOR};

/// Policy of an SEV or SEV-ES guest (55766, "Guest Policy Structure").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SevPolicy(pub(super) u32);

impl SevPolicy {
    pub(super) fn no_debug(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    pub(super) fn no_key_sharing(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// SEV-ES: the guest's registers are encrypted, too.
    pub(super) fn encrypted_state(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// NOSEND.
    pub(super) fn no_send(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// DOMAIN: sent to platforms of the same owner only.
    pub(super) fn only_within_domain(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// SEV: sent to platforms only that AMD vouches for.
    pub(super) fn only_to_amd(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// The firmware is as new as the policy demands.
    pub(super) fn version_is_here(self) -> bool {
        let [_, _, major, minor] = self.0.to_le_bytes();
        is_here(major, minor)
    }
}

/// Policy of an SNP guest (56860, "Guest Policy").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnpPolicy(pub(super) u64);

impl SnpPolicy {
    const SMT: u64 = 1 << 16;
    const MUST_BE_ONE: u64 = 1 << 17;
    const DEBUG: u64 = 1 << 19;
    const SINGLE_SOCKET: u64 = 1 << 20;
    /// What the firmware can grant. It has no migration agents, and offers neither CXL, XTS-256, RAPL off nor
    /// ciphertext hiding (SNP_FEATURE_INFO).
    const KNOWN: u64 = 0xFFFF | Self::SMT | Self::MUST_BE_ONE | Self::DEBUG | Self::SINGLE_SOCKET;

    pub(super) fn debug(self) -> bool {
        self.0 & Self::DEBUG != 0
    }

    /// The firmware is as new as the policy demands.
    pub(super) fn version_is_here(self) -> bool {
        let [minor, major, ..] = self.0.to_le_bytes();
        is_here(major, minor)
    }

    /// Whether this host can grant what the policy demands otherwise (56860, SNP_LAUNCH_START).
    pub(super) fn can_be_granted(self, smt: bool) -> bool {
        let granted = self.0 & Self::MUST_BE_ONE != 0 && self.0 & !Self::KNOWN == 0;
        let smt_allowed = self.0 & Self::SMT != 0 || !smt;
        granted && smt_allowed
    }
}

fn is_here(major: u8, minor: u8) -> bool {
    (major, minor) <= (API_MAJOR, API_MINOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_may_demand_newer_firmware_than_there_is() {
        assert!(SevPolicy(0x3701_0000).version_is_here());
        assert!(!SevPolicy(0x3801_0000).version_is_here());
        assert!(!SevPolicy(0x0002_0000).version_is_here());
        assert!(!SnpPolicy(0x2_0138).version_is_here());
    }

    #[test]
    fn an_snp_policy_has_to_fit_the_host() {
        assert!(SnpPolicy(0x3_0000).can_be_granted(true));
        assert!(SnpPolicy(0x2_0000).can_be_granted(false));
        assert!(!SnpPolicy(0x2_0000).can_be_granted(true), "SMT is on");
        assert!(!SnpPolicy(0x1_0000).can_be_granted(false), "bit 17 must be one");
        assert!(!SnpPolicy(0x2_0000 | 1 << 40).can_be_granted(false), "reserved");
        assert!(!SnpPolicy(0x2_0000 | 1 << 18).can_be_granted(false), "migration agent");
    }
}
