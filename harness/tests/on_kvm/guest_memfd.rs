//! guest_memfd of a plain VM, where this kernel has the flags MMAP and INIT_SHARED.

use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use privet_harness::guest_memfd::{FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE};
use privet_harness::host::Host;
use privet_harness::mapping::MapOptions;
use privet_harness::memslot::SlotSpec;
use privet_harness::uapi::{Capability, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

const SHARED: u64 = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

fn host_with_flags(flags: u64) -> Option<Host> {
    let host = crate::host()?;
    let has = host.capability(VmType::Plain, Capability::GUEST_MEMFD_FLAGS).unwrap() as u64;
    if has & flags != flags {
        crate::skip(&format!("guest_memfd has only the flags {has:#x} on kernel {}", host.kernel()));
        return None;
    }
    Some(host)
}

#[test]
fn a_shared_file_is_zero_keeps_writes_and_loses_them_to_a_hole() {
    let Some(host) = host_with_flags(SHARED) else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let gmem = vm.create_guest_memfd(4 * PAGE_SIZE, SHARED).unwrap();
    assert_eq!(gmem.fstat().unwrap().st_size as u64, gmem.size());
    let view = gmem.mmap(0, gmem.size(), MapOptions::new().shared()).unwrap();
    assert_eq!(view.first_other_than(0, gmem.size(), 0).unwrap(), None);
    view.fill(0, gmem.size(), 0xA5).unwrap();
    gmem.punch(PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    assert_eq!(view.first_other_than(0, PAGE_SIZE, 0xA5).unwrap(), None);
    assert_eq!(view.first_other_than(PAGE_SIZE, 2 * PAGE_SIZE, 0).unwrap(), None);
    assert_eq!(view.first_other_than(3 * PAGE_SIZE, PAGE_SIZE, 0xA5).unwrap(), None);
}

#[test]
fn a_file_outlives_its_vm() {
    let Some(host) = host_with_flags(SHARED) else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let gmem = vm.create_guest_memfd(PAGE_SIZE, SHARED).unwrap();
    let view = gmem.mmap(0, PAGE_SIZE, MapOptions::new().shared()).unwrap();
    view.write_u64(0, 1).unwrap();
    drop(vm);
    assert_eq!(view.read_u64(0).unwrap(), 1);
    gmem.punch(0, PAGE_SIZE).unwrap();
    assert_eq!(view.read_u64(0).unwrap(), 0);
}

#[test]
fn private_pages_and_pages_past_the_end_are_sigbus() {
    let Some(host) = host_with_flags(SHARED) else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let private = vm.create_guest_memfd(PAGE_SIZE, GUEST_MEMFD_FLAG_MMAP).unwrap();
    let shared = vm.create_guest_memfd(PAGE_SIZE, SHARED).unwrap();
    let of_private = private.mmap(0, PAGE_SIZE, MapOptions::new().shared()).unwrap();
    let beyond = shared.mmap(0, 2 * PAGE_SIZE, MapOptions::new().shared()).unwrap();
    for (mapping, offset) in [(&of_private, 0), (&beyond, PAGE_SIZE)] {
        let mut byte = [0];
        let fault = mapping.try_read(offset, &mut byte).unwrap_err().fault().unwrap();
        assert_eq!((fault.signal, fault.address as u64), (Signal::SIGBUS, mapping.addr() + offset));
        assert_eq!(mapping.try_write(offset, &byte).unwrap_err().fault(), Some(fault));
    }
    beyond.try_write(0, &[1]).unwrap();
}

#[test]
fn refusals_have_their_numbers() {
    let Some(host) = host_with_flags(SHARED) else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let create = |size, flags| vm.create_guest_memfd_raw(size, flags).map(drop);
    assert_eq!(create(0, 0), Err(Errno::EINVAL));
    assert_eq!(create(PAGE_SIZE + 1, 0), Err(Errno::EINVAL));
    assert_eq!(create(PAGE_SIZE, 1 << 63), Err(Errno::EINVAL));
    let gmem = vm.create_guest_memfd(PAGE_SIZE, SHARED).unwrap();
    assert_eq!(gmem.mmap(0, PAGE_SIZE, MapOptions::new()).map(drop), Err(Errno::EINVAL), "copy on write");
    assert_eq!(gmem.fallocate_raw(0, 0, PAGE_SIZE), Err(Errno::EOPNOTSUPP));
    assert_eq!(gmem.fallocate_raw(FALLOC_KEEP_SIZE, PAGE_SIZE, PAGE_SIZE), Err(Errno::EINVAL));
    assert_eq!(gmem.fallocate_raw(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 1, PAGE_SIZE), Err(Errno::EINVAL));
    gmem.allocate(0, PAGE_SIZE).unwrap();
    let unmappable = vm.create_guest_memfd(PAGE_SIZE, 0).unwrap();
    assert_eq!(unmappable.mmap(0, PAGE_SIZE, MapOptions::new().shared()).map(drop), Err(Errno::ENODEV));
}

#[test]
fn a_slot_does_not_keep_its_file_open() {
    let Some(host) = host_with_flags(SHARED) else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let gmem = vm.create_guest_memfd(2 * PAGE_SIZE, SHARED).unwrap();
    let view = Arc::new(gmem.mmap(0, 2 * PAGE_SIZE, MapOptions::new().shared()).unwrap());
    let spec = SlotSpec::shared(0, Gpa(0x10_0000), PageCount(2), &view).with_gmem(&gmem, 0);
    vm.add_slot(spec).unwrap();
    assert_eq!(Arc::strong_count(&gmem), 1);
    assert_eq!(Arc::strong_count(&view), 2);
}
