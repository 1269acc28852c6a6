//! KVM_RUN: exits, memory faults and conversions, with guests of a few instructions.

use nix::errno::Errno;
use privet_machine::calls;

use crate::driver::{Fd, Guest, Memory, PAGE, PRE_FAULT, PRIVATE, Region, SW_PROTECTED};

const IO: u32 = 2;
const HLT: u32 = 5;
const MMIO: u32 = 6;
const MEMORY_FAULT: u32 = 39;

/// mov al, [0x8000]; out 0x10, al; jmp 0
const LOAD_AND_TELL: &[u8] = &[0xa0, 0x00, 0x80, 0xe6, 0x10, 0xeb, 0xf9];
const DATA: u64 = 0x8000;

fn told(guest: &Guest) -> u8 {
    assert_eq!(guest.run(), Ok(IO));
    guest.run.read::<1>(PAGE as usize)[0]
}

fn with_data(guest: &Guest, memory: &Memory, file: Option<&Fd>) -> Region {
    let flags = if file.is_some() { 4 } else { 0 };
    let region = Region {
        slot: 1,
        flags,
        gpa: DATA,
        bytes: PAGE,
        hva: memory.start as u64,
        file: file.map_or(-1, |file| file.0),
        ..Region::default()
    };
    guest.vm.set_region(region).unwrap();
    region
}

#[test]
fn halt_and_port_accesses_exit() {
    let guest = Guest::new(0, &[0xe4, 0x20, 0xe6, 0x21, 0xf4]);
    assert_eq!(guest.run(), Ok(IO));
    let data_offset = guest.run.u64(40) as usize;
    assert_eq!((guest.run.read::<4>(32), guest.run.u32(36)), ([0, 1, 0x20, 0], 1));
    guest.run.write(data_offset, &[0x5a]);
    assert_eq!(guest.run(), Ok(IO));
    assert_eq!((guest.run.read::<4>(32), guest.run.read(data_offset)), ([1, 1, 0x21, 0], [0x5a]));
    assert_eq!(guest.run(), Ok(HLT));
}

#[test]
fn a_page_without_a_slot_is_mmio_until_it_has_one() {
    let guest = Guest::new(0, LOAD_AND_TELL);
    for value in [7, 8] {
        assert_eq!(guest.run(), Ok(MMIO));
        assert_eq!((guest.run.u64(32), guest.run.u32(48), guest.run.read(52)), (DATA, 1, [0]));
        guest.run.write(40, &[value]);
        assert_eq!(told(&guest), value);
    }
    let memory = Memory::new(PAGE);
    memory.write(0, &[9]);
    let region = with_data(&guest, &memory, None);
    assert_eq!(told(&guest), 9);
    guest.vm.set_region(Region { bytes: 0, ..region }).unwrap();
    assert_eq!(guest.run(), Ok(MMIO));
}

#[test]
fn private_and_shared_are_two_memories() {
    let guest = Guest::new(SW_PROTECTED, LOAD_AND_TELL);
    let memory = Memory::new(PAGE);
    memory.write(0, &[1]);
    let file = guest.vm.guest_memfd(PAGE, 0).unwrap();
    with_data(&guest, &memory, Some(&file));
    assert_eq!(told(&guest), 1);
    guest.vm.set_attributes(DATA, PAGE, PRIVATE).unwrap();
    assert_eq!(told(&guest), 0);
    guest.vm.set_attributes(DATA, PAGE, 0).unwrap();
    assert_eq!(told(&guest), 1);
    guest.vm.set_attributes(DATA, PAGE, PRIVATE).unwrap();
    drop(file);
    assert_eq!(guest.run(), Err((Errno::EFAULT, MEMORY_FAULT)), "the file is closed");
}

#[test]
fn a_private_page_without_a_file_is_a_memory_fault() {
    let guest = Guest::new(SW_PROTECTED, LOAD_AND_TELL);
    guest.vm.set_attributes(DATA, PAGE, PRIVATE).unwrap();
    let expect_fault = || {
        assert_eq!(guest.run(), Err((Errno::EFAULT, MEMORY_FAULT)));
        assert_eq!((guest.run.u64(32), guest.run.u64(40), guest.run.u64(48)), (PRIVATE, DATA, PAGE));
    };
    expect_fault();
    let memory = Memory::new(PAGE);
    with_data(&guest, &memory, None);
    expect_fault();
    guest.vm.set_attributes(DATA, PAGE, 0).unwrap();
    assert_eq!(told(&guest), 0);
}

#[test]
fn mmio_that_was_cached_outlives_a_conversion_but_not_a_new_slot_elsewhere() {
    let guest = Guest::new(SW_PROTECTED, LOAD_AND_TELL);
    assert_eq!(guest.run(), Ok(MMIO));
    guest.vm.set_attributes(DATA, PAGE, PRIVATE).unwrap();
    assert_eq!(guest.run(), Ok(IO));
    assert_eq!(guest.run(), Ok(MMIO));
    assert_eq!(guest.run(), Ok(IO));
    let memory = Memory::new(PAGE);
    let elsewhere =
        Region { slot: 2, gpa: 0x4_0000, bytes: PAGE, hva: memory.start as u64, file: -1, ..Region::default() };
    guest.vm.set_region(elsewhere).unwrap();
    assert_eq!(guest.run(), Err((Errno::EFAULT, MEMORY_FAULT)));
    assert_eq!(guest.run.u64(32), 0, "the fault counts as shared, since the entry was found by its reserved bit");
}

#[test]
fn holes_are_zero_and_stay_private() {
    let guest = Guest::new(SW_PROTECTED, &[0xa0, 0x00, 0x80, 0xe6, 0x10, 0xfe, 0xc0, 0xa2, 0x00, 0x80, 0xeb, 0xf4]);
    let memory = Memory::new(PAGE);
    memory.write(0, &[0x77]);
    let file = guest.vm.guest_memfd(PAGE, 0).unwrap();
    with_data(&guest, &memory, Some(&file));
    guest.vm.set_attributes(DATA, PAGE, PRIVATE).unwrap();
    assert_eq!([told(&guest), told(&guest), told(&guest)], [0, 1, 2]);
    let (keep_size_and_punch, page) = (3, PAGE as i64);
    calls::fallocate(file.0, keep_size_and_punch, 0, page).unwrap().unwrap();
    // The increment of the last value is still on its way when the hole is made.
    assert_eq!([told(&guest), told(&guest)], [3, 4]);
    guest.set_rip(0);
    calls::fallocate(file.0, keep_size_and_punch, 0, page).unwrap().unwrap();
    assert_eq!(told(&guest), 0);
    assert_eq!(memory.read(0), [0x77]);
}

#[test]
fn memory_that_is_not_mapped_is_efault_without_a_reason() {
    let guest = Guest::new(0, LOAD_AND_TELL);
    let gone = Memory::new(PAGE);
    with_data(&guest, &gone, None);
    assert_eq!(told(&guest), 0);
    drop(gone);
    assert_eq!(guest.run(), Err((Errno::EFAULT, 0)));
}

#[test]
fn a_run_that_shall_end_at_once_completes_what_is_pending() {
    let guest = Guest::new(0, LOAD_AND_TELL);
    assert_eq!(guest.run(), Ok(MMIO));
    guest.run.write(40, &[0x42]);
    guest.run.write(1, &[1]);
    assert_eq!(guest.run(), Err((Errno::EINTR, 0xffff)));
    let mut regs = [0u64; 18];
    guest.vcpu.ioctl(0x8090_ae81, regs.as_mut_ptr() as u64).unwrap();
    assert_eq!((regs[0] & 0xff, regs[16]), (0x42, 3), "the load is done, and nothing after it");
}

#[test]
fn prefaulting_tells_what_is_left_and_why_it_stopped() {
    let guest = Guest::new(SW_PROTECTED, LOAD_AND_TELL);
    let memory = Memory::new(PAGE);
    let file = guest.vm.guest_memfd(PAGE, 0).unwrap();
    with_data(&guest, &memory, Some(&file));
    let mut range = [DATA, 3 * PAGE, 0, 0, 0, 0, 0, 0];
    let prefault = |range: &mut [u64; 8]| guest.vcpu.ioctl(PRE_FAULT, range.as_mut_ptr() as u64);
    assert_eq!((prefault(&mut range), range[0], range[1]), (Ok(0), DATA + PAGE, 2 * PAGE));
    assert_eq!((prefault(&mut range), range[1]), (Err(Errno::ENOENT), 2 * PAGE));
    guest.vm.set_attributes(DATA + PAGE, PAGE, PRIVATE).unwrap();
    assert_eq!(prefault(&mut range), Err(Errno::EFAULT));
    for bad in [[DATA + 1, PAGE, 0], [DATA, 0, 0], [DATA, PAGE, 1], [!0xfff, 2 * PAGE, 0]] {
        let mut range = [bad[0], bad[1], bad[2], 0, 0, 0, 0, 0];
        assert_eq!(prefault(&mut range), Err(Errno::EINVAL), "{bad:x?}");
    }
}
