//! What VM entry loads, and what VM exit stores and loads.

use privet_cpu::state::{World, gpr};
use privet_cpu::{MemoryOperand, Segment};

use super::*;
use crate::board::Flush;
use crate::memory::read_u64;

#[test]
fn the_guest_gets_its_registers_and_keeps_the_others() {
    let mut bench = Bench::ready();
    bench.set(field::GUEST_RFLAGS, 0x246);
    bench.set(field::GUEST_CS, 0x30);
    bench.set(field::GUEST_SYSENTER_EIP, 0x1234);
    bench.set(field::IDTR_LIMIT, 0xfff);
    bench.set(field::FS_BASE, 0x7000_0000);
    bench.state.gpr[gpr::RBX] = 0xbb;
    bench.enter();
    let state = &bench.state;
    assert_eq!((state.rip, state.gpr[gpr::RSP], state.rflags, state.cr3), (GUEST_RIP, 0x7000, 0x246, 0x9000));
    assert_eq!((state.efer, state.cpl(), state.code64()), (efer::LME | efer::LMA, 0, true));
    assert_eq!((state.segment(Seg::Cs).selector, state.segment(Seg::Fs).base), (0x30, 0x7000_0000));
    assert_eq!((state.sysenter_eip, state.idtr.limit, state.gpr[gpr::RBX]), (0x1234, 0xfff, 0xbb));
    assert_ne!(state.world, World::HOST);
}

#[test]
fn an_exit_stores_what_the_guest_has_changed_and_loads_the_host() {
    let mut bench = Bench::ready();
    bench.set(field::HOST_GS_BASE, 0xffff_8000_0000_0000);
    bench.set(field::HOST_DS, 0);
    bench.add(field::EXIT, exit::SAVE_DEBUG | exit::SAVE_PAT | exit::SAVE_EFER);
    bench.enter();
    bench.state.rip = GUEST_RIP + 5;
    bench.state.gpr[gpr::RSP] = 0x6ff8;
    bench.state.gpr[gpr::RAX] = 0xaa;
    bench.state.cr2 = 0x77;
    bench.state.dr7 = 0x455;
    bench.state.pat = 0x0606;
    bench.state.shadow = Shadow::Sti;
    bench.state.segments[Seg::Gs as usize] = Segment::null(3);
    assert_eq!(bench.instruction(Intercept::Cpuid), Intercepted::Switched);
    assert_eq!(bench.exit(), [10, 0, 3]);
    for (field, value) in [
        (field::GUEST_RIP, GUEST_RIP + 5),
        (field::GUEST_RSP, 0x6ff8),
        (field::GUEST_DR7, 0x455),
        (field::GUEST_PAT, 0x0606),
        (field::GUEST_EFER, efer::LME | efer::LMA),
        (field::INTERRUPTIBILITY, 1),
        (field::ACTIVITY, 0),
        (field::GUEST_GS, 3),
        (field::GS_RIGHTS, 1 << 16),
        (field::CS_RIGHTS, 0xa09b),
        (field::TR_RIGHTS, 0x8b),
    ] {
        assert_eq!(bench.get(field), value, "{field:?}");
    }
    let state = &bench.state;
    assert_eq!((state.cr3, state.rflags, state.dr7, state.shadow), (0xa000, 2, 0x400, Shadow::None));
    assert_eq!((state.gpr[gpr::RSP], state.gpr[gpr::RAX], state.cr2), (0xffff_8000_0000_8000, 0xaa, 0x77));
    assert_eq!(state.segment(Seg::Gs).base, 0xffff_8000_0000_0000);
    assert!(state.segment(Seg::Ds).unusable && state.code64() && state.world == World::HOST);
    assert_eq!((state.tr.limit, state.gdtr.limit, state.idtr.limit), (0x67, 0xffff, 0xffff));
    assert!(state.ldtr.unusable);
}

#[test]
fn ia_32e_mode_follows_the_guest() {
    let mut bench = Bench::ready();
    bench.enter();
    bench.state.efer &= !efer::LMA;
    bench.instruction(Intercept::Cpuid);
    let entry_controls = bench.get(field::ENTRY) as u32;
    assert_eq!(entry_controls & entry::IA32E, 0);
}

#[test]
fn guests_are_told_apart_by_vpid_and_ept() {
    let world = |vpid: u64, pointer: u64| {
        let mut bench = Bench::with_ept(PAGE | 7);
        bench.vmx.worlds.of(1, Some(EPT));
        bench.vmx.worlds.of(2, Some(EPT));
        bench.add(field::PROC2, proc2::VPID);
        bench.set(field::VPID, vpid);
        bench.set(field::EPTP, pointer | 0x1e);
        bench.enter();
        assert_eq!(bench.board.flushed, [], "with a VPID an entry drops nothing");
        bench.state.world
    };
    assert_eq!([world(1, EPT), world(2, EPT), world(1, EPT + 0x8000)], [World(1), World(2), World(3)]);
}

#[test]
fn without_a_vpid_no_translation_survives() {
    let mut bench = Bench::ready();
    bench.enter();
    assert_eq!(bench.board.flushed, [Flush::World(bench.state.world)]);
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.board.flushed.last(), Some(&Flush::All));
}

#[test]
fn lists_of_msrs_are_loaded_and_stored() {
    let mut bench = Bench::ready();
    const KERNEL_GS_BASE: u64 = 0xc000_0102;
    const LSTAR: u64 = 0xc000_0082;
    for (at, index, value) in
        [(0, KERNEL_GS_BASE, 0x11), (0x100, KERNEL_GS_BASE, 0), (0x110, LSTAR, 0), (0x200, LSTAR, 0x33)]
    {
        write_u64(&mut bench.board, MSR_LIST + at, index);
        write_u64(&mut bench.board, MSR_LIST + at + 8, value);
    }
    for (list, count, at, entries) in [
        (field::ENTRY_MSR_LOAD, field::ENTRY_MSR_LOAD_COUNT, 0, 1),
        (field::EXIT_MSR_STORE, field::EXIT_MSR_STORE_COUNT, 0x100, 2),
        (field::EXIT_MSR_LOAD, field::EXIT_MSR_LOAD_COUNT, 0x200, 1),
    ] {
        bench.set(list, MSR_LIST + at);
        bench.set(count, entries);
    }
    bench.enter();
    assert_eq!(bench.state.kernel_gs_base, 0x11);
    bench.state.lstar = 0x22;
    bench.instruction(Intercept::Cpuid);
    let stored = [0x108, 0x118].map(|at| read_u64(&mut bench.board, MSR_LIST + at));
    assert_eq!((stored, bench.state.lstar), ([0x11, 0x22], 0x33));
}

#[test]
fn the_guests_time_is_scaled_and_moved() {
    let mut bench = Bench::ready();
    bench.set(field::TSC_OFFSET, 100);
    bench.enter();
    assert_eq!(bench.vmx.tsc(1000), 1000, "the control is off");
    let mut bench = Bench::ready();
    bench.set(field::TSC_OFFSET, 100);
    bench.add(field::PROC, proc::TSC_OFFSET);
    bench.add(field::PROC2, proc2::TSC_SCALING);
    bench.set(field::TSC_MULTIPLIER, 3 << 47);
    bench.enter();
    assert_eq!(bench.vmx.tsc(1000), 1600);
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.vmx.tsc(1000), 1000);
}

#[test]
fn instructions_of_vmx_exit_with_their_operands() {
    let memory = OperandPlace::Memory(MemoryOperand {
        base: Some(3),
        index: Some(1),
        scale: 2,
        displacement: 0x20,
        address_size: 8,
        segment: Seg::Ds,
    });
    for (instruction, reason) in [
        (VmxInstruction::Vmclear, 19),
        (VmxInstruction::Vmlaunch, 20),
        (VmxInstruction::Vmptrld, 21),
        (VmxInstruction::Vmptrst, 22),
        (VmxInstruction::Vmread, 23),
        (VmxInstruction::Vmresume, 24),
        (VmxInstruction::Vmwrite, 25),
        (VmxInstruction::Vmxoff, 26),
        (VmxInstruction::Vmxon, 27),
        (VmxInstruction::Invept, 50),
        (VmxInstruction::Invvpid, 53),
    ] {
        let mut bench = Bench::ready();
        bench.enter();
        bench.state.segments[Seg::Ss as usize].dpl = 3;
        let operands = Operands { register: 9, place: memory };
        assert_eq!(bench.instruction(Intercept::Vmx { instruction, operands }), Intercepted::Switched);
        assert_eq!(bench.exit(), [reason, 0x20, 3], "whatever the CPL: {instruction:?}");
        assert_eq!(bench.get(field::INSTRUCTION_INFORMATION), 9 << 28 | 3 << 23 | 1 << 18 | 3 << 15 | 2 << 7 | 2);
    }
}

/// What is a KeyID in the host is an address in a guest with EPT.
#[test]
fn guest_physical_addresses_have_no_keyid() {
    let entered = |ept: bool, cr3: u64| {
        let mut bench = Bench::with_ept(PAGE | 7);
        bench.vmx.features.keyid_bits = 6;
        bench.state.keyid_bits = 6;
        bench.set(field::GUEST_CR3, cr3);
        if !ept {
            bench.set(field::PROC2, 0);
        }
        bench.call(VmxCall::Vmlaunch);
        let in_guest = bench.vmx.in_guest().then_some(bench.state.keyid_bits);
        bench.instruction(Intercept::Cpuid);
        assert_eq!(bench.state.keyid_bits, 6);
        in_guest
    };
    assert_eq!([entered(true, 1 << 45), entered(false, 0x9000), entered(false, 1 << 45)], [Some(0), Some(6), None]);
}
