//! What a guest's owner allows, as the launch commands take it.

use serde::{Deserialize, Serialize};

use super::{API_MAJOR, API_MINOR, Status};

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

    /// The firmware is as new as the policy demands.
    pub(super) fn check_version(self) -> Result<(), Status> {
        let [_, _, major, minor] = self.0.to_le_bytes();
        check_version(major, minor)
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

    /// Whether a guest of this policy may be launched here (56860, SNP_LAUNCH_START).
    pub(super) fn check(self, smt: bool) -> Result<(), Status> {
        let [minor, major, ..] = self.0.to_le_bytes();
        check_version(major, minor)?;
        let granted = self.0 & Self::MUST_BE_ONE != 0 && self.0 & !Self::KNOWN == 0;
        let smt_allowed = self.0 & Self::SMT != 0 || !smt;
        if granted && smt_allowed { Ok(()) } else { Err(Status::PolicyFailure) }
    }
}

fn check_version(major: u8, minor: u8) -> Result<(), Status> {
    if (major, minor) <= (API_MAJOR, API_MINOR) { Ok(()) } else { Err(Status::PolicyFailure) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_may_demand_newer_firmware_than_there_is() {
        assert_eq!(SevPolicy(0x3701_0000).check_version(), Ok(()));
        assert_eq!(SevPolicy(0x3801_0000).check_version(), Err(Status::PolicyFailure));
        assert_eq!(SevPolicy(0x0002_0000).check_version(), Err(Status::PolicyFailure));
        assert_eq!(SnpPolicy(0x2_0138).check(false), Err(Status::PolicyFailure));
    }

    #[test]
    fn an_snp_policy_has_to_fit_the_host() {
        assert_eq!(SnpPolicy(0x3_0000).check(true), Ok(()));
        assert_eq!(SnpPolicy(0x2_0000).check(false), Ok(()));
        assert_eq!(SnpPolicy(0x2_0000).check(true), Err(Status::PolicyFailure), "SMT is on");
        assert_eq!(SnpPolicy(0x1_0000).check(false), Err(Status::PolicyFailure), "bit 17 must be one");
        assert_eq!(SnpPolicy(0x2_0000 | 1 << 40).check(false), Err(Status::PolicyFailure), "reserved");
        assert_eq!(SnpPolicy(0x2_0000 | 1 << 18).check(false), Err(Status::PolicyFailure), "migration agent");
    }
}
