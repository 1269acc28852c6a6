//! `KVM_X86_SW_PROTECTED_VM`: private memory without encryption. Whether an access is private is what the attribute
//! says, so that guest and host cannot disagree.

use privet_protocol::{AliasBits, Conversion, Doorbell};

use super::Facts;
use crate::launch::{Launch, Launched, OwnMemory, Plan, copy_within_the_guest};
use crate::outcome::Outcome;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Upm,
    doorbell: |_| Doorbell::Port,
    conversion: Conversion::Hypercall,
    has_private_memory: true,
    has_firmware_pages: false,
    begins_at_the_reset_vector: false,
    backing: Backing::HostAndGuestMemfd,
    aliases: |_| Ok(AliasBits::NONE),
    private_parts: &[],
    launch,
};

/// There is no ioctl that fills private memory (`kvm_gmem_populate` is for encrypted VMs): pages that are private already
/// can be written by the guest alone.
fn launch(launch: &Launch<'_>) -> Outcome<Launched> {
    let Launch { host, vm, plan, make_vcpus, .. } = *launch;
    if plan.private().next().is_none() {
        return launch.all_shared();
    }
    let (view, slot) = launch.content()?;
    let gmem = vm.create_guest_memfd(Plan::length().bytes(), 0)?;
    vm.add_slot(slot.with_gmem(&gmem, 0))?;
    for piece in plan.private() {
        vm.set_private(piece.gpa, piece.pages())?;
    }
    copy_within_the_guest(host, vm, &view, plan)?;
    Ok(Launched { own: OwnMemory { host: view, gmem: Some(gmem) }, vcpus: make_vcpus()?, firmware: None })
}
