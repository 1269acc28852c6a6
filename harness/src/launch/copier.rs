//! A guest of two instructions that fills private memory, where nobody but a guest can.

use std::sync::Arc;

use kvm_bindings::kvm_regs;

use super::plan::{OWN_BASE, Plan};
use crate::exit::Exit;
use crate::host::Host;
use crate::long_mode;
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::{Outcome, Stop};
use crate::page_tables::{LARGE_PAGE_SIZE, PageTables};
use crate::units::{Gpa, Gva, PAGE_SIZE, PageCount};
use crate::vm::Vm;
use std::time::Duration;

/// Where the copier finds the host's view of the guest's own memory.
const SOURCE: Gpa = Gpa(0x4000_0000 + OWN_BASE.0);
/// Where its own code and page tables are.
const COPIER: Gpa = Gpa(0x5000_0000);
/// Slots for the two, while it runs.
const SLOTS: [u32; 2] = [1, 2];
/// A vCPU that no guest has; it never runs again.
const VCPU: u64 = 63;
/// How long a few pages may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// `rep movsq; hlt`
const CODE: [u8; 4] = [0xf3, 0x48, 0xa5, 0xf4];

/// Copies the private pieces of `plan` from `view`, the host's view of the memory from [`OWN_BASE`] on, to where they
/// belong. They have to be private already.
///
/// # Errors
/// What KVM refuses, and any exit but the one at the end of each piece.
pub(crate) fn copy_within_the_guest(host: &Host, vm: &Vm, view: &Arc<Mapping>, plan: &Plan) -> Outcome {
    let mut tables = PageTables::new(COPIER + PageCount(1));
    let large = |from: u64, bytes: u64| (Gva(from), Gpa(from), bytes.div_ceil(LARGE_PAGE_SIZE));
    for (gva, gpa, count) in [
        large(0, OWN_BASE.0 + view.len()),
        large(SOURCE.0 - OWN_BASE.0, OWN_BASE.0 + view.len()),
        large(COPIER.0, LARGE_PAGE_SIZE),
    ] {
        tables.map_large(gva, gpa, count);
    }
    let own = Arc::new(Mapping::anonymous(PAGE_SIZE + tables.pages().bytes())?);
    own.write(0, &CODE)?;
    own.write(PAGE_SIZE, &tables.bytes())?;
    let [source, code] = SLOTS;
    vm.add_slot(SlotSpec::shared(source, SOURCE, PageCount::of_bytes(view.len()), view))?;
    vm.add_slot(SlotSpec::shared(code, COPIER, PageCount::of_bytes(own.len()), &own))?;

    let vcpu = vm.create_vcpu(VCPU)?;
    long_mode::enter(&vcpu, host.supported_cpuid()?, tables.root(), &kvm_regs::default())?;
    for piece in plan.private() {
        let words = piece.bytes.len() as u64 / 8;
        let from = SOURCE.0 + (piece.gpa.0 - OWN_BASE.0);
        let registers = long_mode::registers(COPIER.0, piece.gpa.0, from);
        let registers = kvm_regs { rcx: words, ..registers };
        vcpu.kvm()?.set_regs(&registers).map_err(|error| Stop::Fail(format!("KVM_SET_REGS of the copier: {error}")))?;
        match vcpu.run(LIMIT)? {
            Exit::Hlt => {}
            other => return Err(Stop::Fail(format!("filling private memory at gpa {}: {other}", piece.gpa))),
        }
    }
    drop(vcpu);
    SLOTS.iter().try_for_each(|slot| vm.delete_slot(*slot))
}
