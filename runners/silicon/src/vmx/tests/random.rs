//! Random VMCSs, and whatever the CPU may ask while their guests run: an entry fails with an error or runs; no panic.

use privet_cpu::state::{Injection, World, gpr};
use privet_cpu::{Access, AccessKind, Call, CrAccess, Exception};
use proptest::prelude::*;

use super::*;
use crate::Pending;
use crate::test_board::MEMORY_BYTES;

/// A field, and what to put there: mostly something that has a meaning.
fn change() -> impl Strategy<Value = (Field, u64)> {
    let value = prop_oneof![
        any::<u64>(),
        any::<u8>().prop_map(u64::from),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..MEMORY_BYTES).prop_map(|pa| pa & !0xfff),
    ];
    (prop::sample::select(field::ALL.to_vec()), value)
}

/// A bit of the controls that is turned around.
fn control() -> impl Strategy<Value = (Field, u32)> {
    let fields = vec![field::PIN, field::PROC, field::PROC2, field::EXIT, field::ENTRY];
    (prop::sample::select(fields), 0..32_u32)
}

/// What happens to a processor.
#[derive(Debug, Clone)]
enum Step {
    Instruction(Intercept, u64, u64),
    Call(VmxCall),
    Exception(u8, Option<u32>),
    Access(u64, AccessKind, bool, u16),
    Event([bool; 2], Option<u8>),
    Vectoring(Injection),
    Time(u64),
    Halt,
    Shutdown,
}

fn intercept() -> impl Strategy<Value = Intercept> {
    let operands = Operands { register: 3, place: OperandPlace::Register(5) };
    prop_oneof![
        prop::sample::select(vec![
            Intercept::Cpuid,
            Intercept::Rdmsr,
            Intercept::Wrmsr,
            Intercept::Pause,
            Intercept::Hlt,
            Intercept::Rdtscp,
            Intercept::Xsaves,
            Intercept::Icebp,
            Intercept::Call(Call::Vmcall),
            Intercept::Vmx { instruction: VmxInstruction::Vmread, operands },
        ]),
        any::<u8>().prop_map(Intercept::SoftwareInterrupt),
        (any::<u8>(), any::<u64>()).prop_map(|(cr, value)| {
            let by = [CrAccess::Mov(cr), CrAccess::Clts, CrAccess::Lmsw][usize::from(cr) % 3];
            Intercept::WriteCr { cr: if by == CrAccess::Mov(cr) { cr % 9 } else { 0 }, value, by }
        }),
        (0..9_u8).prop_map(|cr| Intercept::ReadCr { cr, by: CrAccess::Mov(1) }),
        any::<u64>().prop_map(|linear| Intercept::Invlpg { linear }),
        (any::<u16>(), prop::sample::select(vec![1, 2, 4]), any::<bool>()).prop_map(|(port, size, string)| {
            let (segment, address_size) = (Seg::Ds, 4);
            let (input, rep, immediate, linear) = (string, string, !string, 0);
            Intercept::PortIo { port, size, input, string, rep, address_size, segment, immediate, linear }
        }),
    ]
}

fn call() -> impl Strategy<Value = VmxCall> {
    let pointer = prop::sample::select(vec![VMCS, VMXON_REGION, 0x3000, 1 << 50, 7]);
    prop_oneof![
        pointer.clone().prop_map(VmxCall::Vmxon),
        pointer.clone().prop_map(VmxCall::Vmclear),
        pointer.prop_map(VmxCall::Vmptrld),
        Just(VmxCall::Vmptrst),
        Just(VmxCall::Vmlaunch),
        Just(VmxCall::Vmresume),
        any::<u64>().prop_map(|field| VmxCall::Vmread { field: field & 0x7fff }),
        (any::<u64>(), any::<u128>()).prop_map(|(kind, descriptor)| VmxCall::Invept { kind: kind % 4, descriptor }),
        (any::<u64>(), any::<u128>()).prop_map(|(kind, descriptor)| VmxCall::Invvpid { kind: kind % 5, descriptor }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = vec![AccessKind::Read, AccessKind::Write, AccessKind::Fetch];
    let msr = prop_oneof![any::<u64>(), (0x800..0x840_u64), Just(0x10), Just(0xc000_0080)];
    prop_oneof![
        (intercept(), msr, any::<u64>()).prop_map(|(what, rcx, rax)| Step::Instruction(what, rcx, rax)),
        call().prop_map(Step::Call),
        (0..32_u8, any::<Option<u32>>()).prop_map(|(vector, code)| Step::Exception(vector, code)),
        (any::<u64>(), prop::sample::select(kinds), any::<bool>(), 0..0x1000_u16).prop_map(
            |(gpa, kind, walk, offset)| {
                let gpa = match gpa % 3 {
                    0 => GPA,
                    1 => APIC_ACCESS,
                    _ => gpa,
                };
                Step::Access(gpa & 0x000f_ffff_ffff_f000, kind, walk, offset)
            }
        ),
        (any::<[bool; 2]>(), any::<Option<u8>>()).prop_map(|(signals, interrupt)| Step::Event(signals, interrupt)),
        any::<u8>().prop_map(|vector| Step::Vectoring(Injection::SoftInterrupt(vector))),
        (0..1_000_000_u64).prop_map(Step::Time),
        Just(Step::Halt),
        Just(Step::Shutdown),
    ]
}

fn take(bench: &mut Bench, step: Step) {
    let in_guest = bench.vmx.in_guest();
    let Bench { vmx, state, board } = bench;
    match step {
        Step::Instruction(what, rcx, rax) => {
            (state.gpr[gpr::RCX], state.gpr[gpr::RAX]) = (rcx, rax);
            vmx.intercept(board, state, what, 3);
        }
        // The CPU asks first.
        Step::Call(call) if !in_guest => {
            vmx.vmx(board, state, call);
        }
        Step::Call(_) => {}
        Step::Exception(vector, error_code) => {
            vmx.exception(board, state, Exception { vector, error_code, payload: 1 });
        }
        Step::Access(gpa, kind, walk, offset) => {
            let (linear, size, next_rip) = (0, 0x1000, state.rip.wrapping_add(3));
            let (user, private, emulated) = (false, false, false);
            let access = Access { linear, kind, offset, size, user, walk, private, emulated, next_rip };
            vmx.translate(board, state, gpa, access);
            vmx.device_write(board, APIC_ACCESS | u64::from(offset & 0xff0), &[0x51, 0, 4, 0]);
        }
        Step::Event([init, nmi], interrupt) => {
            vmx.take_event(board, state, Pending { init, smi: false, nmi, interrupt });
        }
        Step::Vectoring(event) if in_guest => state.vectoring = Some(event),
        Step::Vectoring(_) => {}
        Step::Time(ticks) => board.tsc += ticks,
        Step::Halt => vmx.halted(),
        Step::Shutdown => {
            vmx.shutdown(board, state);
        }
    }
}

/// Where EPT and the host's own tables lie, which random pointers must not hit: the processor marks what it walks.
fn is_pointer_to_tables(field: Field) -> bool {
    field == field::EPTP
}

proptest! {
    #[test]
    fn a_vmcs_is_refused_or_runs(
        changes in prop::collection::vec(change(), 0..5),
        controls in prop::collection::vec(control(), 0..6),
        steps in prop::collection::vec(step(), 0..25),
        all_bytes in any::<Option<u8>>(),
    ) {
        let mut bench = Bench::with_ept(PAGE | 7);
        if let Some(byte) = all_bytes {
            bench.board.write(MSR_BITMAP, &[byte; 0x1000]);
            bench.board.write(VIRTUAL_APIC, &[byte; 0x1000]);
            bench.board.write(DESCRIPTOR, &[byte; 64]);
        }
        for (field, bit) in controls {
            let value = bench.get(field);
            bench.set(field, value ^ 1 << bit);
        }
        for (field, value) in changes.into_iter().filter(|(field, _)| !is_pointer_to_tables(*field)) {
            bench.set(field, value);
        }
        let host_cr3 = bench.get(field::HOST_CR3);
        let answer = bench.call(VmxCall::Vmlaunch);
        if bench.vmx.in_guest() {
            prop_assert_eq!(answer, VmxAnswer::Switched);
            prop_assert_ne!(bench.state.world, World::HOST);
        } else if answer == VmxAnswer::Switched {
            prop_assert!(bench.get(field::EXIT_REASON) & 0x8000_0000 != 0);
            prop_assert_eq!(bench.state.cr3, host_cr3);
        } else {
            prop_assert!(matches!(bench.get(field::INSTRUCTION_ERROR), 7 | 8));
        }
        for step in steps {
            take(&mut bench, step);
            prop_assert_eq!(bench.vmx.in_guest(), bench.state.world != World::HOST);
            if !bench.vmx.in_guest() {
                prop_assert_eq!(bench.state.cpl(), 0);
                prop_assert!(bench.state.code64() && bench.state.vectoring.is_none());
            }
        }
    }
}
