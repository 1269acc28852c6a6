//! Random VMCBs, and whatever the CPU may ask while their guests run: no panic, no state out of bounds.

use privet_cpu::state::{Injection, World};
use privet_cpu::{Access, AccessKind, CrAccess, Exception};
use proptest::prelude::*;

use super::encrypted::{KEY, PAGE, VMSA};
use super::*;
use crate::KeyedMemory;
use crate::Pending;
use crate::rmp::{self, PageSize};
use crate::svm::exit::INVALID;
use board::MEMORY_BYTES;

/// A field of a VMCB and what to put there.
fn field() -> impl Strategy<Value = (u64, u64)> {
    let control = (0..0x1a_u64).prop_map(|word| word * 8);
    let save = (0..0x4e_u64).prop_map(|word| SAVE + word * 8);
    let value = prop_oneof![
        any::<u64>(),
        any::<u8>().prop_map(u64::from),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..MEMORY_BYTES).prop_map(|pa| pa & !0xfff),
    ];
    (prop_oneof![control, save], value)
}

fn intercept() -> impl Strategy<Value = Intercept> {
    prop_oneof![
        Just(Intercept::Cpuid),
        Just(Intercept::Rdmsr),
        Just(Intercept::Wrmsr),
        Just(Intercept::Pause),
        Just(Intercept::Hlt),
        any::<u8>().prop_map(Intercept::SoftwareInterrupt),
        (any::<u8>(), any::<u64>()).prop_map(|(cr, value)| Intercept::WriteCr { cr, value, by: CrAccess::Mov(cr) }),
        any::<u8>().prop_map(|dr| Intercept::ReadDr { dr, register: dr }),
        any::<u64>().prop_map(|linear| Intercept::Invlpg { linear }),
        prop::sample::select(vec![Call::Vmrun, Call::Vmload, Call::Vmsave, Call::Stgi, Call::Clgi, Call::Invlpga])
            .prop_map(Intercept::Call),
        (any::<u16>(), prop::sample::select(vec![1, 2, 4]), any::<bool>()).prop_map(|(port, size, string)| {
            let (segment, linear) = (Seg::Ds, 0);
            let (rep, immediate, address_size) = (false, false, 4);
            Intercept::PortIo { port, size, input: string, string, rep, address_size, segment, immediate, linear }
        }),
    ]
}

const NESTED_CR3: u64 = 0xb0;

/// What happens to a processor.
#[derive(Debug, Clone)]
enum Step {
    Instruction(Intercept),
    Exception(u8, Option<u32>),
    Access(u64, AccessKind, bool),
    /// RAX, RCX, RDX.
    Call(Call, [u64; 3]),
    /// VMGEXIT with this in the MSR.
    Ghcb(u64),
    Event(Pending),
    Vectoring(u8),
    Shutdown,
}

const SNP_CALLS: [Call; 6] =
    [Call::Pvalidate, Call::Rmpadjust, Call::Rmpquery, Call::Rmpupdate, Call::Rmpread, Call::Psmash];

/// Mostly something that has a meaning.
fn register() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..4_u64, (0..0x20_u64).prop_map(|flags| flags << 12 | 0xf00 | flags & 3)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        intercept().prop_map(Step::Instruction),
        (0..32_u8, any::<Option<u32>>()).prop_map(|(vector, code)| Step::Exception(vector, code)),
        (
            any::<u64>(),
            prop::sample::select(vec![AccessKind::Read, AccessKind::Write, AccessKind::Fetch]),
            any::<bool>()
        )
            .prop_map(|(gpa, kind, walk)| Step::Access(gpa & 0x000f_ffff_ffff_f000, kind, walk)),
        (prop::sample::select(SNP_CALLS.to_vec()), any::<u8>(), register(), register())
            .prop_map(|(call, gpa, rcx, rdx)| Step::Call(call, [u64::from(gpa) << 12, rcx, rdx])),
        register().prop_map(Step::Ghcb),
        (any::<[bool; 3]>(), any::<Option<u8>>()).prop_map(|([init, smi, nmi], interrupt)| Step::Event(Pending {
            init,
            smi,
            nmi,
            interrupt
        })),
        any::<u8>().prop_map(Step::Vectoring),
        Just(Step::Shutdown),
    ]
}

fn take(bench: &mut Bench, step: Step) {
    let Bench { svm, state, board } = bench;
    match step {
        Step::Instruction(what) => {
            svm.intercept(board, state, what, 3);
        }
        Step::Exception(vector, error_code) => {
            svm.exception(board, state, Exception { vector, error_code, payload: 1 });
        }
        Step::Access(gpa, kind, walk) => {
            let access = Access {
                linear: 0,
                kind,
                offset: 8,
                size: 0x1000,
                user: false,
                walk,
                private: false,
                emulated: false,
                next_rip: 0,
            };
            svm.translate(board, state, gpa, access);
        }
        Step::Call(call, registers) => {
            [state.gpr[gpr::RAX], state.gpr[gpr::RCX], state.gpr[gpr::RDX]] = registers;
            svm.intercept(board, state, Intercept::Call(call), 4);
        }
        Step::Ghcb(value) => {
            let _ = svm.wrmsr(0xc001_0130, value);
            svm.intercept(board, state, Intercept::Call(Call::Vmgexit), 3);
        }
        Step::Event(pending) => {
            svm.take_event(board, state, pending);
        }
        Step::Vectoring(vector) => state.vectoring = Some(Injection::Interrupt(vector)),
        Step::Shutdown => {
            svm.shutdown(board, state);
        }
    }
}

proptest! {
    /// Whatever a guest has written into its VMSA, and whatever the host says of it in the VMCB.
    #[test]
    fn a_vmsa_is_refused_or_runs_and_tells_the_host_nothing(
        words in prop::collection::vec((0..0x200_u64, any::<u64>()), 0..8),
        fields in prop::collection::vec(field(), 0..3),
        steps in prop::collection::vec(step(), 0..20),
        snp in any::<bool>(),
    ) {
        let mut bench = if snp { encrypted::snp() } else { encrypted::sev_es() };
        for (word, value) in words {
            bench.board.write_as(KEY, VMSA + word * 8, &value.to_le_bytes());
        }
        // Other nested tables could lie anywhere, and the processor marks what it walks.
        for (at, value) in fields.into_iter().filter(|(at, _)| *at != NESTED_CR3) {
            bench.set(at, value);
        }
        let secret = 0x5ec2_e75e_c2e7_5ec2_u64;
        let host = bench.state.cr3;
        prop_assert!(matches!(bench.vmrun(), Intercepted::Switched | Intercepted::Reflect(_)));
        for step in steps {
            let hidden = bench.svm.in_guest() && bench.svm.rdmsr(0xc001_0131).is_some_and(|status| status & 2 != 0);
            if hidden {
                bench.state.gpr[gpr::RBX] = secret;
            }
            bench.state.gpr[gpr::RAX] = VMCB;
            take(&mut bench, step);
            if hidden && !bench.svm.in_guest() {
                prop_assert!(!bench.state.gpr.contains(&secret));
            }
            if !bench.svm.in_guest() {
                prop_assert_eq!(bench.state.cr3, host);
            }
            if let Some(table) = bench.board.rmp {
                let runs = bench.svm.in_guest();
                prop_assert!(runs || !encrypted::entry(&mut bench, VMSA).in_use);
                for page in [VMSA, PAGE] {
                    let owned = encrypted::entry(&mut bench, page).state.owned().is_some();
                    let writable = rmp::may_write_shared(&table, &mut bench.board, page, PageSize::Size4K);
                    prop_assert!(!(owned && writable));
                }
            }
        }
    }

    #[test]
    fn a_vmcb_is_refused_or_runs(
        fields in prop::collection::vec(field(), 0..6),
        steps in prop::collection::vec(step(), 0..20),
        all_bytes in any::<Option<u8>>(),
    ) {
        let mut bench = Bench::new();
        if let Some(byte) = all_bytes {
            bench.board.write(IOPM, &[byte; 0x3000]);
            bench.board.write(MSRPM, &[byte; 0x2000]);
        }
        for (at, value) in fields {
            bench.set(at, value);
        }
        let host = bench.state.cr3;
        prop_assert_eq!(bench.vmrun(), Intercepted::Switched);
        if bench.svm.in_guest() {
            prop_assert!(bench.state.efer & efer::SVME != 0);
            prop_assert_ne!(bench.state.world, World::HOST);
            prop_assert!(bench.svm.gif());
        } else {
            prop_assert_eq!(bench.exit_code(), INVALID);
        }
        for step in steps {
            bench.state.gpr[gpr::RAX] = VMCB;
            take(&mut bench, step);
            prop_assert_eq!(bench.svm.in_guest(), bench.state.world != World::HOST);
            if !bench.svm.in_guest() {
                prop_assert_eq!(bench.state.cr3, host);
                prop_assert_eq!(bench.state.cpl(), 0);
            }
        }
    }
}
