//! Where the entries are: the header, and a buffer that has to lie in the GHCB.

use privet_harness::case::Case;
use privet_harness::ghcb::{Field, Page, buffer};
use privet_harness::outcome::Outcome;
use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::MAP_GPA_RANGE_ENCRYPTED;
use privet_harness::units::{Gpa, PAGE_SIZE};

use super::{
    BUFFER, ENTRIES, INVALID_HEADER, PAGE, PAGE_STATE_CHANGE, TO_PRIVATE, exit, grant, guest, request, requests, small,
    with_header,
};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_SCRATCH_AREA, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const SCRATCH: &str = "arch/x86/kvm/svm/sev.c: setup_vmgexit_scratch";
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
    ]
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
