//! Private accesses where there is no memory: never MMIO, except where KVM remembers that it was.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::{Guest, MMIO_BASE};
use privet_harness::guest_vcpu::Running;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{RangeSpec, TEST_SLOT};
use privet_harness::uapi::Capability;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vcpu::PreFault;
use privet_protocol::{Op, Pattern, Width};

use super::{answer_read, caching, gva, read, read_op, take_write, write, write_exit, write_op};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const NO_SLOT: &str = "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault, kvm_mmu_prepare_memory_fault_exit";
const RESERVED: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_page_fault sets PFERR_PRIVATE_ACCESS, but not with PFERR_RSVD";

const VALUE: u64 = 0x8877_6655_4433_2211;
const PAGE: PageCount = PageCount(1);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "mmio.private_read_without_a_slot",
            Types::UPM,
            "A private load where no slot is is no MMIO: KVM_EXIT_MEMORY_FAULT with the private flag, the page and its \
             size; once userspace makes the page shared, the same load is MMIO.",
            |t| without_a_slot(t, read_op(MMIO_BASE + 0x123, Width::B4), Then::Read),
        )
        .basis(&[NO_SLOT, RESERVED])
        .upstream("x86/private_mem_kvm_exits_test: test_private_access_memslot_deleted"),
        Row::new(
            "mmio.private_write_without_a_slot",
            Types::UPM,
            "A private store where no slot is is no MMIO: KVM_EXIT_MEMORY_FAULT with the private flag, the page and its \
             size; once userspace makes the page shared, the same store is MMIO.",
            |t| without_a_slot(t, write_op(MMIO_BASE + 0x123, Width::B4, VALUE), Then::Write),
        )
        .basis(&[NO_SLOT, RESERVED]),
        Row::new(
            "mmio.private_execute_without_a_slot",
            Types::UPM,
            "Executing private memory where no slot is is a KVM_EXIT_MEMORY_FAULT with the private flag as well: nothing \
             is emulated.",
            |t| without_a_slot(t, Op::Execute { gva: gva(MMIO_BASE + 0x123).0, argument: 0 }, Then::Nothing),
        )
        .basis(&[NO_SLOT, RESERVED]),
        Row::new(
            "mmio.private_after_caching",
            Types::UPM,
            "An MMIO page that is cached stays MMIO when it becomes private, until the slots change; then it is a \
             KVM_EXIT_MEMORY_FAULT that calls the access shared, for the fault was a reserved-bit one.",
            private_after_caching,
        )
        .basis(&[RESERVED, "arch/x86/kvm/mmu/mmu.c: handle_mmio_page_fault, kvm_mmu_faultin_pfn"])
        .needs(caching(true)),
        Row::new(
            "mmio.private_after_no_caching",
            Types::UPM,
            "Without caching, an MMIO page that becomes private is a KVM_EXIT_MEMORY_FAULT with the private flag at \
             once.",
            private_after_no_caching,
        )
        .basis(&[NO_SLOT, RESERVED])
        .needs(caching(false)),
        Row::new(
            "mmio.private_slot_over_cached_mmio",
            Types::UPM,
            "A slot appears over a cached MMIO page and the page becomes private: the stale MMIO SPTE still makes KVM \
             call the access shared, KVM_EXIT_MEMORY_FAULT, until pre-faulting the page replaces it.",
            private_slot_over_cached_mmio,
        )
        .basis(&[RESERVED, "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn, kvm_arch_vcpu_pre_fault_memory"])
        .needs(caching(true))
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
        Row::new(
            "mmio.private_slot_over_mmio",
            Types::UPM,
            "Without caching, a slot appears over an MMIO page and the page becomes private: the guest reads and writes \
             its guest_memfd without an exit.",
            private_slot_over_mmio,
        )
        .basis(&[RESERVED, "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn_gmem"])
        .needs(caching(false)),
        Row::new(
            "mmio.emulator_fetches_the_hosts_view",
            Types::UPM,
            "A store to MMIO by private code is emulated as what the host's view holds at its address: the guest stores EAX, \
             and where the host has another instruction ECX arrives.",
            emulator_fetches_the_hosts_view,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_fetch_guest_virt reads by userspace_addr", RESERVED])
        .needs(Need::NoDecodeAssists),
        Row::new(
            "mmio.emulator_knows_no_private_memory",
            Types::UPM,
            "A store over the end of a private page into MMIO is emulated, and KVM's emulator only knows the host's \
             view: the part in memory goes there and the private page does not change.",
            emulator_knows_no_private_memory,
        )
        .basis(&["arch/x86/kvm/x86.c: emulator_write_guest", "virt/kvm/kvm_main.c: __kvm_write_guest_page"]),
    ]
}

/// What the access does once its page is shared.
enum Then {
    Read,
    Write,
    Nothing,
}

fn private_fault(gpa: Gpa) -> Exit {
    Exit::memory_fault(gpa.page(), true)
}

fn without_a_slot(t: &Case, op: Op, then: Then) -> Outcome {
    let g = t.guest().boot()?;
    let (v, at) = (g.vcpu(0), MMIO_BASE + 0x123);
    g.vm().set_private(MMIO_BASE, PAGE)?;
    let running = v.start(op)?;
    running.expect_exit(&private_fault(at))?;
    // Nothing has changed, so the same happens again.
    running.resume()?;
    running.expect_exit(&private_fault(at))?;
    let mmio_exits = v.kvm().stats()?.get("mmio_exits")?;
    expect_eq("MMIO exits so far", &mmio_exits, &Some(0))?;
    g.vm().set_shared(MMIO_BASE, PAGE)?;
    match then {
        Then::Nothing => Ok(()),
        Then::Write => {
            running.resume()?;
            take_write(&running, at, 4, VALUE & 0xffff_ffff)?;
            running.done().map(drop)
        }
        Then::Read => {
            running.resume()?;
            answer_read(&running, v, at, 4, VALUE)?;
            let [value, ..] = running.done()?;
            expect_eq("what the guest read", &value, &(VALUE & 0xffff_ffff))
        }
    }
}

/// A store to MMIO that userspace has not seen yet.
fn store(g: &Guest) -> Outcome<Running<'_>> {
    g.vcpu(0).start(write_op(MMIO_BASE, Width::B8, VALUE))
}

fn private_after_caching(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    write(v, MMIO_BASE, Width::B8, VALUE)?;
    g.vm().set_private(MMIO_BASE, PAGE)?;
    for _ in 0..2 {
        write(v, MMIO_BASE, Width::B8, VALUE)?;
        read(v, MMIO_BASE, Width::B8, VALUE)?;
    }
    let elsewhere = std::sync::Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    g.vm().add_slot(SlotSpec::shared(100, Gpa(0x8_0000_0000), PAGE, &elsewhere))?;
    let running = store(&g)?;
    running.expect_exit(&Exit::memory_fault(MMIO_BASE, false))?;
    // What userspace has been told makes no sense to it; sharing the page is all that helps.
    g.vm().set_shared(MMIO_BASE, PAGE)?;
    running.resume()?;
    take_write(&running, MMIO_BASE, 8, VALUE)?;
    running.done().map(drop)
}

fn private_after_no_caching(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    write(g.vcpu(0), MMIO_BASE, Width::B8, VALUE)?;
    g.vm().set_private(MMIO_BASE, PAGE)?;
    let running = store(&g)?;
    running.expect_exit(&private_fault(MMIO_BASE))?;
    g.vm().set_shared(MMIO_BASE, PAGE)?;
    running.resume()?;
    running.expect_exit(&write_exit(MMIO_BASE, 8, VALUE))
}

/// A guest that has used the page of its range as MMIO twice before its slot appeared and it became private.
fn private_slot_over_used_mmio(t: &Case) -> Outcome<Guest> {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let spec = range.slots()[0].clone();
    g.vm().delete_slot(spec.slot)?;
    write(v, range.gpa(0), Width::B8, VALUE)?;
    write(v, range.gpa(0), Width::B8, VALUE)?;
    g.vm().add_slot(spec)?;
    range.set_private(g.vm(), 0..1)?;
    Ok(g)
}

fn private_slot_over_cached_mmio(t: &Case) -> Outcome {
    let g = private_slot_over_used_mmio(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let running = v.start(write_op(range.gpa(0), Width::B8, VALUE))?;
    let shared_fault = Exit::memory_fault(range.gpa(0), false);
    running.expect_exit(&shared_fault)?;
    running.resume()?;
    running.expect_exit(&shared_fault)?;
    let done = PreFault { result: Ok(()), gpa: range.gpa(1), size: 0, memory_fault: None };
    expect_eq("KVM_PRE_FAULT_MEMORY", &v.kvm().pre_fault(range.gpa(0), PAGE)?, &done)?;
    running.resume()?;
    running.done()?;
    v.expect_read(range.private_gva(0), Width::B8, VALUE)?;
    range.host_expect(0..1, Pattern::ZERO)
}

fn private_slot_over_mmio(t: &Case) -> Outcome {
    let g = private_slot_over_used_mmio(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let exits = t.trace().exits();
    v.write(range.private_gva(0), Width::B8, VALUE)?;
    v.expect_read(range.private_gva(0), Width::B8, VALUE)?;
    expect_no_exit_but(t, exits, 2)?;
    range.host_expect(0..1, Pattern::ZERO)
}

fn emulator_knows_no_private_memory(t: &Case) -> Outcome {
    const HOST: Pattern = Pattern(0xaa);
    const GUEST: Pattern = Pattern(0xbb);
    let g = t.guest().range(RangeSpec::new(2).slots(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().delete_slot(TEST_SLOT + 1)?;
    range.host_fill(0..1, HOST)?;
    range.set_private(g.vm(), 0..1)?;
    v.fill(range.private_gva(0), 1, GUEST, 0)?;
    let running = v.start(write_op(Gpa(range.gpa(1).0 - 4), Width::B8, VALUE))?;
    take_write(&running, range.gpa(1), 4, VALUE >> 32)?;
    running.done()?;
    v.expect(range.private_gva(0), 1, GUEST, 0)?;
    let last = range.host().read_u64(PAGE_SIZE - 8)?;
    expect_eq("the end of the host's view", &last, &(VALUE << 32 | HOST.word(0) & 0xffff_ffff))
}

/// `mov eax, 0x11111111; mov ecx, 0x22222222`, a store of one of the two to [RDI], `ret`.
fn store_function(modrm: u8) -> [u8; 13] {
    [0xb8, 0x11, 0x11, 0x11, 0x11, 0xb9, 0x22, 0x22, 0x22, 0x22, 0x89, modrm, 0xc3]
}
const EAX_TO_RDI: u8 = 0x07;
const ECX_TO_RDI: u8 = 0x0f;

fn emulator_fetches_the_hosts_view(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let code = range.private_gva(0);
    range.set_private(g.vm(), 0..1)?;
    v.write_bytes(code, &store_function(EAX_TO_RDI))?;
    for (in_view, arrives) in [(EAX_TO_RDI, 0x1111_1111), (ECX_TO_RDI, 0x2222_2222)] {
        range.host().write(0, &store_function(in_view))?;
        let running = v.start(Op::Execute { gva: code.0, argument: gva(MMIO_BASE).0 })?;
        take_write(&running, MMIO_BASE, 4, arrives)?;
        running.done()?;
    }
    Ok(())
}
