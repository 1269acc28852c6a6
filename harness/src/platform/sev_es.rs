//! `KVM_X86_SEV_ES_VM`: as SEV, and the guest's registers are encrypted, too.

use privet_protocol::{AliasBits, Doorbell};

use super::Facts;
use crate::outcome::Stop;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::SevEs,
    doorbell: Doorbell::Port,
    has_private_memory: false,
    backing: Backing::HostOnly,
    aliases: AliasBits::NONE,
    fill_private: |_, _, _, _| Err(Stop::Error("no guest of this type is loaded by a plan".into())),
};
