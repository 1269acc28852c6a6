//! `KVM_X86_SW_PROTECTED_VM`: private memory without encryption. Whether an access is private is what the attribute
//! says, so that guest and host cannot disagree.

use super::Facts;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts =
    Facts { vm_type: VmType::Upm, has_private_memory: true, backing: Backing::HostAndGuestMemfd };
