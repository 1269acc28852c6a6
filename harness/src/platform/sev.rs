//! `KVM_X86_SEV_VM`: the guest's pages are encrypted where its page tables say so.

use privet_protocol::{AliasBits, Doorbell};

use super::Facts;
use crate::outcome::Stop;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Sev,
    doorbell: Doorbell::Port,
    has_private_memory: false,
    backing: Backing::HostOnly,
    aliases: AliasBits::NONE,
    fill_private: |_, _, _, _| Err(Stop::Error("no guest of this type is loaded by a plan".into())),
};
