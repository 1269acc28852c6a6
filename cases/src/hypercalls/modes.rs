//! Hypercalls from elsewhere than 64-bit ring 0, made by a few instructions without a payload.

use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_sregs};
use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::{Direction, Exit};
use privet_harness::long_mode;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::uapi::{HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vcpu::Vcpu;

use super::opcode;
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

const HYPERCALL: &str = "arch/x86/kvm/x86.c: ____kvm_emulate_hypercall, complete_hypercall_exit";

/// The memory of the guest, from GPA 0 on: a page table of each level, and its code.
const PML4: u64 = 0;
const PDPT: u64 = PAGE_SIZE;
const PD: u64 = 2 * PAGE_SIZE;
const CODE: u64 = 3 * PAGE_SIZE;
const END: u64 = 4 * PAGE_SIZE;

/// The port by which the guest says that it is through.
const DONE_PORT: u8 = 0x10;

/// RFLAGS: the bit that is always set, and ports are for ring 3 too.
const USER_IO: u64 = 1 << 1 | 3 << 12;
const CR0_PG: u64 = 1 << 31;
/// What is no 64-bit argument's.
const HIGH: u64 = 0x5a5a_a5a5 << 32;

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "hypercalls.of_user_mode",
            Types::UNENCRYPTED,
            "A hypercall of ring 3 is -KVM_EPERM: it never reaches userspace, whatever it asks for.",
            of_user_mode,
        ),
        Row::new(
            "hypercalls.in_32_bit_mode",
            Types::UNENCRYPTED,
            "Outside of 64-bit mode a hypercall reaches userspace without the flag for it and with the low 32 bits \
             of its arguments, and the low 32 bits of the answer are RAX.",
            in_32_bit_mode,
        ),
    ];
    rows.into_iter().map(|row| row.basis(&[HYPERCALL])).collect()
}

/// A vCPU that is about to make a hypercall with these registers, in 64-bit ring 0 but for what `change` does.
fn vcpu(t: &Case, regs: kvm_regs, change: impl FnOnce(&mut kvm_sregs)) -> Outcome<Vcpu> {
    let memory = Arc::new(Mapping::anonymous(END)?);
    let (for_all, large) = (0b111, 1 << 7);
    memory.write_u64(PML4, PDPT | for_all)?;
    memory.write_u64(PDPT, PD | for_all)?;
    memory.write_u64(PD, for_all | large)?;
    memory.write(CODE, &opcode(t.host().hypercall_instruction()))?;
    memory.write(CODE + 3, &[0xe6, DONE_PORT])?;
    let vm = t.vm()?;
    vm.enable_map_gpa_range_exit()?;
    vm.add_slot(SlotSpec::shared(0, Gpa(0), PageCount::of_bytes(END), &memory))?;
    let vcpu = vm.create_vcpu(0)?;
    long_mode::enter(&vcpu, t.host().supported_cpuid()?, Gpa(PML4), &kvm_regs { rip: CODE, ..regs })?;
    let mut sregs = vcpu.kvm()?.get_sregs().map_err(|error| Stop::Fail(format!("KVM_GET_SREGS: {error}")))?;
    change(&mut sregs);
    vcpu.kvm()?.set_sregs(&sregs).map_err(|error| Stop::Fail(format!("KVM_SET_SREGS: {error}")))?;
    Ok(vcpu)
}

/// Runs the guest, which must be through at its next exit. Its RAX.
fn finish(t: &Case, vcpu: &Vcpu) -> Outcome<u64> {
    let exit = vcpu.run(t.limit())?;
    let is_done = matches!(exit, Exit::Io { port, direction: Direction::Out, .. } if port == DONE_PORT.into());
    expect_eq(&format!("whether {exit} says that the guest is through"), &is_done, &true)?;
    vcpu.kvm()?.get_regs().map(|regs| regs.rax).map_err(|error| Stop::Error(format!("KVM_GET_REGS: {error}")))
}

/// -KVM_EPERM, as the guest sees it.
const MINUS_EPERM: u64 = -1_i64 as u64;

fn of_user_mode(t: &Case) -> Outcome {
    for rax in [HC_MAP_GPA_RANGE, 0, u64::MAX] {
        let regs = kvm_regs { rax, rcx: 1, rdx: MAP_GPA_RANGE_ENCRYPTED, rflags: USER_IO, ..Default::default() };
        let vcpu = vcpu(t, regs, |sregs| {
            for segment in [&mut sregs.cs, &mut sregs.ss] {
                segment.dpl = 3;
                segment.selector |= 3;
            }
        })?;
        expect_eq(&format!("RAX after hypercall {rax:#x} of ring 3"), &finish(t, &vcpu)?, &MINUS_EPERM)?;
    }
    Ok(())
}

fn in_32_bit_mode(t: &Case) -> Outcome {
    let (rax, rbx) = (HC_MAP_GPA_RANGE | HIGH, 0x8000_0000 | HIGH);
    let (rcx, rdx) = (7 | HIGH, MAP_GPA_RANGE_ENCRYPTED | HIGH);
    let vcpu = vcpu(t, kvm_regs { rax, rbx, rcx, rdx, rflags: 1 << 1, ..Default::default() }, |sregs| {
        (sregs.efer, sregs.cr4) = (0, 0);
        sregs.cr0 &= !CR0_PG;
        (sregs.cs.l, sregs.cs.db) = (0, 1);
    })?;
    let args = [0x8000_0000, 7, MAP_GPA_RANGE_ENCRYPTED];
    let expected = Exit::Hypercall { nr: HC_MAP_GPA_RANGE, args, flags: 0 };
    expect_eq("the exit", &vcpu.run(t.limit())?, &expected)?;
    vcpu.set_hypercall_ret(Errno::EAGAIN as u64 | HIGH)?;
    expect_eq("RAX after the hypercall", &finish(t, &vcpu)?, &(Errno::EAGAIN as u64))
}
