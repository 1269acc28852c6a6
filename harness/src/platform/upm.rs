//! `KVM_X86_SW_PROTECTED_VM`: private memory without encryption. Whether an access is private is what the attribute
//! says, so that guest and host cannot disagree.

use std::sync::Arc;

use privet_protocol::{AliasBits, Doorbell};

use super::Facts;
use crate::host::Host;
use crate::launch::{Plan, copy_within_the_guest};
use crate::mapping::Mapping;
use crate::outcome::Outcome;
use crate::test_range::Backing;
use crate::vm::Vm;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Upm,
    doorbell: Doorbell::Port,
    has_private_memory: true,
    backing: Backing::HostAndGuestMemfd,
    aliases: AliasBits::NONE,
    fill_private,
};

/// There is no ioctl for it (`kvm_gmem_populate` is for encrypted VMs): pages that are private already can be written by
/// the guest alone.
fn fill_private(host: &Host, vm: &Vm, view: &Arc<Mapping>, plan: &Plan) -> Outcome {
    for piece in plan.private() {
        vm.set_private(piece.gpa, piece.pages())?;
    }
    copy_within_the_guest(host, vm, view, plan)
}
