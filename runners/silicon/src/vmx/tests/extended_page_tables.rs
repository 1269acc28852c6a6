//! EPT: translations, and each bit of a violation's qualification.

use privet_cpu::{Access, AccessKind};

use super::*;
use crate::Translation;
use crate::encryption::Key;
use crate::memory::read_u64;

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const LARGE: u64 = 0x80;
const A: u64 = 0x100;
const D: u64 = 0x200;
/// EPT pointer with accessed and dirty flags.
const MARKING: u64 = EPT | 0x5e;
const VIOLATION: u64 = 48;
const MISCONFIGURATION: u64 = 49;
const LINEAR: u64 = 0x180;

fn access(kind: AccessKind, walk: bool) -> Access {
    Access {
        linear: 0x7f_1123,
        kind,
        offset: 0x123,
        size: 0x1000,
        user: false,
        walk,
        private: false,
        emulated: false,
        next_rip: if walk { 0 } else { GUEST_RIP + 4 },
    }
}

fn translate(bench: &mut Bench, gpa: u64, access: Access) -> Translation {
    bench.vmx.translate(&mut bench.board, &mut bench.state, gpa, access)
}

/// The page that an access gets to, or reason and qualification of the exit.
fn outcome(leaf: u64, pointer: u64, access: Access) -> Result<u64, [u64; 2]> {
    let mut bench = Bench::with_ept(leaf);
    bench.set(field::EPTP, pointer);
    bench.enter();
    match translate(&mut bench, GPA, access) {
        Translation::Page { page, key: Key::PLAIN } => Ok(page),
        Translation::Switched => {
            assert_eq!(bench.get(field::GUEST_PHYSICAL_ADDRESS), GPA | 0x123);
            assert_eq!(bench.get(field::GUEST_LINEAR_ADDRESS), 0x7f_1123);
            assert_eq!(bench.get(field::INSTRUCTION_LENGTH), if access.walk { 0 } else { 4 });
            let [reason, qualification, _] = bench.exit();
            Err([reason, qualification])
        }
        other => panic!("{other:?}"),
    }
}

const READ: AccessKind = AccessKind::Read;
const WRITE: AccessKind = AccessKind::Write;
const FETCH: AccessKind = AccessKind::Fetch;

#[test]
fn the_host_and_guests_without_ept_have_physical_addresses() {
    let mut bench = Bench::ready();
    let there = Translation::Page { page: GPA, key: Key::PLAIN };
    assert_eq!(translate(&mut bench, GPA, access(WRITE, false)), there);
    bench.enter();
    assert_eq!(translate(&mut bench, GPA, access(WRITE, false)), there);
}

#[test]
fn rights_are_those_of_all_levels() {
    let pointer = EPT | 0x1e;
    for (leaf, kind, expected) in [
        (PAGE | R | W | X, READ, Ok(PAGE)),
        (PAGE | R | W | X, WRITE, Ok(PAGE)),
        (PAGE | R | W | X, FETCH, Ok(PAGE)),
        (PAGE | R, READ, Ok(PAGE)),
        (PAGE | X, FETCH, Ok(PAGE)),
        (PAGE | R, WRITE, Err([VIOLATION, W | R << 3 | LINEAR])),
        (PAGE | R | W, FETCH, Err([VIOLATION, X | (R | W) << 3 | LINEAR])),
        (PAGE | X, READ, Err([VIOLATION, R | X << 3 | LINEAR])),
        (0, READ, Err([VIOLATION, R | LINEAR])),
        // Bit 10 is the user's right to execute, and of no meaning here.
        (1 << 10, WRITE, Err([VIOLATION, W | LINEAR])),
    ] {
        assert_eq!(outcome(leaf, pointer, access(kind, false)), expected, "{leaf:#x} {kind:?}");
    }
    let mut bench = Bench::with_ept(PAGE | R | W | X);
    let above = EPT + 0x2000 + (GPA >> 21 & 0x1ff) * 8;
    write_u64(&mut bench.board, above, (EPT + 0x3000) | R);
    bench.enter();
    translate(&mut bench, GPA, access(WRITE, false));
    assert_eq!(bench.exit()[1], W | R << 3 | LINEAR, "a level above says no");
}

#[test]
fn walks_of_the_guests_own_tables_are_told() {
    assert_eq!(outcome(0, EPT | 0x1e, access(READ, true)), Err([VIOLATION, R | 0x80]));
    assert_eq!(outcome(PAGE | R, EPT | 0x1e, access(READ, true)), Ok(PAGE));
    assert_eq!(outcome(PAGE | R, MARKING, access(READ, true)), Err([VIOLATION, R | W | R << 3 | 0x80]));
}

/// Section 30.3.3.1.
#[test]
fn entries_that_mean_nothing_are_misconfigurations() {
    for leaf in [
        PAGE | W,
        PAGE | W | X,
        PAGE | R | 1 << 46,
        PAGE | R | 2 << 3,
        PAGE | R | 3 << 3,
        PAGE | R | 7 << 3,
        1 << 51 | W | X,
    ] {
        assert_eq!(outcome(leaf, EPT | 0x1e, access(READ, false)), Err([MISCONFIGURATION, 0]), "{leaf:#x}");
    }
    for (level, entry) in [(4, 8), (4, LARGE), (3, 0x40), (2, 8), (2, LARGE | PAGE | 0x1000)] {
        let mut bench = Bench::with_ept(PAGE | R | W | X);
        let table = EPT + 0x1000 * (4 - level);
        let at = table + (GPA >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
        write_u64(&mut bench.board, at, (table + 0x1000) | 7 | entry);
        bench.enter();
        translate(&mut bench, GPA, access(READ, false));
        assert_eq!(bench.exit()[..2], [MISCONFIGURATION, 0], "level {level}, {entry:#x}");
    }
}

#[test]
fn execute_only_pages_and_pages_of_1_gib_are_features() {
    let mut bench = Bench::with_ept(PAGE | X);
    bench.vmx.features.ept_execute_only = false;
    bench.enter();
    translate(&mut bench, GPA, access(FETCH, false));
    assert_eq!(bench.exit()[0], MISCONFIGURATION);
    for (has, expected) in [(true, None), (false, Some(MISCONFIGURATION))] {
        let mut bench = Bench::with_ept(0);
        bench.vmx.features.ept_1g = has;
        write_u64(&mut bench.board, EPT + 0x1000 + (GPA >> 30 & 0x1ff) * 8, 0x1_4000_0000 | LARGE | R);
        bench.enter();
        let translated = translate(&mut bench, GPA, access(READ, false));
        let page = 0x1_4000_0000 | GPA & 0x3fff_ffff;
        assert_eq!(translated == Translation::Page { page, key: Key::PLAIN }, has);
        assert_eq!((!bench.vmx.in_guest()).then(|| bench.exit()[0]), expected);
    }
}

#[test]
fn pages_of_2_mib_keep_the_offset() {
    let mut bench = Bench::with_ept(0);
    write_u64(&mut bench.board, EPT + 0x2000 + (GPA >> 21 & 0x1ff) * 8, 0x4020_0000 | LARGE | R);
    bench.enter();
    let page = 0x4020_0000 | GPA & 0x1f_ffff;
    assert_eq!(translate(&mut bench, GPA, access(READ, false)), Translation::Page { page, key: Key::PLAIN });
}

fn leaf(bench: &mut Bench) -> u64 {
    read_u64(&mut bench.board, EPT + 0x3000 + (GPA >> 12 & 0x1ff) * 8)
}

#[test]
fn accessed_and_dirty_flags_if_the_pointer_says_so() {
    for (pointer, kind, walk, marks) in [
        (EPT | 0x1e, WRITE, false, 0),
        (MARKING, READ, false, A),
        (MARKING, FETCH, false, A),
        (MARKING, WRITE, false, A | D),
        (MARKING, READ, true, A | D),
    ] {
        let mut bench = Bench::with_ept(PAGE | R | W | X);
        bench.set(field::EPTP, pointer);
        bench.enter();
        translate(&mut bench, GPA, access(kind, walk));
        assert_eq!(leaf(&mut bench) & (A | D), marks, "{pointer:#x} {kind:?} {walk}");
        let root = read_u64(&mut bench.board, EPT + (GPA >> 39 & 0x1ff) * 8);
        assert_eq!(root & (A | D), marks & A);
    }
}

#[test]
fn pages_that_become_dirty_are_logged_until_the_log_is_full() {
    let mut bench = Bench::with_ept(PAGE | R | W);
    bench.set(field::EPTP, MARKING);
    bench.add(field::PROC2, proc2::PML);
    bench.set(field::PML_INDEX, 0);
    bench.enter();
    translate(&mut bench, GPA, access(READ, false));
    assert_eq!(read_u64(&mut bench.board, LOG), 0, "a read makes nothing dirty");
    translate(&mut bench, GPA, access(WRITE, false));
    translate(&mut bench, GPA, access(WRITE, false));
    assert_eq!(read_u64(&mut bench.board, LOG), GPA, "once");
    let at = EPT + 0x3000 + (GPA >> 12 & 0x1ff) * 8;
    write_u64(&mut bench.board, at, PAGE | R | W);
    assert_eq!(translate(&mut bench, GPA, access(WRITE, false)), Translation::Switched);
    assert_eq!((bench.exit()[0], bench.get(field::PML_INDEX)), (62, 0xffff));
    assert_eq!(leaf(&mut bench) & D, 0);
}
