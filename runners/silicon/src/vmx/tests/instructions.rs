//! The instructions of VMX but for VM entries: when they may be executed, and how they fail.

use privet_cpu::{CrAccess, Exception};

use super::*;
use crate::board::Flush;

const ALL: [VmxInstruction; 11] = [
    VmxInstruction::Vmxon,
    VmxInstruction::Vmxoff,
    VmxInstruction::Vmclear,
    VmxInstruction::Vmptrld,
    VmxInstruction::Vmptrst,
    VmxInstruction::Vmread,
    VmxInstruction::Vmwrite,
    VmxInstruction::Vmlaunch,
    VmxInstruction::Vmresume,
    VmxInstruction::Invept,
    VmxInstruction::Invvpid,
];
const UD: Intercepted = Intercepted::Reflect(Exception::ud());
const GP: Intercepted = Intercepted::Reflect(Exception::gp(0));

/// Encodings.
const TSC_OFFSET: u64 = 0x2010;
const TSC_OFFSET_HIGH: u64 = 0x2011;
const EXIT_REASON: u64 = 0x4402;
const GUEST_ES: u64 = 0x0800;

#[test]
fn outside_of_vmx_operation_there_is_vmxon_only() {
    for instruction in ALL {
        let expected = if instruction == VmxInstruction::Vmxon { Intercepted::Native } else { UD };
        assert_eq!(Bench::before_vmxon().permit(instruction), expected, "{instruction:?}");
        assert_eq!(Bench::in_operation().permit(instruction), Intercepted::Native, "{instruction:?}");
    }
}

#[test]
fn they_are_for_protected_mode_and_64_bit_mode() {
    for instruction in ALL {
        for spoil in [
            |state: &mut CpuState| state.cr0 &= !cr0::PE,
            |state: &mut CpuState| state.rflags |= flags::VM,
            |state: &mut CpuState| state.segments[Seg::Cs as usize].long = false,
        ] {
            let mut bench = Bench::in_operation();
            spoil(&mut bench.state);
            assert_eq!(bench.permit(instruction), UD, "{instruction:?}");
        }
    }
}

#[test]
fn they_are_privileged() {
    for instruction in ALL {
        let mut bench = Bench::in_operation();
        bench.state.segments[Seg::Ss as usize].dpl = 3;
        assert_eq!(bench.permit(instruction), GP, "{instruction:?}");
    }
}

#[test]
fn what_the_processor_lacks_does_not_exist() {
    let mut bench = Bench::in_operation();
    bench.vmx.features = Features { ept: false, vpid: false, ..Features::current() };
    assert_eq!(bench.permit(VmxInstruction::Invept), UD);
    assert_eq!(bench.permit(VmxInstruction::Invvpid), UD);
}

#[test]
fn vmxon_minds_firmware_and_control_registers() {
    for spoil in [
        |bench: &mut Bench| bench.vmx.feature_control = 1,
        |bench: &mut Bench| bench.vmx.feature_control = 4,
        |bench: &mut Bench| bench.state.cr0 &= !cr0::NE,
    ] {
        let mut bench = Bench::before_vmxon();
        spoil(&mut bench);
        assert_eq!(bench.permit(VmxInstruction::Vmxon), GP);
    }
}

#[test]
fn vmxon_takes_a_region_of_its_revision_once() {
    for pointer in [VMXON_REGION + 8, 1 << 46, 0x3000] {
        assert_eq!(Bench::before_vmxon().failure(VmxCall::Vmxon(pointer)), Some(0), "{pointer:#x}");
    }
    let mut bench = Bench::before_vmxon();
    write_u32(&mut bench.board, VMXON_REGION, vmcs::REVISION | 1 << 31);
    assert_eq!(bench.failure(VmxCall::Vmxon(VMXON_REGION)), Some(0));
    assert_eq!(Bench::in_operation().failure(VmxCall::Vmxon(VMXON_REGION)), Some(0), "there is no VMCS for the error");
    assert_eq!(Bench::with_vmcs().failure(VmxCall::Vmxon(VMXON_REGION)), Some(15));
}

#[test]
fn vmxoff_lets_a_waiting_init_in() {
    let mut bench = Bench::in_operation();
    bench.board.event_raised = false;
    bench.succeeds(VmxCall::Vmxoff);
    assert!(bench.board.event_raised);
    assert_eq!(bench.permit(VmxInstruction::Vmread), UD);
}

#[test]
fn a_vmcs_is_a_page_and_not_the_vmxon_region() {
    for (pointer, vmclear, vmptrld) in
        [(VMCS + 1, 2, 9), (1 << 46, 2, 9), (VMXON_REGION, 3, 10), (VMCS, 0, 0), (0x3000, 0, 11)]
    {
        let some = |error| (error != 0).then_some(error);
        assert_eq!(Bench::with_vmcs().failure(VmxCall::Vmclear(pointer)), some(vmclear), "{pointer:#x}");
        assert_eq!(Bench::with_vmcs().failure(VmxCall::Vmptrld(pointer)), some(vmptrld), "{pointer:#x}");
        assert_eq!(Bench::in_operation().failure(VmxCall::Vmptrld(pointer)), some(vmptrld).map(|_| 0));
    }
}

#[test]
fn a_shadow_vmcs_is_of_another_revision() {
    let mut bench = Bench::with_vmcs();
    write_u32(&mut bench.board, 0x3000, vmcs::REVISION | 1 << 31);
    assert_eq!(bench.failure(VmxCall::Vmptrld(0x3000)), Some(11));
}

#[test]
fn the_current_vmcs_is_told_and_vmclear_lets_go_of_it() {
    let mut bench = Bench::in_operation();
    assert_eq!(bench.succeeds(VmxCall::Vmptrst), VmxAnswer::Value(u64::MAX));
    bench.succeeds(VmxCall::Vmptrld(VMCS));
    assert_eq!(bench.succeeds(VmxCall::Vmptrst), VmxAnswer::Value(VMCS));
    bench.succeeds(VmxCall::Vmclear(VMCS));
    assert_eq!(bench.succeeds(VmxCall::Vmptrst), VmxAnswer::Value(u64::MAX));
}

#[test]
fn fields_are_written_and_read_as_wide_as_they_are() {
    let mut bench = Bench::with_vmcs();
    for (field, value, read) in [
        (TSC_OFFSET, 0x1122_3344_5566_7788, 0x1122_3344_5566_7788),
        (TSC_OFFSET_HIGH, 0xffff_ffff_9900_aabb, 0x9900_aabb),
        (TSC_OFFSET, 0x99, 0x99),
        (GUEST_ES, 0x1_2345, 0x2345),
    ] {
        bench.succeeds(VmxCall::Vmwrite { field, value });
        assert_eq!(bench.succeeds(VmxCall::Vmread { field }), VmxAnswer::Value(read), "{field:#x}");
    }
    bench.succeeds(VmxCall::Vmwrite { field: TSC_OFFSET_HIGH, value: 1 });
    assert_eq!(bench.succeeds(VmxCall::Vmread { field: TSC_OFFSET }), VmxAnswer::Value(0x1_0000_0099));
}

#[test]
fn fields_that_are_not_there_or_read_only() {
    let mut bench = Bench::with_vmcs();
    for field in [0x2018, 0x4003, 1 << 32 | TSC_OFFSET] {
        assert_eq!(bench.failure(VmxCall::Vmread { field }), Some(12), "{field:#x}");
        assert_eq!(bench.failure(VmxCall::Vmwrite { field, value: 0 }), Some(12), "{field:#x}");
    }
    assert_eq!(bench.failure(VmxCall::Vmwrite { field: EXIT_REASON, value: 0 }), Some(13));
    assert_eq!(Bench::in_operation().failure(VmxCall::Vmread { field: 0x2018 }), Some(0));
    assert_eq!(Bench::in_operation().failure(VmxCall::Vmwrite { field: TSC_OFFSET, value: 0 }), Some(0));
}

#[test]
fn invvpid_knows_four_types() {
    let descriptor = |vpid: u128, linear: u128| vpid | linear << 64;
    for (kind, descriptor, error) in [
        (0, descriptor(1, 0x1000), None),
        (0, descriptor(0, 0x1000), Some(28)),
        (0, descriptor(1, 1 << 60), Some(28)),
        (1, descriptor(1, 1 << 60), None),
        (1, descriptor(0, 0), Some(28)),
        (2, descriptor(0, 0), None),
        (3, descriptor(1, 0), None),
        (3, descriptor(0, 0), Some(28)),
        (4, descriptor(1, 0), Some(28)),
        (1, descriptor(1 << 16 | 1, 0), Some(28)),
    ] {
        let failure = Bench::with_vmcs().failure(VmxCall::Invvpid { kind, descriptor });
        assert_eq!(failure, error, "type {kind}, descriptor {descriptor:#x}");
    }
}

#[test]
fn what_is_invalidated_is_what_is_tagged_so() {
    let mut bench = Bench::with_vmcs();
    let first = bench.vmx.worlds.of(1, Some(0x5000));
    let second = bench.vmx.worlds.of(2, Some(0x5000));
    let third = bench.vmx.worlds.of(2, Some(0x6000));
    bench.succeeds(VmxCall::Invvpid { kind: 0, descriptor: 2 | 0x1000 << 64 });
    assert_eq!(bench.board.flushed, [Flush::Page(second, 0x1000), Flush::Page(third, 0x1000)]);
    bench.board.flushed.clear();
    bench.succeeds(VmxCall::Invvpid { kind: 1, descriptor: 1 });
    assert_eq!(bench.board.flushed, [Flush::World(first)]);
    bench.board.flushed.clear();
    bench.succeeds(VmxCall::Invept { kind: 2, descriptor: 0 });
    assert_eq!(bench.board.flushed, [Flush::World(second), Flush::World(third)]);
}

#[test]
fn control_registers_keep_what_vmx_operation_needs() {
    let write = |cr, value| Intercept::WriteCr { cr, value, by: CrAccess::Mov(0) };
    for (what, allowed) in [
        (write(0, cr0::PE | cr0::PG | cr0::NE), true),
        (write(0, cr0::PE | cr0::PG), false),
        (write(0, cr0::PE | cr0::NE), false),
        (write(4, cr4::PAE | cr4::VMXE), true),
        (write(4, cr4::PAE), false),
        (write(3, 0), true),
    ] {
        let expected = if allowed { Intercepted::Native } else { GP };
        let mut bench = Bench::in_operation();
        assert_eq!(bench.vmx.intercept(&mut bench.board, &mut bench.state, what, 3), expected, "{what:x?}");
        let mut bench = Bench::before_vmxon();
        assert_eq!(bench.vmx.intercept(&mut bench.board, &mut bench.state, what, 3), Intercepted::Native);
    }
}
