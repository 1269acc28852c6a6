//! The entries of one request: which are one exit together, which are none, and how far each is done.

use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::MAP_GPA_RANGE_ENCRYPTED;
use privet_harness::units::{Gpa, PageCount};

use super::{
    ENTRIES, INVALID_ENTRY, PAGE, ROTH, SIZE_2M, TO_PRIVATE, TO_SHARED, exit, grant, granted, guest, invalid, large,
    request, requests, small,
};
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

/// Splits a page of 2 MiB; KVM does that by itself.
const SMASH: u64 = 3;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "psc.one_page",
            Types::SNP,
            "A request with one entry of 4 KiB is one exit; the entry is marked as done, the header is behind it.",
            one_page,
        )
        .basis(&[PAGE, ROTH]),
        Row::new(
            "psc.beyond_the_entry",
            Types::SNP,
            "An entry that is done up to a page that it does not have is invalid: no exit.",
            |t| {
                invalid(t, &[large(TO_PRIVATE, TEST_BASE, 513)])?;
                invalid(t, &[small(TO_PRIVATE, TEST_BASE) | 2])
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.invalid_after_good",
            Types::SNP,
            "Entries before an invalid one are done, and the header is at the invalid one.",
            |t| {
                let (g, odd) = (guest(t, 1)?, large(TO_PRIVATE, TEST_BASE + PageCount(1), 0));
                let entries = [small(TO_PRIVATE, TEST_BASE), odd];
                let asking = requests(&g).start(&request(&entries))?;
                grant(&g, &asking, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)])?;
                let answer = requests(&g).answer(asking)?;
                expect_eq("the answer", &answer.answer(), &(0, INVALID_ENTRY))?;
                expect_eq("the entry that the header is at", &(answer.buffer(0) & 0xffff), &1)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.done_entries_are_skipped",
            Types::SNP,
            "Entries that are done already are no exit, whatever their size; the header goes on over them.",
            |t| {
                let done = [small(TO_PRIVATE, TEST_BASE) | 1, large(TO_PRIVATE, TEST_BASE, 512)];
                let (g, entries) = (guest(t, 1)?, [done[0], done[1], small(TO_SHARED, TEST_BASE)]);
                granted(&g, &request(&entries), &[exit(TEST_BASE, 1, 0)]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.adjacent_entries_merge",
            Types::SNP,
            "Entries of one operation and size that continue each other are one exit, for all of them.",
            |t| {
                let g = guest(t, 1)?;
                let entries = run(TO_PRIVATE, TEST_BASE, 8);
                granted(&g, &request(&entries), &[exit(TEST_BASE, 8, MAP_GPA_RANGE_ENCRYPTED)])?;
                let large = [0, 1, 2].map(|index| large(TO_SHARED, TEST_BASE + PageCount(512 * index), 0));
                granted(&g, &request(&large), &[exit(TEST_BASE, 3 * 512, SIZE_2M)]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new("psc.full_buffer", Types::SNP, "253 entries are what the buffer has room for: one exit.", |t| {
            let (g, entries) = (guest(t, 1)?, run(TO_PRIVATE, TEST_BASE, ENTRIES));
            granted(&g, &request(&entries), &[exit(TEST_BASE, ENTRIES, MAP_GPA_RANGE_ENCRYPTED)]).map(drop)
        })
        .basis(&[PAGE]),
        Row::new(
            "psc.what_does_not_merge",
            Types::SNP,
            "Another operation, a gap, an address below, another size: each is an exit of its own, in order.",
            what_does_not_merge,
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.unknown_operation_is_skipped",
            Types::SNP,
            "Operations that KVM does not know count as done, without an exit.",
            |t| {
                let g = guest(t, 1)?;
                let entries =
                    [small(SMASH, TEST_BASE), small(TO_SHARED, TEST_BASE), small(0, TEST_BASE), small(15, TEST_BASE)];
                granted(&g, &request(&entries), &[exit(TEST_BASE, 1, 0)]).map(drop)
            },
        )
        .basis(&[PAGE]),
    ]
}

/// Entries of 4 KiB that continue each other.
fn run(operation: u64, gpa: Gpa, pages: u64) -> Vec<u64> {
    (0..pages).map(|page| small(operation, gpa + PageCount(page))).collect()
}

fn one_page(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    for (operation, attributes) in [(TO_PRIVATE, MAP_GPA_RANGE_ENCRYPTED), (TO_SHARED, 0)] {
        let entry = small(operation, TEST_BASE);
        let answer = granted(&g, &request(&[entry]), &[exit(TEST_BASE, 1, attributes)])?;
        expect_eq("the entry", &answer.buffer(1), &(entry | 1))?;
    }
    Ok(())
}

fn what_does_not_merge(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let page = |index: u64| TEST_BASE + PageCount(index);
    let entries = [
        small(TO_PRIVATE, page(0)),
        small(TO_SHARED, page(1)),
        small(TO_SHARED, page(3)),
        small(TO_SHARED, page(2)),
        small(TO_SHARED, page(511)),
        large(TO_SHARED, page(512), 0),
        small(TO_SHARED, page(1024)),
    ];
    let expected = [
        exit(page(0), 1, MAP_GPA_RANGE_ENCRYPTED),
        exit(page(1), 1, 0),
        exit(page(3), 1, 0),
        exit(page(2), 1, 0),
        exit(page(511), 1, 0),
        exit(page(512), 512, SIZE_2M),
        exit(page(1024), 1, 0),
    ];
    granted(&g, &request(&entries), &expected).map(drop)
}
