//! vCPUs: a limit always wins, and exits arrive as data.

use std::time::Duration;

use nix::errno::Errno;
use privet_harness::exit::{Direction, Exit};
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Stop;
use privet_harness::uapi::Capability;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};

use crate::{CODE, PAGES, PLENTY, host, real_mode};

const SPIN: &[u8] = b"\xEB\xFE";

#[test]
fn a_guest_that_spins_is_a_timeout_with_its_rip_and_the_vcpu_goes_on() {
    let Some(host) = host() else { return };
    let (_vm, vcpu, memory) = real_mode(&host, SPIN);
    for _ in 0..3 {
        let Err(Stop::Timeout(line)) = vcpu.run(Duration::from_millis(20)) else { panic!("the guest spins") };
        assert!(line.contains("vCPU 0") && line.contains("20ms") && line.contains("0x1000"), "{line}");
    }
    memory.write(CODE, b"\xF4").unwrap();
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt));
}

#[test]
fn a_spinning_guest_can_be_dropped() {
    let Some(host) = host() else { return };
    let (vm, vcpu, memory) = real_mode(&host, SPIN);
    vcpu.start().unwrap();
    drop((vcpu, vm));
    assert_eq!(std::sync::Arc::strong_count(&memory), 1, "the thread ended and let go of the memory");
}

#[test]
fn a_kick_interrupts_a_run_and_only_a_run() {
    let Some(host) = host() else { return };
    let (_vm, vcpu, memory) = real_mode(&host, SPIN);
    vcpu.kick().unwrap();
    for _ in 0..50 {
        vcpu.start().unwrap();
        vcpu.kick().unwrap();
        assert_eq!(vcpu.wait(PLENTY), Ok(Exit::Interrupted));
    }
    memory.write(CODE, b"\xF4").unwrap();
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt), "no kick is left over");
}

#[test]
fn port_accesses_carry_their_data_both_ways() {
    let Some(host) = host() else { return };
    // mov dx, 0x3f8; mov al, 0x41; out dx, al; in ax, dx; mov [0x2000], ax; hlt
    let code = b"\xBA\xF8\x03\xB0\x41\xEE\xED\xA3\x00\x20\xF4";
    let (_vm, vcpu, memory) = real_mode(&host, code);
    let (port, count) = (0x3F8, 1);
    let wrote = Exit::Io { port, direction: Direction::Out, size: 1, count, data: vec![0x41] };
    assert_eq!(vcpu.run(PLENTY), Ok(wrote));
    let reads = Exit::Io { port, direction: Direction::In, size: 2, count, data: vec![] };
    assert_eq!(vcpu.run(PLENTY), Ok(reads));
    vcpu.set_io_in_data(&[0x34, 0x12]).unwrap();
    vcpu.complete_pending(PLENTY).unwrap();
    assert_eq!(vcpu.kvm().unwrap().get_regs().unwrap().rax & 0xFFFF, 0x1234, "completed without running");
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt));
    assert_eq!(memory.read_u64(0x2000).unwrap(), 0x1234);
}

#[test]
fn mmio_accesses_carry_their_data_both_ways() {
    let Some(host) = host() else { return };
    // mov ax, [0x8000]; inc ax; mov [0x8002], ax; mov byte [0x8004], 7; hlt
    let code = b"\xA1\x00\x80\x40\xA3\x02\x80\xC6\x06\x04\x80\x07\xF4";
    let (_vm, vcpu, _memory) = real_mode(&host, code);
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Mmio { gpa: Gpa(0x8000), len: 2, write: None }));
    vcpu.set_mmio_data(0x1FE).unwrap();
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Mmio { gpa: Gpa(0x8002), len: 2, write: Some(0x1FF) }));
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Mmio { gpa: Gpa(0x8004), len: 1, write: Some(7) }));
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt));
}

#[test]
fn a_backing_without_access_is_efault_without_a_reason() {
    let Some(host) = host() else { return };
    // mov ax, [0x4000]; hlt
    let (vm, vcpu, _memory) = real_mode(&host, b"\xA1\x00\x40\xF4");
    let hole = std::sync::Arc::new(privet_harness::mapping::Mapping::anonymous(PAGE_SIZE).unwrap());
    hole.protect(false).unwrap();
    vm.add_slot(SlotSpec::shared(1, Gpa(PAGES.bytes()), PageCount(1), &hole)).unwrap();
    let exit = vcpu.run(PLENTY).unwrap();
    // Hardware paging faults on the load; an emulator turns the same load into an MMIO exit.
    let accepted =
        [Exit::Failed { errno: Errno::EFAULT, reason: 0 }, Exit::Mmio { gpa: Gpa(0x4000), len: 2, write: None }];
    assert!(accepted.contains(&exit), "{exit}");
}

#[test]
fn commands_out_of_order_are_refused() {
    let Some(host) = host() else { return };
    let (_vm, vcpu, _memory) = real_mode(&host, SPIN);
    assert!(matches!(vcpu.wait(PLENTY), Err(Stop::Error(_))), "nothing was started");
    vcpu.start().unwrap();
    assert!(matches!(vcpu.start(), Err(Stop::Error(_))), "started twice");
    assert!(matches!(vcpu.kvm(), Err(Stop::Error(_))), "registers of a running vCPU");
    assert_eq!(vcpu.poll(), Ok(None));
    vcpu.kick().unwrap();
    assert_eq!(vcpu.wait(PLENTY), Ok(Exit::Interrupted));
}

#[test]
fn an_ioctl_argument_that_kvm_does_not_take_is_told() {
    let Some(host) = host() else { return };
    let (vm, vcpu, _memory) = real_mode(&host, SPIN);
    assert_eq!(vcpu.ioctl_raw(privet_harness::uapi::KVM_RUN, 1).unwrap(), Err(Errno::EINVAL));
    assert_eq!(vm.ioctl_raw(privet_harness::uapi::KVM_SET_USER_MEMORY_REGION, 8), Err(Errno::EFAULT));
}

#[test]
fn a_run_that_is_refused_is_not_taken_for_the_exit_before_it() {
    let Some(host) = host() else { return };
    let (_vm, vcpu, _memory) = real_mode(&host, b"\xF4\xF4");
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt));
    let valid_regs = 288;
    vcpu.run_page().bytes().write(valid_regs, &[0xFF; 8]).unwrap();
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Refused { errno: Errno::EINVAL }));
    vcpu.run_page().bytes().write(valid_regs, &[0; 8]).unwrap();
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt));
}

#[test]
fn prefaulting_nothing_is_refused_and_leaves_the_range_as_it_was() {
    let Some(host) = host() else { return };
    let (vm, vcpu, _memory) = real_mode(&host, SPIN);
    let done = vcpu.pre_fault(Gpa(0x1000), PageCount(0)).unwrap();
    // EOPNOTSUPP without hardware paging, where the size is not even looked at; ENOTTY before Linux 6.11.
    let refused = if vm.check_extension(Capability::PRE_FAULT_MEMORY) == 1 {
        &[Errno::EINVAL][..]
    } else {
        &[Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOTTY]
    };
    assert!(done.result.is_err_and(|errno| refused.contains(&errno)), "{done:?}");
    assert_eq!((done.gpa, done.size, done.memory_fault), (Gpa(0x1000), 0, None));
}

#[test]
fn two_vcpus_run_at_once_and_the_trace_has_both() {
    let Some(host) = host() else { return };
    let (vm, first, memory) = real_mode(&host, SPIN);
    let second = vm.create_vcpu(1).unwrap();
    memory.write(0x2000, b"\xF4").unwrap();
    let sregs = first.kvm().unwrap().get_sregs().unwrap();
    let mut regs = first.kvm().unwrap().get_regs().unwrap();
    regs.rip = 0x2000;
    second.kvm().unwrap().set_sregs(&sregs).unwrap();
    second.kvm().unwrap().set_regs(&regs).unwrap();

    first.start().unwrap();
    assert_eq!(second.run(PLENTY), Ok(Exit::Hlt));
    assert_eq!(first.poll(), Ok(None));
    first.kick().unwrap();
    assert_eq!(first.wait(PLENTY), Ok(Exit::Interrupted));

    assert_eq!(host.trace().exits(), 2);
    let lines = host.trace().render(&|rip: u64| {
        let mut byte = [0; 2];
        memory.read(rip, &mut byte).map(|()| byte.to_vec()).unwrap_or_default()
    });
    // Beside them there is what the host did.
    let lines: Vec<_> = lines.into_iter().filter(|line| line.starts_with("exit ")).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("vcpu 1: HLT at rip 0x2001"), "{lines:?}");
    assert!(lines[1].contains("vcpu 0: interrupted (EINTR) at rip 0x1000 `jmp "), "{lines:?}");
}
