//! Slots: KVM's refusals keep their numbers, and no guest gets memory that nobody holds on to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};
use nix::errno::Errno;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::{Memslot, SlotSpec};
use privet_harness::outcome::Stop;
use privet_harness::uapi::{MEM_READONLY, USER_MEM_SLOTS};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

use crate::{PAGES, host, real_mode};

#[test]
fn a_slot_holds_on_to_its_mapping_until_it_is_deleted() {
    let Some(host) = host() else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let memory = Arc::new(Mapping::anonymous(2 * PAGE_SIZE).unwrap());
    let gpa = Gpa(0x10_0000);
    let spec = SlotSpec { mapping_offset: PAGE_SIZE, ..SlotSpec::shared(3, gpa, PageCount(1), &memory) };
    assert_eq!(vm.add_slot(spec.clone()), Ok(Memslot { slot: 3, gpa, pages: PageCount(1) }));
    drop(spec);
    assert_eq!(Arc::strong_count(&memory), 2);
    vm.delete_slot(3).unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    let Err(Stop::Fail(line)) = vm.delete_slot(3) else { panic!("there is no slot 3") };
    assert_eq!(line, "deleting slot 3: EINVAL");
}

#[test]
fn a_slot_larger_than_its_mapping_is_an_error_of_the_row() {
    let Some(host) = host() else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let memory = Arc::new(Mapping::anonymous(PAGE_SIZE).unwrap());
    let Err(Stop::Error(line)) = vm.add_slot(SlotSpec::shared(0, Gpa(0), PageCount(2), &memory)) else {
        panic!("the mapping has one page")
    };
    assert!(line.contains("slot 0 of 2 pages"), "{line}");
}

#[test]
fn refusals_have_their_numbers() {
    let Some(host) = host() else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let memory = Arc::new(Mapping::anonymous(2 * PAGE_SIZE).unwrap());
    let good = SlotSpec::shared(0, Gpa(0), PageCount(2), &memory).region();
    let set = |region: kvm_userspace_memory_region2| vm.set_user_memory_region2_raw(&region, Some(&memory));
    assert_eq!(set(kvm_userspace_memory_region2 { slot: USER_MEM_SLOTS, ..good }), Err(Errno::EINVAL));
    assert_eq!(set(kvm_userspace_memory_region2 { guest_phys_addr: 1, ..good }), Err(Errno::EINVAL));
    assert_eq!(
        set(kvm_userspace_memory_region2 { userspace_addr: good.userspace_addr + 1, ..good }),
        Err(Errno::EINVAL)
    );
    assert_eq!(set(kvm_userspace_memory_region2 { flags: 1 << 31, ..good }), Err(Errno::EINVAL));
    assert_eq!(set(good), Ok(()));
    let overlapping = kvm_userspace_memory_region2 { slot: 1, guest_phys_addr: PAGE_SIZE, ..good };
    assert_eq!(set(overlapping), Err(Errno::EEXIST));
    assert_eq!(set(kvm_userspace_memory_region2 { flags: MEM_READONLY, ..good }), Err(Errno::EINVAL));
    let version_1 = kvm_userspace_memory_region { slot: 2, flags: 4, memory_size: PAGE_SIZE, ..Default::default() };
    assert_eq!(vm.set_user_memory_region_raw(&version_1, None), Err(Errno::EINVAL));
    assert_eq!(Arc::strong_count(&memory), 2, "one slot, one reference");
}

#[test]
fn a_vm_with_a_slot_over_unknown_memory_gets_no_vcpu_until_it_is_gone() {
    let Some(host) = host() else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    let region = kvm_userspace_memory_region2 {
        slot: 5,
        memory_size: PAGE_SIZE,
        userspace_addr: 0x7000_0000_0000,
        ..Default::default()
    };
    assert_eq!(vm.set_user_memory_region2_raw(&region, None), Ok(()));
    let Err(Stop::Error(line)) = vm.create_vcpu(0) else { panic!("its guest would write anywhere") };
    assert!(line.contains("slot 5") && line.contains("0x700000000000"), "{line}");
    vm.delete_slot(5).unwrap();
    vm.create_vcpu(0).unwrap();
    let refused = catch_unwind(AssertUnwindSafe(|| vm.set_user_memory_region2_raw(&region, None)));
    assert!(refused.is_err(), "now that there is a vCPU the row may not do this");
}

#[test]
fn a_slot_appears_and_disappears_under_a_running_guest() {
    let Some(host) = host() else { return };
    // inc byte [0x4000]; jmp back
    let (vm, vcpu, _memory) = real_mode(&host, b"\xFE\x06\x00\x40\xEB\xFA");
    let spare = Arc::new(Mapping::anonymous(PAGE_SIZE).unwrap());
    let spec = SlotSpec::shared(1, Gpa(PAGES.bytes()), PageCount(1), &spare);
    vm.add_slot(spec.clone()).unwrap();
    vcpu.start().unwrap();
    while spare.read_u64(0).unwrap() == 0 {
        std::thread::yield_now();
    }
    vm.delete_slot(1).unwrap();
    let exit = vcpu.wait(crate::PLENTY).unwrap();
    assert!(matches!(exit, privet_harness::exit::Exit::Mmio { gpa: Gpa(0x4000), len: 1, .. }), "{exit}");
}
