//! Entries of 2 MiB.

use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::MAP_GPA_RANGE_ENCRYPTED;
use privet_harness::units::PageCount;

use super::{PAGE, SIZE_2M, TO_PRIVATE, TO_SHARED, exit, granted, guest, invalid, large, request};
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "psc.large_page",
            Types::SNP,
            "An entry of 2 MiB is one exit for 512 pages of 4 KiB that says that it was one of 2 MiB.",
            |t| {
                let (g, entries) = (guest(t, 1)?, [large(TO_PRIVATE, TEST_BASE, 0)]);
                let expected = exit(TEST_BASE, 512, MAP_GPA_RANGE_ENCRYPTED | SIZE_2M);
                let answer = granted(&g, &request(&entries), &[expected])?;
                expect_eq("the entry", &answer.buffer(1), &(entries[0] | 512))
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.large_page.unaligned",
            Types::SNP,
            "An entry of 2 MiB whose address is no multiple of that is invalid: no exit.",
            |t| invalid(t, &[large(TO_PRIVATE, TEST_BASE + PageCount(1), 0)]),
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.large_page.in_the_middle",
            Types::SNP,
            "An entry of 2 MiB that is done up to page 100 is an exit for the 412 others, from there on. (It still says \
             2 MiB: a VMM has to go by the number.)",
            |t| {
                let (g, entries) = (guest(t, 1)?, [large(TO_PRIVATE, TEST_BASE, 100)]);
                let expected = exit(TEST_BASE + PageCount(100), 412, MAP_GPA_RANGE_ENCRYPTED | SIZE_2M);
                granted(&g, &request(&entries), &[expected]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.large_page.in_the_middle_merges_with_none",
            Types::SNP,
            "An entry of 2 MiB that is done in part is an exit of its own, though the next one continues it.",
            |t| {
                let next = TEST_BASE + PageCount(512);
                let (g, entries) = (guest(t, 1)?, [large(TO_SHARED, TEST_BASE, 511), large(TO_SHARED, next, 0)]);
                let expected = [exit(TEST_BASE + PageCount(511), 1, SIZE_2M), exit(next, 512, SIZE_2M)];
                granted(&g, &request(&entries), &expected).map(drop)
            },
        )
        .basis(&[PAGE]),
    ]
}
