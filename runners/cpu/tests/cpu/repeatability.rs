//! Turns, flushes and what a CPU remembers change nothing that a program or a counter can see.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use privet_cpu::state::gpr;
use privet_cpu::{CodePages, Config, Cpu, CpuExit, CpuState, vector};
use proptest::prelude::*;

use crate::board::{Board, CODE, DEVICES};
use crate::descriptor_tables::{HANDLERS, with_idt};
use crate::machine::{RWU, Ram, TABLES, long_mode};

const DATA: u64 = 0x3_0000;
/// Four pages of linear addresses that are mapped by 4 KiB pages to [`DATA`] and what follows.
const WINDOW: u64 = 1 << 30;

/// One thing that a program does. Offsets are into [`WINDOW`].
#[derive(Debug, Clone, Copy)]
enum Step {
    Add(u16),
    Load(u16),
    Store(u16),
    Locked(u16),
    Move {
        from: u16,
        to: u16,
        count: u8,
    },
    Fill {
        to: u16,
        count: u8,
    },
    Device(u8),
    Port,
    Time,
    Reload,
    Invalidate(u16),
    Call,
    Interrupt,
    Undefined,
    /// Overwrites the immediate of the `Add` that it begins with for the next time.
    Patch,
    Flags,
}

fn step() -> impl Strategy<Value = Step> {
    // Whatever a step does from there stays in the window.
    let offset = || 0_u16..0x3e00;
    prop_oneof![
        any::<u16>().prop_map(Step::Add),
        offset().prop_map(Step::Load),
        offset().prop_map(Step::Store),
        offset().prop_map(Step::Locked),
        (offset(), offset(), any::<u8>()).prop_map(|(from, to, count)| Step::Move { from, to, count }),
        (offset(), any::<u8>()).prop_map(|(to, count)| Step::Fill { to, count }),
        any::<u8>().prop_map(Step::Device),
        Just(Step::Port),
        Just(Step::Time),
        Just(Step::Reload),
        offset().prop_map(Step::Invalidate),
        Just(Step::Call),
        Just(Step::Interrupt),
        Just(Step::Undefined),
        Just(Step::Patch),
        Just(Step::Flags),
    ]
}

/// A loop over the steps, twelve times.
fn program(steps: &[Step]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut top, mut subroutine, mut end) = (a.create_label(), a.create_label(), a.create_label());
    let at = |offset: u16| WINDOW + u64::from(offset);
    a.mov(r15d, 12)?;
    a.set_label(&mut top)?;
    for &step in steps {
        match step {
            Step::Add(value) => a.add(rax, i32::from(value))?,
            Step::Load(offset) => a.add(rax, qword_ptr(at(offset)))?,
            Step::Store(offset) => a.mov(qword_ptr(at(offset)), rax)?,
            Step::Locked(offset) => a.lock().add(qword_ptr(at(offset & !7)), rax)?,
            Step::Move { from, to, count } => {
                a.mov(rsi, at(from))?;
                a.mov(rdi, at(to))?;
                a.mov(ecx, u32::from(count))?;
                a.rep().movsb()?;
            }
            Step::Fill { to, count } => {
                a.mov(rdi, at(to))?;
                a.mov(ecx, u32::from(count))?;
                a.rep().stosb()?;
            }
            Step::Device(offset) => {
                a.add(eax, dword_ptr(DEVICES + u64::from(offset & !3)))?;
                a.mov(dword_ptr(DEVICES + u64::from(offset & !3)), ecx)?;
            }
            Step::Port => a.in_(al, 0x71)?,
            Step::Time => {
                a.rdtsc()?;
                a.add(rbp, rax)?;
                a.rdrand(rbx)?;
                a.add(rbp, rbx)?;
            }
            Step::Reload => {
                a.mov(rcx, cr3)?;
                a.mov(cr3, rcx)?;
            }
            Step::Invalidate(offset) => a.invlpg(byte_ptr(at(offset)))?,
            Step::Call => a.call(subroutine)?,
            Step::Interrupt => a.int(0x80)?,
            Step::Undefined => a.ud2()?,
            Step::Patch => {
                let mut patched = a.create_label();
                // An instruction takes one label only.
                a.nop()?;
                a.set_label(&mut patched)?;
                a.add(eax, 0x0123_4567)?;
                a.lea(rbx, ptr(patched))?;
                a.mov(byte_ptr(rbx + 2), al)?;
            }
            Step::Flags => {
                a.pushfq()?;
                a.popfq()?;
            }
        }
    }
    a.dec(r15d)?;
    a.je(end)?;
    a.jmp(top)?;
    a.set_label(&mut subroutine)?;
    a.rol(rax, 7)?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.hlt()?;
    a.assemble(CODE)
}

/// How a CPU is disturbed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Disturbance {
    None,
    /// It translates what has executed so often, at once in all others.
    Translates(u32),
    /// It compares code with memory.
    Compares,
    /// Turns of so many instructions at least.
    Turns(u64),
    /// And between two turns it forgets all that it has translated and decoded.
    Forgets(u64),
}

/// What a run leaves behind.
#[derive(Debug, PartialEq)]
struct Left {
    state: CpuState,
    memory: Vec<u8>,
    log: Vec<String>,
}

fn run(code: &[u8], disturbance: Disturbance) -> Left {
    let ram = Ram::new(DEVICES as usize);
    let pages = Arc::new(CodePages::new());
    let translate_after = match disturbance {
        Disturbance::None => u32::MAX,
        Disturbance::Translates(executions) => executions,
        _ => 0,
    };
    let config = Config { translate_after, ..Config::default() };
    let mut cpu = match disturbance {
        Disturbance::Compares => Cpu::new(config),
        _ => Cpu::sharing(config, Arc::clone(&pages)),
    };
    long_mode(&mut cpu, &ram, 0);
    with_idt(&mut cpu, &ram);
    ram.write_u64(TABLES + 0x1000 + 8, 0x2_0000 | RWU);
    ram.write_u64(0x2_0000, 0x2_1000 | RWU);
    for index in 0..4 {
        ram.write_u64(0x2_1000 + index * 8, (DATA + index * 0x1000) | RWU);
    }
    // iretq; add qword [rsp], 2; iretq
    ram.write(HANDLERS + 0x80 * 16, &[0x48, 0xcf]);
    ram.write(HANDLERS + u64::from(vector::UD) * 16, &[0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf]);
    ram.write(CODE, code);
    cpu.state.rip = CODE;
    cpu.state.gpr[gpr::RSP] = 0x7_0000;
    let mut board = Board::new(&ram);
    loop {
        if let Disturbance::Turns(length) | Disturbance::Forgets(length) = disturbance {
            cpu.state.turn_ends = cpu.state.instructions + length;
        }
        match cpu.run(&mut board) {
            CpuExit::Halt => break,
            exit => assert_eq!(exit, CpuExit::Turn, "at {:#x}", cpu.state.rip),
        }
        if matches!(disturbance, Disturbance::Forgets(_)) {
            cpu.flush_tlb();
            pages.wrote(ram.page(0).expect("RAM").start(), DEVICES as usize);
        }
    }
    let log = std::mem::take(&mut board.log);
    let state = CpuState { turn_ends: 0, ..cpu.state.clone() };
    // Without the tables, whose accessed bits say when somebody walked.
    Left { state, memory: ram.read(CODE, 0x1000).into_iter().chain(ram.read(DATA, 0x4000)).collect(), log }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_program_does_not_see_how_it_is_executed(
        steps in prop::collection::vec(step(), 1..40),
        length in 1_u64..60,
        executions in 0_u32..8,
    ) {
        let code = program(&steps).expect("the program assembles");
        let undisturbed = run(&code, Disturbance::None);
        let disturbances = [
            Disturbance::Translates(executions),
            Disturbance::Compares,
            Disturbance::Turns(length),
            Disturbance::Forgets(length),
        ];
        for disturbance in disturbances {
            prop_assert_eq!(&run(&code, disturbance), &undisturbed, "{:?}", disturbance);
        }
    }
}

/// More code than is remembered: on the way all of it is forgotten, and with it the links between translations.
#[test]
fn a_program_larger_than_what_is_remembered() {
    const NOPS: u64 = 0x14_0000;
    let ram = Ram::new(0x20_0000);
    let mut cpu = Cpu::sharing(Config { translate_after: 0, ..Config::default() }, Arc::new(CodePages::new()));
    long_mode(&mut cpu, &ram, 0);
    ram.write(CODE, &vec![0x90; NOPS as usize]);
    ram.write(CODE + NOPS, &[0xf4]);
    for _ in 0..2 {
        let before = cpu.state.instructions;
        cpu.state.rip = CODE;
        assert_eq!(cpu.run(&mut Board::new(&ram)), CpuExit::Halt);
        assert_eq!(cpu.state.instructions - before, NOPS + 1);
    }
}
