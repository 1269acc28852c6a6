//! Nested paging: translations, and each bit of a nested page fault's error code.

use privet_cpu::{Access, AccessKind};

use super::*;
use crate::Translation;
use crate::encryption::Key;

const ROOT: u64 = 0x10_0000;
const PAGE: u64 = 0x14_0000;
const GPA: u64 = 0x7654_3000;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const NX: u64 = 1 << 63;
const FINAL: u64 = 1 << 32;
const TABLE: u64 = 1 << 33;

fn access(kind: AccessKind, walk: bool) -> Access {
    Access {
        linear: 0,
        kind,
        offset: 0x123,
        size: 0x1000,
        user: false,
        walk,
        private: false,
        emulated: false,
        next_rip: 0,
    }
}

/// Maps `GPA` with these bits in the last entry, and enters the guest.
fn mapped(leaf: u64) -> Bench {
    let mut bench = Bench::new();
    bench.set(0x90, 1);
    bench.set(0xb0, ROOT);
    for (level, table) in (1..=4).rev().zip([ROOT, ROOT + 0x1000, ROOT + 0x2000, ROOT + 0x3000]) {
        let at = table + (GPA >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
        let entry = if level == 1 { leaf } else { (table + 0x1000) | P | W | U };
        write_u64(&mut bench.board, at, entry);
    }
    bench.enter();
    bench
}

fn leaf(bench: &mut Bench) -> u64 {
    read_u64(&mut bench.board, ROOT + 0x3000 + (GPA >> 12 & 0x1ff) * 8)
}

fn translate(bench: &mut Bench, access: Access) -> Translation {
    bench.svm.translate(&mut bench.board, &mut bench.state, GPA, access)
}

/// An access to this page, which nothing encrypts.
fn plain(page: u64) -> Translation {
    Translation::Page { page, key: Key::PLAIN }
}

/// The access ends in a nested page fault with this EXITINFO1.
fn faults(bench: &mut Bench, access: Access, error: u64) {
    assert_eq!(translate(bench, access), Translation::Switched);
    assert_eq!(bench.exit(), [0x400, error, GPA + 0x123, 0]);
}

#[test]
fn without_nested_paging_addresses_are_the_systems() {
    let mut bench = Bench::new();
    assert_eq!(translate(&mut bench, access(AccessKind::Read, false)), plain(GPA));
    bench.enter();
    assert_eq!(translate(&mut bench, access(AccessKind::Write, false)), plain(GPA));
}

#[test]
fn reads_set_accessed_and_writes_dirty() {
    let mut bench = mapped(PAGE | P | W | U);
    assert_eq!(translate(&mut bench, access(AccessKind::Read, false)), plain(PAGE));
    assert_eq!(leaf(&mut bench), PAGE | P | W | U | A);
    assert_eq!(translate(&mut bench, access(AccessKind::Write, false)), plain(PAGE));
    assert_eq!(leaf(&mut bench), PAGE | P | W | U | A | D);
}

#[test]
fn not_present() {
    faults(&mut mapped(0), access(AccessKind::Read, false), FINAL | U);
    faults(&mut mapped(0), access(AccessKind::Write, false), FINAL | U | W);
    faults(&mut mapped(0), access(AccessKind::Fetch, false), FINAL | U | 0x10);
}

#[test]
fn write_protected_whatever_the_host_says() {
    let mut bench = mapped(PAGE | P | U);
    assert_eq!(translate(&mut bench, access(AccessKind::Read, false)), plain(PAGE));
    faults(&mut bench, access(AccessKind::Write, false), FINAL | P | W | U);
}

#[test]
fn every_access_is_a_users() {
    faults(&mut mapped(PAGE | P | W), access(AccessKind::Read, false), FINAL | P | U);
}

#[test]
fn reserved_bits() {
    faults(&mut mapped(PAGE | P | W | U | 1 << 51), access(AccessKind::Read, false), FINAL | P | U | 8);
    faults(&mut mapped(PAGE | P | W | U | 1 << 48), access(AccessKind::Write, false), FINAL | P | W | U | 8);
}

#[test]
fn no_execute_is_the_hosts_to_enable() {
    faults(&mut mapped(PAGE | P | W | U | NX), access(AccessKind::Fetch, false), FINAL | P | U | 0x10);
    let mut bench = mapped(PAGE | P | W | U | NX);
    assert_eq!(translate(&mut bench, access(AccessKind::Read, false)), plain(PAGE));
    let mut bench = Bench::new();
    bench.state.efer &= !efer::NXE;
    let guest = mapped(PAGE | P | W | U | NX);
    bench.board = guest.board;
    bench.enter();
    faults(&mut bench, access(AccessKind::Read, false), FINAL | P | U | 8);
}

#[test]
fn the_guests_tables_are_written() {
    let mut bench = mapped(PAGE | P | W | U);
    assert_eq!(translate(&mut bench, access(AccessKind::Read, true)), plain(PAGE));
    assert_eq!(leaf(&mut bench), PAGE | P | W | U | A | D);
    faults(&mut mapped(PAGE | P | U), access(AccessKind::Read, true), TABLE | P | W | U);
    faults(&mut mapped(0), access(AccessKind::Read, true), TABLE | W | U);
}

#[test]
fn five_levels_with_the_hosts_la57() {
    let mut bench = mapped(PAGE | P | W | U);
    let board = std::mem::replace(&mut bench.board, TestBoard::new());
    let mut bench = Bench { board, ..Bench::new() };
    bench.state.cr4 |= cr4::LA57;
    bench.set(0xb0, 0x18_0000);
    write_u64(&mut bench.board, 0x18_0000, ROOT | P | W | U);
    bench.enter();
    assert_eq!(translate(&mut bench, access(AccessKind::Read, false)), plain(PAGE));
}

#[test]
fn instruction_bytes_go_with_a_fault_on_data() {
    let mut bench = Bench::new();
    bench.set(0x90, 1);
    bench.set(0xb0, ROOT);
    bench.guest(0xd0, efer::SVME);
    bench.guest(0x158, cr0::PE);
    bench.guest(0x178, 0x5ff8);
    // 1 GiB of identity, but for the second page of code.
    write_u64(&mut bench.board, ROOT, (ROOT + 0x1000) | P | W | U);
    write_u64(&mut bench.board, ROOT + 0x1000, (ROOT + 0x2000) | P | W | U);
    write_u64(&mut bench.board, ROOT + 0x2000, (ROOT + 0x3000) | P | W | U);
    for page in 0..6 {
        write_u64(&mut bench.board, ROOT + 0x3000 + page * 8, page << 12 | P | W | U);
    }
    let code: Vec<u8> = (1..=15).collect();
    bench.board.write(0x5ff8, &code);
    bench.enter();
    faults(&mut bench, access(AccessKind::Write, false), FINAL | W | U);
    let stored: [u8; 16] = crate::memory::read_array(&mut bench.board, VMCB + 0xd0);
    assert_eq!(stored, [8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0], "as many as can be fetched");

    write_u64(&mut bench.board, ROOT + 0x3000 + 6 * 8, 6 << 12 | P | U);
    bench.enter();
    faults(&mut bench, access(AccessKind::Write, false), FINAL | W | U);
    let stored: [u8; 16] = crate::memory::read_array(&mut bench.board, VMCB + 0xd0);
    assert_eq!(stored[0], 15);
    assert_eq!(stored[1..], code);

    bench.enter();
    faults(&mut bench, access(AccessKind::Fetch, false), FINAL | U | 0x10);
    let length: [u8; 1] = crate::memory::read_array(&mut bench.board, VMCB + 0xd0);
    assert_eq!(length, [0], "none for a fetch");
}
