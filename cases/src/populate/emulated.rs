//! KVM itself reads page tables and code by the slot's host address, whatever serves the guest: a guest of two
//! instructions in a guest_memfd stores to MMIO.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_regs;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::long_mode;
use privet_harness::mapping::{MapOptions, Mapping};
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::page_tables::PageTables;
use privet_harness::units::{Gpa, Gva, PAGE_SIZE, PageCount};
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;

use super::{INIT_SHARED, MMAP};
use crate::expect::{expect_eq, expect_ok, expect_that};
use crate::row::Row;
use crate::types::Types;

const WALK: &str = "arch/x86/kvm/mmu/paging_tmpl.h: walk_addr_generic reads entries by userspace_addr";
const OPERANDS: &str = "arch/x86/kvm/x86.c: emulator_read_write_onepage; virt/kvm/kvm_main.c: __kvm_read_guest_page";
const FETCH: &str = "arch/x86/kvm/x86.c: kvm_fetch_guest_virt, handle_emulation_failure";

/// Where the guest's code is, and where its page tables are.
const CODE: Gpa = Gpa(0);
const TABLES: Gpa = Gpa(0x20_0000);
/// Pages of either.
const PAGES: PageCount = PageCount(8);
/// Where nothing is.
const MMIO: Gpa = Gpa(0xd000_0000);
/// `movabs [MMIO], eax; hlt`
const STORE: [u8; 10] = [0xa3, 0, 0, 0, 0xd0, 0, 0, 0, 0, 0xf4];
/// `movsd; hlt`
const COPY: [u8; 2] = [0xa5, 0xf4];
const VALUE: u64 = 0x1122_3344;
/// What is copied: in the first 4 MiB, which are mapped.
const DATA: Gpa = Gpa(0x10_0000);

/// What a piece of the guest's memory is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// The host's.
    Ordinary,
    /// A guest_memfd that is mapped at the slot's host address.
    MappedFile,
    /// A guest_memfd in a slot at whose host address nothing is.
    UnmappedFile,
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "populate.emulated.file_at_its_host_address",
            Types::PLAIN,
            "Code and page tables are in a guest_memfd that is mapped at the slot's host address: a store to MMIO is an \
             MMIO exit as usual.",
            |t| {
                let exit = first_exit(t, Memory::MappedFile, Memory::MappedFile)?;
                expect_eq("the exit", &exit, &Exit::Mmio { gpa: MMIO, len: 4, write: Some(VALUE) })
            },
        )
        .basis(&[WALK, FETCH]),
        Row::new(
            "populate.emulated.tables_without_a_host_address",
            Types::PLAIN,
            "Code and page tables are in a guest_memfd, and nothing is at the slot's host address: the guest runs, but KVM \
             finds no page tables for a store to MMIO, and its page fault no handler. KVM_EXIT_SHUTDOWN.",
            |t| {
                let exit = first_exit(t, Memory::UnmappedFile, Memory::UnmappedFile)?;
                expect_eq("the exit", &exit, &Exit::Shutdown)
            },
        )
        .basis(&[WALK, FETCH])
        .needs(Need::NoDecodeAssists),
        Row::new(
            "populate.emulated.code_without_a_host_address",
            Types::PLAIN,
            "The code is in a guest_memfd, and nothing is at the slot's host address; the page tables are in ordinary \
             memory: KVM cannot fetch the store to MMIO. KVM_EXIT_INTERNAL_ERROR (emulation).",
            |t| {
                let exit = first_exit(t, Memory::UnmappedFile, Memory::Ordinary)?;
                let is_emulation_failure = matches!(exit, Exit::InternalError { suberror: 1, .. });
                expect_that(is_emulation_failure, || format!("expected INTERNAL_ERROR 1 (emulation), saw {exit}"))
            },
        )
        .basis(&[FETCH])
        .needs(Need::NoDecodeAssists),
        Row::new(
            "populate.emulated.operand_without_a_host_address",
            Types::PLAIN,
            "The guest copies from a guest_memfd at whose slot's host address nothing is to MMIO: it can read that memory, \
             and KVM, which does the copy for it, cannot. To KVM that is MMIO, too: a load from the memory's GPA.",
            |t| {
                let vm = t.vm()?;
                let [code, data] = [
                    slot(&vm, 0, CODE, Memory::Ordinary, &[(PAGE_SIZE, &COPY)])?,
                    slot(&vm, 2, DATA, Memory::UnmappedFile, &[(0, &VALUE.to_le_bytes())])?,
                ];
                let guest = enter(t, &vm, Memory::Ordinary, vec![code, data], (DATA, MMIO))?;
                expect_eq("the exit", &guest.run(t.limit())?, &Exit::Mmio { gpa: DATA, len: 4, write: None })
            },
        )
        .basis(&[OPERANDS]),
        Row::new(
            "populate.emulated.destination_without_a_host_address",
            Types::PLAIN,
            "The other way round: what the guest copies from MMIO to such memory is a store to MMIO at the memory's GPA, too.",
            |t| {
                let vm = t.vm()?;
                let [code, data] = [
                    slot(&vm, 0, CODE, Memory::Ordinary, &[(PAGE_SIZE, &COPY)])?,
                    slot(&vm, 2, DATA, Memory::UnmappedFile, &[])?,
                ];
                let guest = enter(t, &vm, Memory::Ordinary, vec![code, data], (MMIO, DATA))?;
                expect_eq("the first exit", &guest.run(t.limit())?, &Exit::Mmio { gpa: MMIO, len: 4, write: None })?;
                guest.vcpu.set_mmio_data(VALUE)?;
                let store = Exit::Mmio { gpa: DATA, len: 4, write: Some(VALUE) };
                expect_eq("the second exit", &guest.run(t.limit())?, &store)
            },
        )
        .basis(&[OPERANDS, "virt/kvm/kvm_main.c: __kvm_write_guest_page"]),
    ]
}

/// A slot of [`PAGES`] over `memory`, filled by the host.
fn slot(vm: &Vm, number: u32, gpa: Gpa, memory: Memory, content: &[(u64, &[u8])]) -> Outcome<SlotSpec> {
    let fill = |view: &Mapping| content.iter().try_for_each(|(at, bytes)| view.write(*at, bytes));
    if memory == Memory::Ordinary {
        let view = Arc::new(Mapping::anonymous(PAGES.bytes())?);
        fill(&view)?;
        return Ok(SlotSpec::shared(number, gpa, PAGES, &view));
    }
    let file = vm.create_guest_memfd(PAGES.bytes(), MMAP | INIT_SHARED)?;
    let view = expect_ok("mmap of a guest_memfd", file.mmap(0, PAGES.bytes(), MapOptions::new().shared()))?;
    fill(&view)?;
    let slot = SlotSpec::shared(number, gpa, PAGES, &Arc::new(view)).with_gmem(&file, 0);
    Ok(if memory == Memory::MappedFile { slot } else { SlotSpec { mapping: None, ..slot } })
}

/// The first exit of a guest whose code and page tables are in such memory.
fn first_exit(t: &Case, code: Memory, tables: Memory) -> Outcome<Exit> {
    let vm = t.vm()?;
    let code = slot(&vm, 0, CODE, code, &[(PAGE_SIZE, &STORE)])?;
    enter(t, &vm, tables, vec![code], (DATA, MMIO))?.run(t.limit())
}

/// A guest that runs as long as its files are open, which its slots are not enough for.
struct Entered {
    vcpu: Vcpu,
    _slots: Vec<SlotSpec>,
}

impl Entered {
    fn run(&self, limit: Duration) -> Outcome<Exit> {
        self.vcpu.run(limit)
    }
}

/// A guest that has these slots, one of them with its code, and page tables in such memory; it copies `from` somewhere `to`
/// somewhere, if it does.
fn enter(t: &Case, vm: &Vm, tables: Memory, mut slots: Vec<SlotSpec>, (from, to): (Gpa, Gpa)) -> Outcome<Entered> {
    let mut entries = PageTables::new(TABLES);
    entries.map_large(Gva(0), Gpa(0), 2);
    entries.map_large(Gva(MMIO.0), MMIO, 1);
    let entries = entries.bytes();
    slots.push(slot(vm, 1, TABLES, tables, &[(0, &entries)])?);
    for slot in &slots {
        vm.add_slot(slot.clone())?;
    }
    let vcpu = vm.create_vcpu(0)?;
    let registers = kvm_regs { rax: VALUE, rsi: from.0, rdi: to.0, ..long_mode::registers(CODE.0 + PAGE_SIZE, 0, 0) };
    long_mode::enter(&vcpu, t.host().supported_cpuid()?, TABLES, &registers)?;
    Ok(Entered { vcpu, _slots: slots })
}
