//! A guest whose own addresses are other pages' physical ones: KVM remembers MMIO by either, and must not take one for the
//! other.

use std::sync::Arc;

use kvm_bindings::kvm_regs;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::long_mode;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::page_tables::PageTables;
use privet_harness::units::{Gpa, Gva, PAGE_SIZE, PageCount};

use super::read_exit;
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

/// Code and page tables of the guest.
const OWN: Gpa = Gpa(0);
const TABLES: Gpa = Gpa(0x1_0000);
const OWN_PAGES: PageCount = PageCount(32);
/// Where nothing is, and where the guest sees that.
const MMIO: Gpa = Gpa(0xd000_0000);
const ALIAS: Gva = Gva(0x4000_0000);
/// Memory, which the guest sees at the address that is the other's physical one.
const MEMORY: Gpa = Gpa(0x40_0000);

/// `mov eax, [rsi]; mov eax, [rsi + 0x1000]; mov eax, [rsi]; movsd; hlt`: KVM remembers the last page alone, and finds the first
/// one again in its page tables.
const CODE: [u8; 12] = [0x8b, 0x06, 0x8b, 0x86, 0x00, 0x10, 0x00, 0x00, 0x8b, 0x06, 0xa5, 0xf4];
const VALUE: u32 = 0x1122_3344;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "mmio.copied_to_the_number_of_its_gpa",
            Types::PLAIN,
            "The guest copies from MMIO that KVM has cached to memory that it has mapped at the number of the MMIO's GPA: \
             one exit, for the load, and the memory has the value.",
            copied,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: handle_mmio_page_fault", "arch/x86/kvm/x86.c: vcpu_mmio_gva_to_gpa"]),
    ]
}

fn copied(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mut entries = PageTables::new(TABLES);
    entries.map_large(Gva(0), OWN, 1);
    entries.map_large(ALIAS, MMIO, 1);
    entries.map_large(Gva(MMIO.0), MEMORY, 1);
    let (own, memory) = (Arc::new(Mapping::anonymous(OWN_PAGES.bytes())?), Arc::new(Mapping::anonymous(PAGE_SIZE)?));
    own.write(PAGE_SIZE, &CODE)?;
    own.write(TABLES.0, &entries.bytes())?;
    vm.add_slot(SlotSpec::shared(0, OWN, OWN_PAGES, &own))?;
    vm.add_slot(SlotSpec::shared(1, MEMORY, PageCount(1), &memory))?;
    let vcpu = vm.create_vcpu(0)?;
    let registers = kvm_regs { rsi: ALIAS.0, rdi: MMIO.0, ..long_mode::registers(PAGE_SIZE, 0, 0) };
    long_mode::enter(&vcpu, t.host().supported_cpuid()?, TABLES, &registers)?;
    for (load, at) in [
        ("the first load", MMIO),
        ("a load from the next page", MMIO + PAGE_SIZE),
        ("the second load", MMIO),
        ("the load of the copy", MMIO),
    ] {
        expect_eq(load, &vcpu.run(t.limit())?, &read_exit(at, 4))?;
        vcpu.set_mmio_data(VALUE.into())?;
    }
    expect_eq("the exit after that", &vcpu.run(t.limit())?, &Exit::Hlt)?;
    expect_eq("the memory", &memory.read_u64(0)?, &VALUE.into())
}
