//! `KVM_X86_TDX_VM`: private memory is encrypted, and the guest's alone; the shared bit is a bit of the address.

use std::sync::Arc;

use privet_protocol::{AliasBits, Conversion, Doorbell};

use super::Facts;
use crate::launch::tdx::{self, GPA_WIDTH, Measured};
use crate::launch::{Entry, Kind, Launch, Launched, OwnMemory, Part, Plan, RESET_PAGE, RESET_SLOT, reset_page};
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::Outcome;
use crate::test_range::Backing;
use crate::units::{PAGE_SIZE, PageCount};
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Tdx,
    doorbell: |_| Doorbell::Tdvmcall,
    conversion: Conversion::MapGpa,
    has_private_memory: true,
    has_firmware_pages: false,
    begins_at_the_reset_vector: true,
    backing: Backing::HostAndGuestMemfd,
    aliases: |_| Ok(AliasBits { private: 0, shared: 1 << (GPA_WIDTH - 1) }),
    private_parts: &Part::ALL,
    launch,
};

fn launch(launch: &Launch<'_>) -> Outcome<Launched> {
    let Entry { vcpus, code, root } = launch.entry;
    let vm = launch.vm;
    let mut steps = tdx::Launch::create(vm, launch.host, launch.td_attributes)?;
    let (host, slot) = launch.content()?;
    // The reset vector's page comes last in the guest_memfd, which has to stay open.
    let behind = Plan::length().bytes();
    let gmem = vm.create_guest_memfd(behind + PAGE_SIZE, 0)?;
    vm.add_slot(slot.with_gmem(&gmem, 0))?;
    let vector = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    vector.write(0, &reset_page(code, root))?;
    vm.add_slot(SlotSpec::shared(RESET_SLOT, RESET_PAGE, PageCount(1), &vector).with_gmem(&gmem, behind))?;

    let vcpus: Vec<_> = (0..vcpus).map(|id| steps.vcpu(id, 0)).collect::<Outcome<_>>()?;
    for piece in launch.plan.pieces().iter().filter(|piece| piece.kind != Kind::Shared) {
        vm.set_private(piece.gpa, piece.pages())?;
        steps.add_part(&vcpus[0], Measured::Yes, piece.gpa, &host, piece.in_own_memory(), piece.part)?;
    }
    vm.set_private(RESET_PAGE, PageCount(1))?;
    steps.add_part(&vcpus[0], Measured::Yes, RESET_PAGE, &vector, 0..PAGE_SIZE, Some(Part::Code))?;
    steps.finalize()?;
    Ok(Launched { own: OwnMemory { host, gmem: Some(gmem) }, vcpus, firmware: None })
}
