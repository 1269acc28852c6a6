//! Plain VMs: all memory is the host's.

use super::Facts;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts { vm_type: VmType::Plain, has_private_memory: false, backing: Backing::HostOnly };
