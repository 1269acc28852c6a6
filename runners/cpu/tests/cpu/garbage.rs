//! Nothing that a guest executes, and no state that an owner sets, makes the CPU panic.

use std::sync::Arc;

use privet_cpu::segment::Table;
use privet_cpu::{CodePages, Config, Cpu, CpuExit, Seg, Segment, World, vector};
use proptest::prelude::*;

use crate::board::{Asked, Board};
use crate::descriptor_tables::{stop_at_vmcall, with_idt};
use crate::machine::{Ram, TestBus, long_mode};

const RAM: usize = 1 << 17;
const CODE: u64 = 0x8000;

fn segment() -> impl Strategy<Value = Segment> {
    (any::<(u64, u32, u16, u8)>(), any::<[bool; 7]>()).prop_map(|((base, limit, selector, kind), b)| Segment {
        base,
        limit,
        selector,
        kind: kind & 0xf,
        present: b[0],
        dpl: kind >> 6,
        db: b[1],
        code_or_data: b[2],
        long: b[3],
        granularity: b[4],
        available: b[5],
        unusable: b[6],
    })
}

/// Runs instruction by instruction, and some blocks, answering whatever is asked.
fn drive(cpu: &mut Cpu, ram: &Ram, steps: usize) {
    let mut bus = TestBus::new(ram);
    // Handlers end the run: a handler that faults would be entered for ever.
    bus.intercept = Some(stop_at_vmcall);
    cpu.debug.single_step = true;
    for _ in 0..steps {
        match cpu.run(&mut bus) {
            CpuExit::MmioRead { len, .. } => cpu.complete_mmio_read(&vec![0x5a; usize::from(len)]),
            CpuExit::PortIn { size, count, .. } => {
                cpu.complete_port_in(&vec![0xa5; usize::from(size) * count as usize])
            }
            CpuExit::Bus | CpuExit::Shutdown | CpuExit::UnknownInstruction { .. } | CpuExit::NoMemory { .. } => break,
            CpuExit::Debug { exception, .. } => assert_eq!(exception.vector, vector::DB),
            CpuExit::PortOut { .. } | CpuExit::MmioWrite { .. } | CpuExit::Halt | CpuExit::Stopped | CpuExit::Turn => {}
        }
    }
}

/// Runs on a board whose devices answer, in turns, and with another world each few times that the board is asked.
fn drive_on_a_board(cpu: &mut Cpu, ram: &Ram) {
    let mut asked = 0;
    let mut other = cpu.state.clone();
    other.world = World(1);
    let mut board = Board::new(ram);
    board.hook = Box::new(move |state, what| {
        asked += 1;
        if asked % 5 != 0 || what == Asked::Event {
            return false;
        }
        std::mem::swap(state, &mut other);
        (state.instructions, state.turn_ends) = (other.instructions, other.turn_ends);
        true
    });
    for turn in 1..40 {
        cpu.state.turn_ends = cpu.state.instructions + turn;
        match cpu.run(&mut board) {
            CpuExit::Turn | CpuExit::Halt => {}
            CpuExit::Shutdown | CpuExit::UnknownInstruction { .. } | CpuExit::NoMemory { .. } => break,
            other => panic!("{other:?} on a board"),
        }
    }
}

/// Code is translated at once, or never.
fn translate_after() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0, u32::MAX])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_code_in_a_sound_machine(code in prop::collection::vec(any::<u8>(), 64..256), gpr in any::<[u64; 16]>(), cpl in prop::sample::select(vec![0_u16, 3]), translate_after in translate_after()) {
        let ram = Ram::new(RAM);
        let mut cpu = Cpu::new(Config { translate_after, ..Config::default() });
        long_mode(&mut cpu, &ram, cpl);
        with_idt(&mut cpu, &ram);
        ram.write(CODE, &code);
        cpu.state.gpr = gpr.map(|value| value % (2 * RAM as u64));
        cpu.state.rip = CODE;
        let mut on_a_board = Cpu::sharing(cpu.config, Arc::new(CodePages::new()));
        on_a_board.state = cpu.state.clone();
        drive(&mut cpu, &ram, 100);
        drive_on_a_board(&mut on_a_board, &ram);
    }

    #[test]
    fn random_code_in_a_random_state(
        code in prop::collection::vec(any::<u8>(), 64..256),
        gpr in any::<[u64; 16]>(),
        segments in prop::collection::vec(segment(), 8),
        control in any::<[u64; 5]>(),
        tables in any::<[(u64, u16); 2]>(),
        rip in prop_oneof![Just(CODE), any::<u64>()],
        rflags in any::<u64>(),
        debug in any::<[u64; 6]>(),
        translate_after in translate_after(),
    ) {
        let ram = Ram::new(RAM);
        for at in (0..RAM as u64).step_by(0x1000) {
            ram.write(at, &code);
        }
        let mut cpu = Cpu::new(Config { translate_after, ..Config::default() });
        let state = &mut cpu.state;
        state.gpr = gpr;
        state.rip = rip;
        state.rflags = rflags | 2;
        state.segments.copy_from_slice(&segments[..6]);
        (state.tr, state.ldtr) = (segments[6], segments[7]);
        state.gdtr = Table { base: tables[0].0, limit: tables[0].1 };
        state.idtr = Table { base: tables[1].0, limit: tables[1].1 };
        state.cr0 = control[0] & 0xe005_003f;
        state.cr3 = control[1] % RAM as u64;
        state.cr4 = control[2] & 0x37_1fff;
        state.efer = control[3] & 0xd01;
        state.xcr0 = 1 | control[4] & 6;
        state.dr.copy_from_slice(&debug[..4]);
        (state.dr6, state.dr7) = (debug[4], debug[5]);
        // Half of the time the code is where RIP points.
        if rip == CODE {
            state.segments[Seg::Cs as usize].base = 0;
        }
        let mut on_a_board = Cpu::sharing(cpu.config, Arc::new(CodePages::new()));
        on_a_board.state = cpu.state.clone();
        drive(&mut cpu, &ram, 100);
        drive_on_a_board(&mut on_a_board, &ram);
    }
}
