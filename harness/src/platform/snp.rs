//! `KVM_X86_SNP_VM`: private memory is encrypted and belongs to the guest alone.

use privet_protocol::{AliasBits, Doorbell};

use super::Facts;
use crate::outcome::Stop;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Snp,
    doorbell: Doorbell::Port,
    has_private_memory: true,
    backing: Backing::HostAndGuestMemfd,
    aliases: AliasBits::NONE,
    fill_private: |_, _, _, _| Err(Stop::Error("no guest of this type is loaded by a plan".into())),
};
