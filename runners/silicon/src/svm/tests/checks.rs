//! One test for each consistency check: a VMCB that is right but for this.

use super::*;
use crate::svm::exit::INVALID;

/// The change of the VMCB makes VMRUN fail, without it VMRUN succeeds.
fn refused(change: impl FnOnce(&mut Bench)) {
    Bench::new().enter();
    let mut bench = Bench::new();
    change(&mut bench);
    assert_eq!(bench.vmrun(), Intercepted::Switched);
    assert_eq!(bench.exit_code(), INVALID);
    assert!(!bench.svm.in_guest());
    assert!(!bench.svm.gif(), "as after any exit");
    assert_eq!(bench.state.rip, HOST_RIP + 3);
    assert_eq!(bench.state.cr3, 0xa000);
}

fn accepted(change: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::new();
    change(&mut bench);
    bench.enter();
}

#[test]
fn svme_clear() {
    refused(|bench| bench.guest(0xd0, efer::LME | efer::LMA));
}

#[test]
fn not_writethrough_without_cache_disable() {
    let base = cr0::PE | cr0::PG;
    refused(|bench| bench.guest(0x158, base | cr0::NW));
    accepted(|bench| bench.guest(0x158, base | cr0::NW | cr0::CD));
}

#[test]
fn high_cr0() {
    refused(|bench| bench.guest(0x158, cr0::PE | cr0::PG | 1 << 32));
}

#[test]
fn reserved_cr3() {
    refused(|bench| bench.guest(0x150, 1 << 48));
    accepted(|bench| bench.guest(0x150, 1 << 47));
}

#[test]
fn reserved_cr4() {
    refused(|bench| bench.guest(0x148, cr4::PAE | 1 << 15));
    refused(|bench| bench.guest(0x148, cr4::PAE | 1 << 63));
}

#[test]
fn high_dr6_and_dr7() {
    refused(|bench| bench.guest(0x168, 1 << 32));
    refused(|bench| bench.guest(0x160, 1 << 32));
}

#[test]
fn reserved_efer() {
    refused(|bench| bench.guest(0xd0, efer::SVME | efer::LME | 1 << 1));
}

#[test]
fn long_mode_without_pae() {
    refused(|bench| bench.guest(0x148, 0));
    accepted(|bench| {
        bench.guest(0xd0, efer::SVME);
        bench.guest(0x148, 0);
    });
}

#[test]
fn long_mode_without_protection() {
    refused(|bench| bench.guest(0x158, cr0::PG));
    accepted(|bench| {
        bench.guest(0xd0, efer::SVME);
        bench.guest(0x158, cr0::PG);
    });
}

#[test]
fn code_segment_both_long_and_32_bit() {
    refused(|bench| bench.board.write(VMCB + SAVE + 0x12, &0xe9b_u16.to_le_bytes()));
}

#[test]
fn vmrun_not_intercepted() {
    refused(|bench| bench.pass(Code::VMRUN));
}

#[test]
fn maps_beyond_memory() {
    refused(|bench| bench.set(0x40, (1 << 48) - 0x2000));
    accepted(|bench| bench.set(0x40, (1 << 48) - 0x3000));
    refused(|bench| bench.set(0x48, (1 << 48) - 0x1000));
    accepted(|bench| bench.set(0x48, (1 << 48) - 0x2000 + 0xfff));
    refused(|bench| bench.set(0x48, u64::MAX));
}

#[test]
fn illegal_events() {
    const VALID: u64 = 1 << 31;
    for kind in [1, 5, 6, 7] {
        refused(|bench| bench.set(0xa8, VALID | kind << 8 | 0x20));
        accepted(|bench| bench.set(0xa8, kind << 8 | 0x20));
    }
    for kind in [0, 4] {
        accepted(|bench| bench.set(0xa8, VALID | kind << 8 | 0x20));
    }
    accepted(|bench| bench.set(0xa8, VALID | 2 << 8 | 2));
    for vector in [2, 9, 15, 31, 32, 255] {
        refused(|bench| bench.set(0xa8, VALID | 3 << 8 | vector));
    }
    for vector in [0, 1, 3, 4, 6, 8, 10, 13, 14, 16, 19] {
        accepted(|bench| bench.set(0xa8, VALID | 3 << 8 | vector));
    }
}

#[test]
fn illegal_asids() {
    refused(|bench| write_u32(&mut bench.board, VMCB + 0x58, 0));
    refused(|bench| write_u32(&mut bench.board, VMCB + 0x58, 0x8000));
    accepted(|bench| write_u32(&mut bench.board, VMCB + 0x58, 0x7fff));
}

#[test]
fn nested_paging_without_host_paging() {
    refused(|bench| {
        bench.set(0x90, 1);
        bench.state.cr0 &= !cr0::PG;
        bench.state.efer &= !efer::LMA;
        // A host that cannot read RAX of 64 bits.
        bench.state.rip = HOST_RIP;
        bench.state.segments[Seg::Cs as usize].long = true;
        bench.state.efer |= efer::LMA;
    });
}

#[test]
fn illegal_nested_root() {
    refused(|bench| {
        bench.set(0x90, 1);
        bench.set(0xb0, 1 << 48);
    });
    refused(|bench| {
        bench.set(0x90, 1);
        bench.guest(0x268, 2);
    });
    accepted(|bench| {
        bench.set(0xb0, 1 << 48);
        bench.guest(0x268, 2);
    });
}
