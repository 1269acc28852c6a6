//! MMIO of guests whose registers KVM does not see: the CPU raises #VC or #VE, and the guest asks for the access by a request.

use std::sync::Arc;

use privet_harness::case::Case;
use privet_harness::ghcb::{Field, Page, Requests, buffer};
use privet_harness::guest::{Guest, MMIO_BASE};
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::platform::Platform;
use privet_harness::test_range::{Backing, RangeSpec, TEST_BASE, TEST_SLOT};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_protocol::{Fault, Op, Width};

use super::cached::add_elsewhere;
use super::cost::{Cost, Meter};
use super::memory::{GAP, open_gap, ram_and_gap};
use super::{answer_read, caching, gva, read, read_exit, take_write, write, write_exit};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_INPUT, INVALID_SCRATCH_AREA, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const REQUEST: &str = "arch/x86/kvm/svm/sev.c: sev_handle_vmgexit, kvm_sev_es_mmio";
const REFLECTED: &str = "APM volume 2, 15.35.4: a nested page fault with a reserved bit is #VC";
const STALE: &str =
    "arch/x86/kvm/mmu/mmu.c: handle_mmio_page_fault, which nobody calls: the CPU raises #VC or #VE first";
const SPLITS: &str = "arch/x86/kvm/x86.c: emulator_read_write_onepage translates the second page by the guest's tables";

const MMIO_READ: u64 = 0x8000_0001;
const MMIO_WRITE: u64 = 0x8000_0002;

const VALUE: u64 = 0x8877_6655_4433_2211;
const ANSWER: u64 = 0x1f2e_3d4c_5b6a_7988;
const SLOT: u32 = 100;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for width in Width::ALL {
        let bytes = width.bytes();
        rows.extend([
            Row::new(
                format!("mmio.request.read.b{bytes}"),
                Types::ES_AND_SNP,
                "A read by a request is one exit with its address and length, and the answer is in the buffer.",
                move |t| request_read(t, bytes),
            )
            .basis(&[REQUEST]),
            Row::new(
                format!("mmio.request.write.b{bytes}"),
                Types::ES_AND_SNP,
                "A write by a request is one exit with its address, its length and as many bytes of the buffer.",
                move |t| request_write(t, bytes),
            )
            .basis(&[REQUEST]),
        ]);
    }
    rows.extend([
        Row::new(
            "mmio.request.odd_lengths",
            Types::ES_AND_SNP,
            "Lengths that no instruction has are one exit likewise: 3, 5, 6 and 7.",
            |t| [3, 5, 6, 7].into_iter().try_for_each(|bytes| request_read(t, bytes).and_then(|()| request_write(t, bytes))),
        )
        .basis(&[REQUEST]),
        Row::new(
            "mmio.request.no_length",
            Types::ES_AND_SNP,
            "A request of no bytes is done at once: no exit.",
            |t| {
                let g = guest(t)?;
                let exits = t.trace().exits();
                for code in [MMIO_READ, MMIO_WRITE] {
                    expect_eq("the answer", &requests(&g).call(&request(code, MMIO_BASE, 0))?.answer(), &(0, 0))?;
                }
                expect_no_exit_but(t, exits, 2)
            },
        )
        .basis(&[REQUEST]),
        Row::new(
            "mmio.request.too_long",
            Types::ES_AND_SNP,
            "A request of more than 8 bytes is refused.",
            |t| {
                let g = guest(t)?;
                for bytes in [9, 16, 0x1000, u64::MAX] {
                    let answer = requests(&g).call(&request(MMIO_READ, MMIO_BASE, bytes))?;
                    expect_eq("the answer", &answer.answer(), &(MALFORMED, INVALID_INPUT))?;
                }
                Ok(())
            },
        )
        .basis(&[REQUEST]),
        Row::new(
            "mmio.request.scratch_outside",
            Types::ES_AND_SNP,
            "A request whose buffer is not in the GHCB's own is refused.",
            |t| {
                let g = guest(t)?;
                for scratch in [g.range(0).gpa(0).0, buffer(0).0 - 8, buffer(0).0 + 0x7f0 - 4] {
                    let request = request(MMIO_READ, MMIO_BASE, 8).with(Field::SCRATCH, scratch);
                    let answer = requests(&g).call(&request)?;
                    expect_eq("the answer", &answer.answer(), &(MALFORMED, INVALID_SCRATCH_AREA))?;
                }
                Ok(())
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: setup_vmgexit_scratch"]),
        Row::new(
            "mmio.request.scratch_at_the_end",
            Types::ES_AND_SNP,
            "The last bytes of the GHCB's own buffer are good for a request.",
            |t| {
                let g = guest(t)?;
                let last = 0x7f0 - 8;
                let request = request(MMIO_READ, MMIO_BASE, 8).with(Field::SCRATCH, buffer(0).0 + last);
                let asking = requests(&g).start(&request)?;
                answer_read(&asking, g.vcpu(0), MMIO_BASE, 8, ANSWER)?;
                let answer = requests(&g).answer(asking)?;
                expect_eq("the answer", &answer.answer(), &(0, 0))?;
                expect_eq("the end of the buffer", &answer.buffer(last as usize / 8), &ANSWER)
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: setup_vmgexit_scratch"]),
        Row::new(
            "mmio.request.any_address",
            Types::ES_AND_SNP,
            "KVM passes the address of a request on as it is: one with memory, one that no CPU has, one with the C-bit.",
            |t| {
                let g = guest(t)?;
                for gpa in [g.range(0).gpa(0), Gpa(1 << 51 | 0x8000_0000), Gpa(0xffff_ffff_ffff_fff0)] {
                    let asking = requests(&g).start(&request(MMIO_READ, gpa, 4))?;
                    answer_read(&asking, g.vcpu(0), gpa, 4, ANSWER)?;
                    expect_eq("the buffer", &(requests(&g).answer(asking)?.buffer(0) as u32), &(ANSWER as u32))?;
                }
                Ok(())
            },
        )
        .basis(&[REQUEST]),
        Row::new(
            "mmio.request.each_access_is_one_vc",
            Types::HIDDEN_REGISTERS,
            "A load or store to MMIO is one #VC in the guest, or one #VE, and one exit, the first one as every later one.",
            each_access_is_one_vc,
        )
        .basis(&[REFLECTED, REQUEST])
        .exceeds("x86/sev_es_ghcb_ucall: ghcb_mmio"),
        Row::new(
            "mmio.request.slot_changes_keep_the_cache",
            Types::HIDDEN_REGISTERS,
            "Slots that come and go elsewhere cost later accesses nothing: KVM never looks at what it has cached.",
            slot_changes_keep_the_cache,
        )
        .basis(&[STALE])
        .needs(caching(true)),
        Row::new(
            "mmio.request.slot_over_touched",
            Types::HIDDEN_REGISTERS,
            "A slot over a page that the guest has used as MMIO stays MMIO for it, however often it looks, until \
             KVM_PRE_FAULT_MEMORY maps it: then it is memory, without an exit, and without #VC or #VE.",
            slot_over_touched,
        )
        .basis(&[STALE])
        .needs(caching(true)),
        Row::new(
            "mmio.request.slot_before_touch",
            Types::HIDDEN_REGISTERS,
            "A slot over a page that the guest has not used is memory from its first access on.",
            slot_before_touch,
        )
        .basis(&[STALE]),
        Row::new(
            "mmio.request.beside_a_plain_vm",
            Types::HIDDEN_REGISTERS,
            "Beside a plain VM, and beside the same page in it: there the access is emulated, here it is #VC, or #VE, and a \
             request, each cached by its own VM.",
            beside_a_plain_vm,
        )
        .basis(&["arch/x86/kvm/mmu/spte.c: shadow_mmio_value is each VM's own", REFLECTED])
        .needs(caching(true)),
        Row::new(
            "mmio.request.through_the_private_alias",
            Types::SEV_ES,
            "A private access to a GPA without memory is #VC as well; a guest that takes it for MMIO would tell the host \
             its secrets, so it does not.",
            through_the_private_alias,
        )
        .basis(&[REFLECTED]),
        Row::new(
            "mmio.encrypted.split",
            Types::SEV,
            "A store or load over the edge between two MMIO pages cannot be emulated: KVM would need the guest's page \
             tables for the second one, which it reads as ciphertext. The guest takes #PF there, and nothing exits.",
            split_of_an_encrypted_guest,
        )
        .basis(&[SPLITS]),
        Row::new(
            "mmio.encrypted.rep_stos",
            Types::SEV,
            "A repeated store cannot be emulated either: #PF at the first element, and nothing exits.",
            rep_stos_of_an_encrypted_guest,
        )
        .basis(&["arch/x86/kvm/emulate.c: emulator_can_use_gpa", SPLITS]),
    ]);
    rows
}

/// A guest with a page for requests.
fn guest(t: &Case) -> Outcome<Guest> {
    t.guest().range(RangeSpec::new(1).backing(Backing::HostOnly)).boot()
}

fn requests(g: &Guest) -> Requests<'_> {
    Requests::new(g, 0, g.range(0), 0)
}

fn request(code: u64, gpa: Gpa, bytes: u64) -> Page {
    Page::request(code, gpa.0, bytes).with(Field::SCRATCH, buffer(0).0)
}

/// The low `bytes` bytes.
fn low(value: u64, bytes: u64) -> u64 {
    value & (u64::MAX >> (64 - 8 * bytes))
}

fn request_read(t: &Case, bytes: u64) -> Outcome {
    let g = guest(t)?;
    for offset in [0, 1, 0xff8] {
        let asking = requests(&g).start(&request(MMIO_READ, MMIO_BASE + offset, bytes))?;
        answer_read(&asking, g.vcpu(0), MMIO_BASE + offset, bytes, ANSWER)?;
        let answer = requests(&g).answer(asking)?;
        expect_eq("the answer", &answer.answer(), &(0, 0))?;
        expect_eq("the buffer", &low(answer.buffer(0), bytes), &low(ANSWER, bytes))?;
    }
    Ok(())
}

fn request_write(t: &Case, bytes: u64) -> Outcome {
    let g = guest(t)?;
    for offset in [0, 1, 0xff8] {
        let page = request(MMIO_WRITE, MMIO_BASE + offset, bytes).with_words(0x800, &[VALUE]);
        let asking = requests(&g).start(&page)?;
        take_write(&asking, MMIO_BASE + offset, bytes, low(VALUE, bytes))?;
        expect_eq("the answer", &requests(&g).answer(asking)?.answer(), &(0, 0))?;
    }
    Ok(())
}

fn each_access_is_one_vc(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    for width in Width::ALL {
        for offset in [0, 8, 0x1000] {
            let [before, ..] = v.call(Op::Reflected)?;
            let exits = t.trace().exits();
            write(v, MMIO_BASE + offset, width, VALUE)?;
            expect_eq("what was read", &read(v, MMIO_BASE + offset, width, ANSWER)?, &width.truncate(ANSWER))?;
            expect_no_exit_but(t, exits, 4)?;
            expect_eq("#VC or #VE", &(v.call(Op::Reflected)?[0] - before), &2)?;
        }
    }
    Ok(())
}

fn slot_changes_keep_the_cache(t: &Case) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let meter = Meter::new(&g, 0)?;
    meter.expect_read("the first load", GAP, Cost::FIRST)?;
    meter.expect_read("the second load", GAP, Cost::CACHED)?;
    add_elsewhere(&g)?;
    meter.expect_read("a load after a slot was added", GAP, Cost::CACHED)?;
    meter.expect_write("a store after a slot was added", GAP, Cost::CACHED)
}

fn slot_over_touched(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, memory) = (g.vcpu(0), Arc::new(Mapping::anonymous(PAGE_SIZE)?));
    write(v, MMIO_BASE, Width::B8, VALUE)?;
    memory.write_u64(0, 0x5a5a)?;
    g.vm().add_slot(SlotSpec::shared(SLOT, MMIO_BASE, PageCount(1), &memory))?;
    for _ in 0..3 {
        expect_eq("what userspace answers", &read(v, MMIO_BASE, Width::B8, ANSWER)?, &ANSWER)?;
    }
    expect_eq("mapping it ahead", &v.kvm().pre_fault(MMIO_BASE, PageCount(1))?.result, &Ok(()))?;
    let [before, ..] = v.call(Op::Reflected)?;
    v.expect_read(gva(MMIO_BASE), Width::B8, 0x5a5a)?;
    v.write(gva(MMIO_BASE), Width::B8, VALUE)?;
    expect_eq("the host's view", &memory.read_u64(0)?, &VALUE)?;
    expect_eq("#VC", &v.call(Op::Reflected)?[0], &before)
}

fn slot_before_touch(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, memory) = (g.vcpu(0), Arc::new(Mapping::anonymous(PAGE_SIZE)?));
    g.vm().add_slot(SlotSpec::shared(SLOT, MMIO_BASE, PageCount(1), &memory))?;
    let exits = t.trace().exits();
    v.write(gva(MMIO_BASE), Width::B8, VALUE)?;
    v.expect_read(gva(MMIO_BASE), Width::B8, VALUE)?;
    expect_no_exit_but(t, exits, 2)?;
    expect_eq("the host's view", &memory.read_u64(0)?, &VALUE)?;
    // Beside it there still is none.
    write(v, MMIO_BASE + PageCount(1), Width::B8, VALUE)
}

fn beside_a_plain_vm(t: &Case) -> Outcome {
    let own = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let plain = open_gap(t.guest_of(Platform::Plain).range(ram_and_gap()).boot()?)?;
    let meters = [Meter::new(&own, 0)?, Meter::new(&plain, 0)?];
    for expected in [Cost::FIRST, Cost::CACHED, Cost::CACHED] {
        for meter in &meters {
            meter.expect_read("a load", GAP, expected)?;
        }
    }
    let [before, ..] = own.vcpu(0).call(Op::Reflected)?;
    read(own.vcpu(0), GAP, Width::B8, ANSWER)?;
    expect_eq(
        "#VC or #VE in the guest whose registers are hidden",
        &(own.vcpu(0).call(Op::Reflected)?[0] - before),
        &1,
    )?;
    read(plain.vcpu(0), GAP, Width::B8, ANSWER)?;
    expect_eq("#VC or #VE in the plain guest", &plain.vcpu(0).call(Op::Reflected)?[0], &0)
}

fn through_the_private_alias(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(Backing::HostOnly)).boot()?;
    g.vm().delete_slot(TEST_SLOT)?;
    let exits = t.trace().exits();
    let read = Op::Read { gva: g.range(0).private_gva(0).0, width: Width::B8 };
    match g.vcpu(0).attempt(read)? {
        Err(Fault { vector: 29, error_code: 0x400, .. }) => expect_no_exit_but(t, exits, 1),
        other => Err(Stop::Fail(format!("a private load from gpa {TEST_BASE}: {other:x?}, expected #VC 0x400"))),
    }
}

const PAGE_FAULT: u64 = 14;

fn expect_page_fault(seen: Result<privet_protocol::Values, Fault>, cr2: Gpa) -> Outcome {
    match seen {
        Err(Fault { vector: PAGE_FAULT, cr2: seen, .. }) => expect_eq("CR2", &seen, &cr2.0),
        other => Err(Stop::Fail(format!("the access ended with {other:x?}, expected #PF at {cr2}"))),
    }
}

fn split_of_an_encrypted_guest(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, edge) = (g.vcpu(0), MMIO_BASE + PageCount(5));
    let exits = t.trace().exits();
    for width in [Width::B2, Width::B4, Width::B8] {
        let gva = edge.0 - 1;
        expect_page_fault(v.attempt(Op::Write { gva, width, value: VALUE })?, edge)?;
        expect_page_fault(v.attempt(Op::Read { gva, width })?, edge)?;
    }
    expect_no_exit_but(t, exits, 6)?;
    // Within a page it is MMIO as ever.
    let storing = v.start(Op::Write { gva: edge.0, width: Width::B8, value: VALUE })?;
    storing.expect_exit(&write_exit(edge, 8, VALUE))?;
    storing.resume()?;
    storing.done()?;
    let loading = v.start(Op::Read { gva: edge.0, width: Width::B8 })?;
    loading.expect_exit(&read_exit(edge, 8))
}

fn rep_stos_of_an_encrypted_guest(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let exits = t.trace().exits();
    let filling = Op::Fill { gva: MMIO_BASE.0, pages: 1, pattern: privet_protocol::Pattern(0xa5), first: 0 };
    expect_page_fault(g.vcpu(0).attempt(filling)?, MMIO_BASE)?;
    expect_no_exit_but(t, exits, 1)
}
