//! Group `launch`: guests whose own code, data and page tables are private from their first instruction on.
//!
//! The host's view of a private piece keeps what was loaded. A CPU that does not tell how long an instruction is, and
//! which, makes KVM read that view for all that it intercepts: to step over the doorbell, above all. So rows that
//! overwrite it leave these few bytes alone, and their guests do nothing else that is intercepted.

use std::ops::Range;
use std::thread;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::launch::{OWN_BASE, OWN_SLOT, Part, Piece};
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::RangeSpec;
use privet_harness::uapi::MEMORY_EXIT_FLAG_PRIVATE;
use privet_harness::units::{Gpa, Gva, PAGE_SIZE, PageCount};
use privet_protocol::{Op, Pattern, Width};

use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

/// `int3`, eight times; as an entry of a page table, one that has reserved bits set.
const NONSENSE: u64 = 0xcccc_cccc_cccc_cccc;

/// Nothing is mapped here.
const UNMAPPED: Gva = Gva(0x20_1234_5678);

const FAULT_PATH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_page_fault sets PFERR_PRIVATE_ACCESS from the attribute";
const WALK: &str = "a nested walk translates the GPA of every page-table entry (AMD APM vol. 2, 15.25.5)";
const GMEM: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn_gmem";
const PUNCH: &str = "virt/kvm/guest_memfd.c: kvm_gmem_punch_hole";

/// What can be private, by name.
const PARTS: [(&str, &[Part]); 4] =
    [("code", &[Part::Code]), ("data", &[Part::Data]), ("tables", &[Part::Tables]), ("all", &Part::ALL)];

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, parts) in PARTS {
        rows.push(
            Row::new(
                format!("launch.host_has_no_say.{name}"),
                Types::UPM,
                "Code, data with stacks and descriptor tables, or page tables, or all of them, are private: the host \
                 overwrites its view of them and the guest goes on, on two vCPUs, page faults included; nothing that it \
                 does shows there.",
                move |t| host_has_no_say(t, parts),
            )
            .basis(&[FAULT_PATH, WALK]),
        );
    }
    for (name, part) in [("code", Part::Code), ("tables", Part::Tables)] {
        rows.extend([
            Row::new(
                format!("launch.converted_under_it.{name}"),
                Types::UPM,
                "The code that a vCPU executes, or the page tables that it walks, go to shared and back 50 times, with \
                 the same content in both backings: the guest exits only as a memory fault of one of these pages, when a \
                 flip comes between KVM's two looks at the attribute, and no increment is lost.",
                move |t| converted_under_it(t, part),
            )
            .basis(&[FAULT_PATH, "virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes"]),
            Row::new(
                format!("launch.without_a_guest_memfd.{name}"),
                Types::UPM,
                "The private page that the next instruction is fetched from, or the root of the page tables, has no \
                 guest_memfd any more: KVM_EXIT_MEMORY_FAULT with the private flag and that page. Made shared, all goes \
                 on from the host's view.",
                move |t| without_a_guest_memfd(t, part),
            )
            .basis(&[GMEM, WALK]),
        ]);
    }
    rows.extend([
        Row::new(
            "launch.guest_edits_its_private_tables",
            Types::UPM,
            "The guest changes an entry of its private page tables: its next access goes to the new page, and the host's \
             view of the entry stays as it was loaded.",
            guest_edits_its_tables,
        )
        .basis(&[WALK]),
        Row::new(
            "launch.hole_in_tables",
            Types::UPM,
            "A hole in the private page tables leaves nothing mapped, not even the handler of the page fault: \
             KVM_EXIT_SHUTDOWN.",
            hole_in_tables,
        )
        .basis(&[PUNCH, WALK]),
    ]);
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

fn guest(t: &Case, private: &'static [Part]) -> Outcome<Guest> {
    t.guest().vcpus(2).range(RangeSpec::new(4)).private(private).boot()
}

/// A guest of which `part` alone is private.
fn guest_with(t: &Case, part: Part) -> Outcome<Guest> {
    guest(
        t,
        match part {
            Part::Code => &[Part::Code],
            Part::Data => &[Part::Data],
            Part::Tables => &[Part::Tables],
        },
    )
}

/// Where `piece` lies in the host's view.
fn in_view(piece: &Piece) -> Range<u64> {
    let start = piece.gpa.0 - OWN_BASE.0;
    start..start + piece.bytes.len() as u64
}

fn registers(g: &Guest, vcpu: usize) -> Outcome<kvm_bindings::kvm_regs> {
    g.vcpu(vcpu).kvm().kvm()?.get_regs().map_err(|error| Stop::Error(format!("KVM_GET_REGS: {error}")))
}

/// The words of the host's view that hold private pieces and that the host can overwrite: all but what KVM itself may
/// read to step over a doorbell, which is the instruction and the first entry of each table.
fn overwritten(g: &Guest) -> Outcome<Vec<u64>> {
    let doorbell = registers(g, 0)?.rip - OWN_BASE.0;
    let is_spared = |piece: &Piece, at: u64| match piece.part {
        Some(Part::Tables) => at.is_multiple_of(PAGE_SIZE),
        Some(Part::Code) => at + 8 > doorbell && at < doorbell + 16,
        _ => false,
    };
    let words = |piece| in_view(piece).step_by(8).filter(move |at| !is_spared(piece, *at));
    Ok(g.plan().private().flat_map(words).collect())
}

fn host_has_no_say(t: &Case, parts: &'static [Part]) -> Outcome {
    let g = guest(t, parts)?;
    let range = g.range(0);
    let words = overwritten(&g)?;
    words.iter().try_for_each(|at| g.own_memory().write_u64(*at, NONSENSE))?;
    let exits = t.trace().exits();
    for v in g.vcpus() {
        let gva = range.private_gva(0);
        v.fill(gva, 4, A, 0)?;
        v.expect(gva, 4, A, 0)?;
        let Err(fault) = v.attempt(Op::Read { gva: UNMAPPED.0, width: Width::B8 })? else {
            return Err(Stop::Fail("what is not mapped could be read".into()));
        };
        expect_eq("the fault's address", &fault.cr2, &UNMAPPED.0)?;
        v.fill(gva, 4, B, 0)?;
    }
    expect_no_exit_but(t, exits, 2 * 4)?;
    range.host_expect(range.all(), B)?;
    for at in words {
        expect_eq(&format!("the host's view at {at:#x}"), &g.own_memory().read_u64(at)?, &NONSENSE)?;
    }
    Ok(())
}

fn guest_edits_its_tables(t: &Case) -> Outcome {
    let g = guest(t, &[Part::Tables])?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    let (first, second) = (v.read_entry(range.private_gva(0))?, v.read_entry(range.private_gva(1))?);
    v.write_entry(range.private_gva(0), second)?;
    v.expect(range.private_gva(0), 1, A, 1)?;
    v.write_entry(range.private_gva(0), first)?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    for piece in g.plan().private() {
        let mut seen = vec![0; piece.bytes.len()];
        g.own_memory().read(in_view(piece).start, &mut seen)?;
        expect_eq("whether the host's view of the tables is as it was", &(seen == piece.bytes), &true)?;
    }
    Ok(())
}

fn converted_under_it(t: &Case, part: Part) -> Outcome {
    let g = guest_with(t, part)?;
    let range = g.range(0);
    let pieces: Vec<(Gpa, PageCount)> = g.plan().private().map(|piece| (piece.gpa, piece.pages())).collect();
    let busy = g.vcpu(1).hammer(Op::HammerAdd { gva: range.shared_gva(0).0, pages: 4, limit: 0 })?;
    let is_between_two_looks = |exit: &Exit| {
        let Exit::MemoryFault { flags, gpa, size: PAGE_SIZE, .. } = exit else { return false };
        let is_own = pieces.iter().any(|(start, pages)| (*start..*start + *pages).contains(gpa));
        is_own && flags & !MEMORY_EXIT_FLAG_PRIVATE == 0
    };
    let rounds = thread::scope(|scope| {
        let increments = scope.spawn(|| {
            loop {
                let exit = busy.exit()?;
                if !is_between_two_looks(&exit) {
                    return busy.finish(&exit)?.map_err(|fault| Stop::Fail(format!("vCPU 1 ended with {fault:x?}")));
                }
                busy.resume()?;
            }
        });
        let flipped = (0..50).try_for_each(|_| {
            pieces.iter().try_for_each(|(gpa, pages)| g.vm().set_shared(*gpa, *pages))?;
            pieces.iter().try_for_each(|(gpa, pages)| g.vm().set_private(*gpa, *pages))
        });
        g.vcpu(1).stop()?;
        let increments =
            increments.join().unwrap_or_else(|_| Err(Stop::Error("the thread of vCPU 1 panicked".into())))?;
        flipped.map(|()| increments[0])
    })?;
    for page in range.all() {
        expect_eq("the increments of a page", &range.host().read_u64(page * PAGE_SIZE)?, &rounds)?;
    }
    Ok(())
}

fn without_a_guest_memfd(t: &Case, part: Part) -> Outcome {
    let g = guest_with(t, part)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let rip = registers(&g, 0)?.rip;
    g.vm().delete_slot(OWN_SLOT)?;
    let length = PageCount::of_bytes(g.own_memory().len());
    g.vm().add_slot(SlotSpec::shared(OWN_SLOT, OWN_BASE, length, g.own_memory()))?;
    let running = v.start(Op::Read { gva: range.private_gva(0).0, width: Width::B8 })?;
    let pieces: Vec<&Piece> = g.plan().private().collect();
    let wanted = match part {
        Part::Code => Gpa(rip).page(),
        Part::Data | Part::Tables => pieces[0].gpa,
    };
    running.expect_exit(&Exit::memory_fault(wanted, true))?;
    pieces.iter().try_for_each(|piece| g.vm().set_shared(piece.gpa, piece.pages()))?;
    running.resume()?;
    running.done().map(drop)
}

fn hole_in_tables(t: &Case) -> Outcome {
    let g = guest(t, &[Part::Tables])?;
    for piece in g.plan().private() {
        let Range { start, end } = in_view(piece);
        g.own_gmem()?.punch(start, end - start)?;
    }
    g.vcpu(0).start(Op::Nop)?.expect_exit(&Exit::Shutdown)
}
