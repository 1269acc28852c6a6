//! Memslots and attributes: what is refused, and with what.

use nix::errno::Errno;

use crate::driver::{Fd, Memory, PAGE, PRIVATE, Region, SW_PROTECTED};

const FILE: u32 = 4;

#[test]
fn slots_are_refused_as_the_kernel_refuses_them() {
    let vm = Fd::vm(SW_PROTECTED);
    let memory = Memory::new(4 * PAGE);
    let file = vm.guest_memfd(4 * PAGE, 0).unwrap();
    let good = Region {
        slot: 1,
        flags: FILE,
        gpa: 0x10000,
        bytes: 2 * PAGE,
        hva: memory.start as u64,
        offset: 0,
        file: file.0,
        ..Region::default()
    };
    let kvm = Fd::kvm();
    let rows: &[(&str, Region, Errno)] = &[
        ("unaligned size", Region { bytes: PAGE + 1, ..good }, Errno::EINVAL),
        ("unaligned gpa", Region { gpa: 1, ..good }, Errno::EINVAL),
        ("unaligned hva", Region { hva: good.hva + 1, ..good }, Errno::EINVAL),
        ("kernel's hva", Region { hva: 1 << 63, ..good }, Errno::EINVAL),
        ("unaligned offset", Region { offset: 1, ..good }, Errno::EINVAL),
        ("wrapping offset", Region { offset: !0xfff, ..good }, Errno::EINVAL),
        ("wrapping gpa", Region { gpa: !0xfff, ..good }, Errno::EINVAL),
        ("second address space", Region { slot: 1 << 16, ..good }, Errno::EINVAL),
        ("KVM's own slots", Region { slot: 32764, ..good }, Errno::EINVAL),
        ("unknown flag", Region { flags: 8, ..good }, Errno::EINVAL),
        ("logged file", Region { flags: FILE | 1, ..good }, Errno::EINVAL),
        ("read-only file", Region { flags: FILE | 2, ..good }, Errno::EINVAL),
        ("delete of nothing", Region { bytes: 0, ..good }, Errno::EINVAL),
        ("nothing behind the descriptor", Region { file: 9999, ..good }, Errno::EBADF),
        ("no descriptor", Region { file: -1, ..good }, Errno::EBADF),
        ("another kind of descriptor", Region { file: kvm.0, ..good }, Errno::EINVAL),
        ("standard error", Region { file: 2, ..good }, Errno::EINVAL),
        ("beyond the file", Region { offset: 3 * PAGE, ..good }, Errno::EINVAL),
        ("signed offset", Region { offset: i64::MAX as u64 & !0xfff, ..good }, Errno::EINVAL),
        ("beyond the CPU", Region { gpa: 1 << 50, ..good }, Errno::EINVAL),
        ("more pages than a bitmap", Region { flags: 0, bytes: 1 << 43, ..good }, Errno::EINVAL),
    ];
    for (what, region, errno) in rows {
        assert_eq!(vm.set_region(*region), Err(*errno), "{what}");
    }
    let other = Fd::vm(SW_PROTECTED);
    assert_eq!(other.set_region(good), Err(Errno::EINVAL), "another VM's file");
    vm.set_region(good).unwrap();
    for (what, region, errno) in [
        ("the same again", good, Errno::EINVAL),
        ("without its flag", Region { flags: 0, ..good }, Errno::EINVAL),
        ("overlap", Region { slot: 2, gpa: good.gpa + PAGE, offset: 2 * PAGE, ..good }, Errno::EEXIST),
        ("file range bound twice", Region { slot: 2, gpa: 0x20000, offset: PAGE, ..good }, Errno::EEXIST),
    ] {
        assert_eq!(vm.set_region(region), Err(errno), "{what}");
    }
    vm.set_region(Region { bytes: 0, ..good }).unwrap();
    vm.set_region(Region { slot: 2, gpa: 0x20000, offset: PAGE, ..good }).unwrap();
}

#[test]
fn attributes_are_refused_as_the_kernel_refuses_them() {
    let vm = Fd::vm(SW_PROTECTED);
    for (what, address, bytes, attributes) in [
        ("size 0", 0, 0, PRIVATE),
        ("unaligned size", 0, 1, PRIVATE),
        ("unaligned address", 1, PAGE, PRIVATE),
        ("wrap", !0xfff, 2 * PAGE, PRIVATE),
        ("unknown attribute", 0, PAGE, 1),
    ] {
        assert_eq!(vm.set_attributes(address, bytes, attributes), Err(Errno::EINVAL), "{what}");
    }
    assert_eq!(vm.set_attributes(0, !0xfff, PRIVATE), Ok(0), "all that there is");
    let plain = Fd::vm(0);
    assert_eq!(plain.set_attributes(0, PAGE, PRIVATE), Err(Errno::EINVAL));
    assert_eq!(plain.set_attributes(0, PAGE, 0), Ok(0));
}
