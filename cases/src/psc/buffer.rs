//! Where the entries are: the header, and a buffer that has to lie in the GHCB.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Field, Page, buffer};
use privet_harness::guest::Guest;
use privet_harness::launch::OWN_BASE;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::MAP_GPA_RANGE_ENCRYPTED;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};

use super::{
    BUFFER, ENTRIES, INVALID_HEADER, PAGE, PAGE_STATE_CHANGE, TO_PRIVATE, exit, grant, guest, request, requests, small,
    with_header,
};
use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::malformed::{INVALID_SCRATCH_AREA, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const SCRATCH: &str = "arch/x86/kvm/svm/sev.c: setup_vmgexit_scratch";
const COPIES: &str = "arch/x86/kvm/svm/sev.c: snp_begin_psc, snp_do_psc: READ_ONCE";
const SCRATCH_FIX: &str = "CVE-2026-53360: the buffer of a page state change has to lie in the GHCB";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "psc.end_beyond_the_buffer",
            Types::SNP,
            "A header whose last entry is not in the buffer is invalid: no exit.",
            |t| {
                let g = guest(t, 1)?;
                let exits = t.trace().exits();
                for end in [ENTRIES, 0x1000, 0xffff] {
                    let answer = requests(&g).call(&with_header(end << 16, &[small(TO_PRIVATE, TEST_BASE)]))?;
                    expect_eq(&format!("the answer for entry {end:#x}"), &answer.answer(), &(0, INVALID_HEADER))?;
                }
                expect_no_exit_but(t, exits, 3)
            },
        )
        .basis(&[PAGE, SCRATCH_FIX]),
        Row::new(
            "psc.nothing_to_do",
            Types::SNP,
            "A header whose first entry is after its last one is done at once.",
            |t| {
                let g = guest(t, 1)?;
                let answer = requests(&g).call(&with_header(2 << 16 | 3, &[small(TO_PRIVATE, TEST_BASE)]))?;
                expect_eq("the answer", &answer.answer(), &(0, 0))
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.scratch_outside",
            Types::SNP,
            "A buffer that is not in the GHCB's own, or not whole in it, is refused: in other memory, before it, over its \
             end, nowhere.",
            scratch_outside,
        )
        .basis(&[SCRATCH, SCRATCH_FIX]),
        Row::new(
            "psc.short_buffer",
            Types::SNP,
            "A buffer that begins late has room for fewer entries: with room for one, a header with two is invalid, one \
             with one is an exit.",
            short_buffer,
        )
        .basis(&[SCRATCH, PAGE, SCRATCH_FIX]),
        Row::new(
            "psc.rewritten_under_way",
            Types::SNP,
            "What another writes into the buffer while userspace has the first exit does not move KVM out of it: the last \
             entry is the one that the header had at first, an entry is what it is when its turn comes.",
            rewritten_under_way,
        )
        .basis(&[PAGE, COPIES]),
        Row::new(
            "psc.race.header",
            Types::SNP,
            "Another writes any header into the buffer all the time: each request is done, or its header is invalid, and \
             there is no exit but for its entries.",
            header_race,
        )
        .basis(&[PAGE, COPIES]),
    ]
}

/// Where a word of the buffer of vCPU 0 is in the host's view of the guest's own memory.
fn own(index: u64) -> u64 {
    buffer(0).0 - OWN_BASE.0 + 8 * index
}

fn rewritten_under_way(t: &Case) -> Outcome {
    let g = guest(t, 8)?;
    let at = |page: u64| TEST_BASE + PageCount(page);
    let asking = requests(&g).start(&request(&[0, 2, 4].map(|page| small(TO_PRIVATE, at(page)))))?;
    asking.expect_exit(&exit(at(0), 1, MAP_GPA_RANGE_ENCRYPTED))?;
    g.own_memory().write_u64(own(0), 0xffff << 16 | 0x7fff)?;
    g.own_memory().write_u64(own(3), small(TO_PRIVATE, at(6)))?;
    g.vcpu(0).kvm().set_hypercall_ret(0)?;
    asking.resume()?;
    grant(&g, &asking, &[2, 6].map(|page| exit(at(page), 1, MAP_GPA_RANGE_ENCRYPTED)))?;
    let answer = requests(&g).answer(asking)?;
    expect_eq("the answer", &answer.answer(), &(0, 0))?;
    expect_eq("the header", &answer.buffer(0), &(0xffff << 16 | 3))
}

fn header_race(t: &Case) -> Outcome {
    let g = guest(t, 8)?;
    let at = |page: u64| TEST_BASE + PageCount(page);
    let known = [0, 2, 4].map(|page| exit(at(page), 1, MAP_GPA_RANGE_ENCRYPTED));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for header in (0..).map(|round: u64| [2 << 16, 0xffff << 16, 2, ENTRIES << 16 | 1][round as usize % 4]) {
                if over.load(Ordering::Acquire) {
                    break;
                }
                g.own_memory().write_u64(own(0), header)?;
            }
            Ok::<_, Stop>(())
        });
        let asked = ask_while_written(&g, &request(&[0, 2, 4].map(|page| small(TO_PRIVATE, at(page)))), &known);
        over.store(true, Ordering::Release);
        writing.join().map_err(|_| Stop::Error("a thread of the row panicked".into()))??;
        asked
    })
}

fn ask_while_written(g: &Guest, request: &Page, known: &[Exit]) -> Outcome {
    for _ in 0..20 {
        let asking = requests(g).start(request)?;
        let end = loop {
            let seen = asking.exit()?;
            if !matches!(seen, Exit::Hypercall { .. }) {
                break seen;
            }
            expect_that(known.contains(&seen), || format!("{seen}, which is none of the entries"))?;
            g.vcpu(0).kvm().set_hypercall_ret(0)?;
            asking.resume()?;
        };
        asking.finish(&end)?.map_err(|fault| Stop::Fail(format!("{fault:?} in a request")))?;
        let word = |offset| g.range(1).host().read_u64(offset);
        let answer = (word(0x398)?, word(0x3a0)?);
        expect_that([(0, 0), (0, INVALID_HEADER)].contains(&answer), || format!("the answer is {answer:x?}"))?;
    }
    Ok(())
}

fn scratch_outside(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let exits = t.trace().exits();
    let ghcb = Gpa(buffer(0).0 - BUFFER);
    let places = [
        ("in another page", g.range(1).gpa(0)),
        ("before the buffer", ghcb + 0x7f8),
        ("at the start of the page", ghcb),
        ("over the end of the buffer", ghcb + 0xfec),
        ("behind the buffer", ghcb + 0xff0),
        ("in the next page", ghcb + PAGE_SIZE),
        ("at 0", Gpa(0)),
        ("at the end of all addresses", Gpa(u64::MAX)),
    ];
    for (place, gpa) in places {
        let answer = requests(&g).call(&request(&[small(TO_PRIVATE, TEST_BASE)]).with(Field::SCRATCH, gpa.0))?;
        expect_eq(&format!("the answer for a buffer {place}"), &answer.answer(), &(MALFORMED, INVALID_SCRATCH_AREA))?;
    }
    expect_no_exit_but(t, exits, places.len() as u64)
}

fn short_buffer(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    const LATE: u64 = 0xfe0;
    let at_the_end = |header: u64| {
        let words = [header, small(TO_PRIVATE, TEST_BASE)];
        let scratch = buffer(0).0 - BUFFER + LATE;
        Page::request(PAGE_STATE_CHANGE, 0, 0).with(Field::SCRATCH, scratch).with_words(LATE, &words)
    };
    expect_eq("the answer for two", &requests(&g).call(&at_the_end(1 << 16))?.answer(), &(0, INVALID_HEADER))?;
    let asking = requests(&g).start(&at_the_end(0))?;
    grant(&g, &asking, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)])?;
    expect_eq("the answer for one", &requests(&g).answer(asking)?.answer(), &(0, 0))
}
