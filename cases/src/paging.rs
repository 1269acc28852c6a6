//! How KVM gets from a guest's addresses to the host's, for rows that need one way or the other.

use privet_harness::need::Need;

/// KVM walks the guest's page tables itself, and shadows them.
pub(crate) fn shadow() -> Need {
    Need::Any(vec![Need::Parameter("kvm_amd.npt", "N"), Need::Parameter("kvm_intel.ept", "N")])
}

/// The processor walks both sorts of tables.
pub(crate) fn two_dimensional() -> Need {
    Need::Any(vec![Need::Parameter("kvm_amd.npt", "Y"), Need::Parameter("kvm_intel.ept", "Y")])
}
