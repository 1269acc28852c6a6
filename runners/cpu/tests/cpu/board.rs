//! The CPU on a board: devices and ports in place, turns, other worlds, and code whose writers tell.

use std::sync::Arc;

use iced_x86::code_asm::*;
use privet_cpu::state::{Injection, cr0, cr4, gpr};
use privet_cpu::{
    Access, AccessKind, Bus, Call, CodePages, Config, Cpu, CpuExit, CpuState, CpuidResult, CrAccess, Event, Exception,
    Flush, Intercept, Intercepted, MemoryOperand, OperandPlace, Operands, Reaction, Resolve, Seg, Segment,
    TableRegister, Trap, VmxInstruction, World, vector,
};

use crate::descriptor_tables::{HANDLERS, with_idt};
use crate::machine::{RWU, Ram, TABLES, long_mode};

pub(crate) const CODE: u64 = 0x8000;
/// Where devices begin: the first address behind RAM.
pub(crate) const DEVICES: u64 = 1 << 20;
const GUEST: World = World(3);

/// What a board was asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Asked {
    Intercept(Intercept),
    After(Trap),
    Exception(Exception),
    Shutdown,
    Event,
}

type Hook<'a> = Box<dyn FnMut(&mut CpuState, Asked) -> bool + 'a>;

/// RAM at 0, a device in each page behind it that remembers what was done, and a hook that may switch worlds.
pub(crate) struct Board<'a> {
    pub(crate) ram: &'a Ram,
    pub(crate) log: Vec<String>,
    pub(crate) accesses: Vec<(u64, Access)>,
    pub(crate) hook: Hook<'a>,
}

impl<'a> Board<'a> {
    pub(crate) fn new(ram: &'a Ram) -> Board<'a> {
        Board { ram, log: Vec::new(), accesses: Vec::new(), hook: Box::new(|_, _| false) }
    }

    fn ask(&mut self, state: &mut CpuState, what: Asked) -> Reaction {
        if (self.hook)(state, what) { Reaction::Switched } else { Reaction::Native }
    }
}

impl Bus for Board<'_> {
    fn resolve(&mut self, _: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        self.accesses.push((gpa, access));
        self.ram.page(gpa).map_or(Resolve::Device(gpa), Resolve::Page)
    }

    fn device_read(&mut self, state: &mut CpuState, address: u64, data: &mut [u8]) {
        self.log.push(format!("read {address:x}+{} at {}", data.len(), state.instructions));
        data.fill(0x11);
    }

    fn device_write(&mut self, state: &mut CpuState, address: u64, data: &[u8]) {
        self.log.push(format!("write {address:x} {data:x?} at {}", state.instructions));
    }

    fn port_read(&mut self, state: &mut CpuState, port: u16, size: u8) -> Option<u32> {
        self.log.push(format!("in {port:x}.{size} at {}", state.instructions));
        Some(0xa1b2_c3d4)
    }

    fn port_write(&mut self, state: &mut CpuState, port: u16, size: u8, value: u32) -> bool {
        self.log.push(format!("out {port:x}.{size} {value:x} at {}", state.instructions));
        true
    }

    fn cpuid(&mut self, _: &CpuState, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }

    fn locked(&mut self, state: &mut CpuState) {
        state.turn_ends = state.instructions;
    }

    fn rdmsr(&mut self, _: &CpuState, _: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, _: u32, _: u64) -> Result<(), Exception> {
        Err(Exception::gp(0))
    }

    fn tsc(&mut self, state: &CpuState) -> u64 {
        state.instructions
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, _: u8) -> Intercepted {
        match self.ask(state, Asked::Intercept(what)) {
            Reaction::Native => Intercepted::Native,
            Reaction::Switched => Intercepted::Switched,
        }
    }

    fn after(&mut self, state: &mut CpuState, what: Trap) -> Reaction {
        self.ask(state, Asked::After(what))
    }

    fn exception(&mut self, state: &mut CpuState, exception: Exception) -> Reaction {
        self.ask(state, Asked::Exception(exception))
    }

    fn shutdown(&mut self, state: &mut CpuState) -> Reaction {
        self.ask(state, Asked::Shutdown)
    }

    fn take_event(&mut self, state: &mut CpuState, _: bool, _: bool) -> Option<Event> {
        (self.ask(state, Asked::Event) == Reaction::Switched).then_some(Event::Switched)
    }
}

type Assembly = Result<(), iced_x86::IcedError>;

pub(crate) fn load(ram: &Ram, at: u64, assemble: impl FnOnce(&mut CodeAssembler) -> Assembly) {
    let mut a = CodeAssembler::new(64).expect("64-bit");
    assemble(&mut a).expect("the program assembles");
    ram.write(at, &a.assemble(at).expect("the program encodes"));
}

pub(crate) fn machine(assemble: impl FnOnce(&mut CodeAssembler) -> Assembly) -> (Ram, Cpu) {
    let ram = Ram::new(DEVICES as usize);
    let mut cpu = Cpu::sharing(Config::default(), Arc::new(CodePages::new()));
    long_mode(&mut cpu, &ram, 0);
    with_idt(&mut cpu, &ram);
    load(&ram, CODE, assemble);
    cpu.state.rip = CODE;
    cpu.state.gpr[gpr::RBX] = DEVICES;
    cpu.state.gpr[gpr::RSP] = 0xa000;
    (ram, cpu)
}

#[test]
fn devices_answer_in_place() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(eax, dword_ptr(rbx + 4))?;
        a.mov(eax, dword_ptr(rbx + 4))?;
        a.add(word_ptr(rbx + 8), 1)?;
        a.movups(xmm0, ptr(rbx))?;
        a.mov(qword_ptr(rbx - 4), rdx)?;
        a.hlt()
    });
    let mut board = Board::new(&ram);
    cpu.state.gpr[gpr::RDX] = 0x8877_6655_4433_2211;
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    assert_eq!(
        board.log,
        [
            "read 100004+4 at 0",
            "read 100004+4 at 1",
            "read 100008+2 at 2",
            "write 100008 [12, 11] at 2",
            "read 100000+16 at 3",
            "write 100000 [55, 66, 77, 88] at 4"
        ]
    );
    assert_eq!(ram.read(DEVICES - 4, 4), [0x11, 0x22, 0x33, 0x44]);
    assert_eq!((cpu.state.gpr[gpr::RAX], cpu.state.instructions), (0x1111_1111, 6));
}

#[test]
fn ports_answer_in_place_and_a_repeated_instruction_is_one() {
    let (ram, mut cpu) = machine(|a| {
        a.in_(al, 0x71)?;
        a.out(dx, eax)?;
        a.rep().insb()?;
        a.mov(ecx, 2)?;
        a.rep().outsw()?;
        a.hlt()
    });
    let mut board = Board::new(&ram);
    (cpu.state.gpr[gpr::RDX], cpu.state.gpr[gpr::RCX]) = (0x3f8, 3);
    (cpu.state.gpr[gpr::RDI], cpu.state.gpr[gpr::RSI]) = (0x9000, 0x9000);
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    assert_eq!(board.log[..2], ["in 71.1 at 0", "out 3f8.4 d4 at 1"]);
    // The counter is one behind while a repetition is not the last: the instruction has yet to retire.
    assert_eq!(board.log[2..].len(), 5);
    assert!(board.log[2..5].iter().all(|line| line == "in 3f8.1 at 2"));
    assert_eq!(board.log[5..], ["out 3f8.2 d4d4 at 4", "out 3f8.2 d4 at 4"]);
    assert_eq!(ram.read(0x9000, 4), [0xd4, 0xd4, 0xd4, 0]);
    assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.instructions), (0, 6));
}

#[test]
fn a_turn_ends_by_count() {
    let (ram, mut cpu) = machine(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.pause()?;
        a.jmp(top)
    });
    let mut board = Board::new(&ram);
    cpu.state.turn_ends = 100;
    assert_eq!(cpu.run(&mut board), CpuExit::Turn);
    assert!((100..100 + privet_cpu::MAX_BLOCK_OPS as u64).contains(&cpu.state.instructions));
    assert_eq!(cpu.run(&mut board), CpuExit::Turn, "at once");
    // The bus may end a turn early.
    cpu.state.turn_ends = u64::MAX;
    board.hook = Box::new(|state, what| {
        if what == Asked::Intercept(Intercept::Pause) {
            state.turn_ends = state.instructions;
        }
        false
    });
    let before = cpu.state.instructions;
    assert_eq!(cpu.run(&mut board), CpuExit::Turn);
    assert!(cpu.state.instructions - before <= 3);
}

#[test]
fn a_turn_ends_behind_a_locked_instruction_if_the_bus_wants_to_know() {
    let (ram, mut cpu) = machine(|a| {
        a.inc(qword_ptr(0x9000))?;
        a.lock().inc(qword_ptr(0x9000))?;
        a.xchg(qword_ptr(0x9000), rax)?;
        a.lock().cmpxchg16b(xmmword_ptr(0x9000))?;
        a.nop()?;
        a.hlt()
    });
    let mut board = Board::new(&ram);
    cpu.debug.tells_locked = true;
    for instructions in [2, 3, 4] {
        cpu.state.turn_ends = u64::MAX;
        assert_eq!((cpu.run(&mut board), cpu.state.instructions), (CpuExit::Turn, instructions));
    }
    (cpu.debug.tells_locked, cpu.state.turn_ends, cpu.state.rip) = (false, u64::MAX, CODE);
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
}

#[test]
fn a_turn_ends_for_a_cpu_that_only_faults() {
    let (ram, mut cpu) = machine(|a| a.ud2());
    // The handler is what raises the exception again.
    ram.write(HANDLERS + u64::from(vector::UD) * 16, &[0x0f, 0x0b]);
    cpu.state.turn_ends = 20;
    assert_eq!(cpu.run(&mut Board::new(&ram)), CpuExit::Turn);
}

#[test]
fn a_turn_ends_in_a_repetition() {
    let (ram, mut cpu) = machine(|a| a.rep().movsb());
    let mut board = Board::new(&ram);
    (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI], cpu.state.gpr[gpr::RCX]) = (DEVICES, DEVICES, 10_000);
    cpu.state.turn_ends = 3;
    assert_eq!(cpu.run(&mut board), CpuExit::Turn);
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RCX], cpu.state.instructions), (CODE, 7 * 1024, 3));
    // From here on bytes are moved many at a time, which is not seen.
    (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI]) = (0x9000, 0xa000);
    cpu.state.turn_ends = 5;
    assert_eq!(cpu.run(&mut board), CpuExit::Turn);
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RCX], cpu.state.instructions), (CODE, 5 * 1024, 5));
}

/// Puts a guest with the same tables, running `at`, in place of the host; returns the host.
fn enter(state: &mut CpuState, at: u64) -> CpuState {
    let host = state.clone();
    state.rip = at;
    state.world = GUEST;
    host
}

/// The way back.
fn leave(state: &mut CpuState, host: &CpuState) {
    let (instructions, turn_ends) = (state.instructions, state.turn_ends);
    *state = CpuState { instructions, turn_ends, rip: host.rip + 3, ..host.clone() };
}

const GUEST_CODE: u64 = 0xd000;

#[test]
fn a_world_is_entered_and_left_and_each_has_its_translations() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(eax, dword_ptr(r8))?;
        a.vmrun()?;
        a.mov(edx, dword_ptr(r8))?;
        a.hlt()
    });
    load(&ram, GUEST_CODE, |a| {
        a.mov(ecx, dword_ptr(r8))?;
        a.vmmcall()
    });
    // The guest has tables of its own, in which one GiB goes elsewhere.
    let tables = 0x20000;
    ram.write_u64(tables, (tables + 0x1000) | RWU);
    ram.write_u64(tables + 0x1000, 0x80 | RWU);
    ram.write_u64(tables + 0x1000 + 8, 0x80 | RWU);
    ram.write(0x9000, &7_u32.to_le_bytes());
    // For the host, the second GiB is a device.
    cpu.state.gpr[8] = (1 << 30) + 0x9000;
    let mut host = None;
    let mut board = Board::new(&ram);
    board.hook = Box::new(move |state, what| match what {
        Asked::Intercept(Intercept::Call(Call::Vmrun)) => {
            host = Some(enter(state, GUEST_CODE));
            state.cr3 = tables;
            true
        }
        Asked::Intercept(Intercept::Call(Call::Vmmcall)) => {
            assert_eq!((state.world, state.rip, state.gpr[gpr::RCX]), (GUEST, GUEST_CODE + 3, 7));
            leave(state, host.as_ref().expect("entered"));
            true
        }
        _ => false,
    });
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    assert_eq!(
        (cpu.state.world, cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RDX]),
        (World::HOST, 0x1111_1111, 0x1111_1111)
    );
    assert_eq!(cpu.state.rip, CODE + 10);
    // mov, mov, mov, hlt, and two switches.
    assert_eq!(cpu.state.instructions, 3 + 1 + 2);

    // A second time, both find what they remember, and a flush of the guest is one of the guest alone.
    let walks = |accesses: &[(u64, Access)]| accesses.iter().filter(|(gpa, _)| *gpa < DEVICES).count();
    board.accesses.clear();
    cpu.state.rip = CODE;
    let kick = Arc::clone(cpu.kick());
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    assert_eq!(walks(&board.accesses), 0);
    kick.request(Flush::World(GUEST));
    cpu.state.rip = CODE;
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    assert!(
        board.accesses.iter().all(|(gpa, _)| *gpa >= DEVICES || *gpa >= tables || *gpa == 0x9000 || *gpa == GUEST_CODE)
    );
    assert_ne!(walks(&board.accesses), 0);
}

#[test]
fn an_access_says_what_it_is_for() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(eax, dword_ptr(0x9004))?;
        a.hlt()
    });
    let mut board = Board::new(&ram);
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    let data = board.accesses.iter().find(|(gpa, access)| *gpa == 0x9000 && !access.walk).expect("read");
    assert_eq!((data.1.linear, data.1.offset, data.1.kind), (0x9004, 4, AccessKind::Read));
    let walk = board.accesses.iter().find(|(gpa, access)| *gpa == TABLES && access.walk).expect("walked");
    assert_eq!(walk.1.linear, CODE, "the first walk is the fetch's");
}

#[test]
fn exceptions_are_offered_before_they_are_combined() {
    let (ram, mut cpu) = machine(|a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    });
    cpu.state.idtr.limit = 8 * 16 - 1;
    let (de, gp, df) = (Exception::plain(vector::DE), Exception::gp(13 << 3 | 2), Exception::with_code(vector::DF, 0));
    // The IDT ends before #DF, so even that cannot be delivered; #DE has no handler that is present.
    ram.write_u64(cpu.state.idtr.base, 0);
    let mut asked = Vec::new();
    let mut board = Board::new(&ram);
    board.hook = Box::new(|state, what| {
        if !matches!(what, Asked::Event) {
            asked.push((what, state.vectoring, state.rip));
        }
        false
    });
    assert_eq!(cpu.run(&mut board), CpuExit::Shutdown);
    drop(board);
    let rip = CODE + 2;
    let vectoring = |exception| Some(Injection::Exception(exception));
    let [first, second, third, fourth, fifth] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(first, (Asked::Exception(de), None, rip));
    let Asked::Exception(nested) = second.0 else { panic!("{second:?}") };
    assert_eq!((nested.vector, second.1), (vector::GP, vectoring(de)));
    assert_ne!(nested, gp, "it is about the gate of #DE");
    assert_eq!(third, (Asked::Exception(df), vectoring(de), rip));
    assert!(matches!(fourth.0, Asked::Exception(exception) if exception.vector == vector::GP));
    assert_eq!((fourth.1, fifth), (vectoring(df), (Asked::Shutdown, vectoring(df), rip)));
    assert_eq!(cpu.state.vectoring, None);
}

#[test]
fn a_software_interrupt_that_cannot_be_delivered_tells_what_it_was() {
    let (ram, mut cpu) = machine(|a| a.int(0x80));
    cpu.state.idtr.limit = 32 * 16 - 1;
    let mut seen = None;
    let mut board = Board::new(&ram);
    board.hook = Box::new(|state, what| {
        let Asked::Exception(exception) = what else { return false };
        seen = Some((exception.vector, state.vectoring, state.rip));
        enter(state, GUEST_CODE);
        true
    });
    ram.write(GUEST_CODE, &[0xf4]);
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    drop(board);
    assert_eq!(seen, Some((vector::GP, Some(Injection::SoftInterrupt(0x80)), CODE)));
    assert_eq!((cpu.state.world, cpu.state.vectoring, cpu.state.rip), (GUEST, None, GUEST_CODE + 1));
}

#[test]
fn an_event_and_an_injection_wait_for_each_other() {
    let (ram, mut cpu) = machine(|a| a.hlt());
    ram.write(GUEST_CODE, &[0xf4]);
    ram.write(HANDLERS + 0x30 * 16, &[0xf4]);
    // An event switches worlds; what the new world's owner injects there comes before anything else.
    let mut events = 0;
    let mut board = Board::new(&ram);
    board.hook = Box::new(|state, what| {
        if what != Asked::Event {
            return false;
        }
        events += 1;
        if events == 1 {
            enter(state, GUEST_CODE);
            state.injection = Some(Injection::Interrupt(0x1f));
            return true;
        }
        assert!(state.injection.is_none() && state.rip == HANDLERS + 0x1f * 16, "{:#x}", state.rip);
        false
    });
    ram.write(HANDLERS + 0x1f * 16, &[0xf4]);
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    drop(board);
    assert_eq!((events, cpu.state.rip), (2, HANDLERS + 0x1f * 16 + 1));
}

#[test]
fn traps_come_after_the_instruction() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(rax, cr0)?;
        a.mov(cr0, rax)?;
        a.mov(rax, cr4)?;
        a.mov(cr4, rax)?;
        a.mov(ecx, 0xc000_0080_u32)?;
        a.rdmsr()?;
        a.wrmsr()?;
        a.hlt()
    });
    let mut traps = Vec::new();
    let mut board = Board::new(&ram);
    board.hook = Box::new(|state, what| {
        let Asked::After(trap) = what else { return false };
        traps.push((trap, state.rip - CODE));
        false
    });
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    drop(board);
    assert_eq!(traps, [(Trap::WriteCr(0), 6), (Trap::WriteCr(4), 12), (Trap::WriteEfer, 21)]);
}

#[test]
fn what_can_be_intercepted() {
    type Program = fn(&mut CodeAssembler) -> Assembly;
    let cr = |cr, value, by| Intercept::WriteCr { cr, value, by };
    let cr0_now = cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE;
    let table = |register, write| Intercept::Table { register, write };
    let operands = |register, place| Operands { register, place };
    let at_9000 = OperandPlace::Memory(MemoryOperand {
        base: None,
        index: None,
        scale: 0,
        displacement: 0x9000,
        address_size: 8,
        segment: Seg::Ds,
    });
    let vmx = |instruction, operands| Intercept::Vmx { instruction, operands };
    let cases: [(Program, Intercept); 34] = [
        (|a| a.mov(r9, cr3), Intercept::ReadCr { cr: 3, by: CrAccess::Mov(9) }),
        (|a| a.mov(cr4, rbp), cr(4, 0x5555, CrAccess::Mov(5))),
        (|a| a.clts(), cr(0, cr0_now, CrAccess::Clts)),
        (|a| a.lmsw(bp), cr(0, cr0_now & !0xe | 5, CrAccess::Lmsw)),
        (|a| a.smsw(eax), Intercept::ReadCr { cr: 0, by: CrAccess::Smsw }),
        (|a| a.mov(rbp, dr6), Intercept::ReadDr { dr: 6, register: 5 }),
        (|a| a.mov(dr7, rbp), Intercept::WriteDr { dr: 7, register: 5, value: 0x5555 }),
        (|a| a.invlpg(byte_ptr(rbp + 3)), Intercept::Invlpg { linear: 0x5558 }),
        (
            |a| a.invpcid(rbp, xmmword_ptr(0x9000)),
            Intercept::Invpcid { kind: 0x5555, descriptor: 0x9000, operands: operands(5, at_9000) },
        ),
        (|a| a.vmptrld(qword_ptr(0x9000)), vmx(VmxInstruction::Vmptrld, operands(0, at_9000))),
        (|a| a.vmread(rdx, r9), vmx(VmxInstruction::Vmread, operands(9, OperandPlace::Register(2)))),
        (|a| a.vmread(qword_ptr(0x9000), rbx), vmx(VmxInstruction::Vmread, operands(3, at_9000))),
        (|a| a.vmwrite(rdx, r9), vmx(VmxInstruction::Vmwrite, operands(2, OperandPlace::Register(9)))),
        (|a| a.vmwrite(rbx, qword_ptr(0x9000)), vmx(VmxInstruction::Vmwrite, operands(3, at_9000))),
        (|a| a.rdpid(rax), Intercept::Rdpid),
        (|a| a.pause(), Intercept::Pause),
        (|a| a.iretq(), Intercept::Iret),
        (|a| a.pushfq(), Intercept::Pushf),
        (|a| a.popfq(), Intercept::Popf),
        (|a| a.int(0x81), Intercept::SoftwareInterrupt(0x81)),
        (|a| a.int1(), Intercept::Icebp),
        (|a| a.lgdt(ptr(0x9000)), table(TableRegister::Gdtr, true)),
        (|a| a.lidt(ptr(0x9000)), table(TableRegister::Idtr, true)),
        (|a| a.sgdt(ptr(0x9000)), table(TableRegister::Gdtr, false)),
        (|a| a.sidt(ptr(0x9000)), table(TableRegister::Idtr, false)),
        (|a| a.lldt(ax), table(TableRegister::Ldtr, true)),
        (|a| a.ltr(ax), table(TableRegister::Tr, true)),
        (|a| a.sldt(ax), table(TableRegister::Ldtr, false)),
        (|a| a.str(ax), table(TableRegister::Tr, false)),
        (|a| a.vmload(), Intercept::Call(Call::Vmload)),
        (|a| a.invlpga(), Intercept::Call(Call::Invlpga)),
        (|a| a.rmpupdate(), Intercept::Call(Call::Rmpupdate)),
        (|a| a.psmash(), Intercept::Call(Call::Psmash)),
        // RMPREAD, which the assembler does not know.
        (|a| a.db(&[0xf2, 0x0f, 0x01, 0xfd]), Intercept::Call(Call::Rmpread)),
    ];
    for (program, expected) in cases {
        let (ram, mut cpu) = machine(program);
        ram.write(GUEST_CODE, &[0xf4]);
        cpu.state.gpr[gpr::RBP] = 0x5555;
        cpu.state.cr4 |= cr4::VMXE;
        let mut seen = None;
        let mut board = Board::new(&ram);
        board.hook = Box::new(|state, what| {
            let Asked::Intercept(what) = what else { return false };
            if what == Intercept::Hlt {
                return false;
            }
            assert_eq!(seen, None);
            seen = Some((what, state.rip));
            enter(state, GUEST_CODE);
            true
        });
        assert_eq!(cpu.run(&mut board), CpuExit::Halt);
        drop(board);
        assert_eq!(seen, Some((expected, CODE)));
    }
}

#[test]
fn a_state_goes_through_a_file_unchanged() {
    let (ram, mut cpu) = machine(|a| {
        a.movups(xmm3, ptr(0x8000))?;
        a.hlt()
    });
    assert_eq!(cpu.run(&mut Board::new(&ram)), CpuExit::Halt);
    cpu.state.injection = Some(Injection::Exception(Exception::pf(5, 7)));
    cpu.state.ldtr = Segment::null(3);
    let file = serde_json::to_string(&cpu.state).expect("plain data");
    assert_eq!(serde_json::from_str::<CpuState>(&file).expect("what was written"), cpu.state);
}

/// `mov eax, imm32; hlt`.
fn answer(value: u32) -> Vec<u8> {
    [&[0xb8][..], &value.to_le_bytes(), &[0xf4]].concat()
}

#[test]
fn code_that_a_cpu_overwrites_is_decoded_anew_by_all() {
    let ram = Ram::new(DEVICES as usize);
    let code = Arc::new(CodePages::new());
    let mut cpus = [0, 1].map(|_| Cpu::sharing(Config::default(), Arc::clone(&code)));
    for cpu in &mut cpus {
        long_mode(cpu, &ram, 0);
    }
    let mut board = Board::new(&ram);
    let mut run = |cpu: &mut Cpu, at: u64| {
        cpu.state.rip = at;
        assert_eq!(cpu.run(&mut board), CpuExit::Halt);
        cpu.state.gpr[gpr::RAX]
    };
    // Each way to write: a plain store, a locked one, a repeated one, one of 16 bytes, one across two pages.
    let target = 0xd000;
    load(&ram, 0xe000, |a| a.mov(dword_ptr(target + 1_u64), 2).and_then(|()| a.hlt()));
    load(&ram, 0xe100, |a| a.lock().inc(dword_ptr(target + 1_u64)).and_then(|()| a.hlt()));
    load(&ram, 0xe200, |a| {
        a.mov(edi, target as u32 + 1)?;
        a.mov(eax, 4)?;
        a.mov(ecx, 1)?;
        a.rep().stosd()?;
        a.hlt()
    });
    load(&ram, 0xe300, |a| a.movups(ptr(target), xmm0).and_then(|()| a.hlt()));
    load(&ram, 0xe400, |a| {
        a.mov(rax, 0x0000_0006_b800_0000_u64)?;
        a.mov(qword_ptr(target - 3_u64), rax)?;
        a.hlt()
    });
    ram.write(target, &answer(1));
    ram.write(0x9000, &answer(5));
    let bytes: [u8; 16] = ram.read(0x9000, 16).try_into().expect("16 bytes");
    for cpu in &mut cpus {
        cpu.state.fpu.xmm[0] = u128::from_le_bytes(bytes);
        // Both have written to the page before there was code in it.
        run(cpu, 0xe000);
    }
    ram.write(target, &answer(1));
    for cpu in &mut cpus {
        assert_eq!(run(cpu, target), 1);
    }
    for (writer, (at, expected)) in
        [(0xe000, 2), (0xe100, 3), (0xe200, 4), (0xe300, 5), (0xe400, 6)].into_iter().enumerate()
    {
        run(&mut cpus[writer % 2], at);
        assert_eq!(cpus.each_mut().map(|cpu| run(cpu, target)), [expected; 2], "{at:#x}");
    }
    // Who is no CPU has to tell.
    ram.write(target, &answer(7));
    code.wrote(ram.page(target).expect("RAM").start(), 8);
    assert_eq!(cpus.each_mut().map(|cpu| run(cpu, target)), [7; 2]);
}

#[test]
fn what_a_hook_wants_flushed_is_gone_behind_it() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(eax, dword_ptr(0x9000))?;
        a.pause()?;
        a.mov(eax, dword_ptr(0x9000))?;
        a.hlt()
    });
    let kick = Arc::clone(cpu.kick());
    let backing = ram.page(0x9000).expect("RAM").start().addr();
    let mut board = Board::new(&ram);
    board.hook = Box::new(move |_, what| {
        if what == Asked::Intercept(Intercept::Pause) {
            kick.request(Flush::Backing(backing));
        }
        false
    });
    assert_eq!(cpu.run(&mut board), CpuExit::Halt);
    let reads = board.accesses.iter().filter(|(gpa, access)| *gpa == 0x9000 && !access.walk).count();
    assert_eq!(reads, 2);
}

/// A bus that shows another CR0 and another CR8 than there are, and keeps a bit of what is written.
struct Shadowing<'a>(Board<'a>);

impl Bus for Shadowing<'_> {
    fn resolve(&mut self, state: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        self.0.resolve(state, gpa, access)
    }

    fn cpuid(&mut self, _: &CpuState, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }

    fn rdmsr(&mut self, _: &CpuState, _: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, _: u32, _: u64) -> Result<(), Exception> {
        Err(Exception::gp(0))
    }

    fn tsc(&mut self, _: &CpuState) -> u64 {
        0
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, _: u8) -> Intercepted {
        match what {
            Intercept::ReadCr { cr: 0, .. } => Intercepted::Value(state.cr0 | cr0::TS),
            Intercept::ReadCr { cr: 8, .. } => Intercepted::Value(9),
            Intercept::WriteCr { cr: 0, value, .. } => Intercepted::Value(value | cr0::AM),
            _ => Intercepted::Native,
        }
    }
}

#[test]
fn a_bus_can_put_another_value_in_place_of_a_control_register() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(rcx, cr0)?;
        a.smsw(edx)?;
        a.mov(rsi, cr8)?;
        a.mov(cr0, rbp)?;
        a.hlt()
    });
    let own = cpu.state.cr0;
    cpu.state.gpr[gpr::RBP] = own;
    assert_eq!(cpu.run(&mut Shadowing(Board::new(&ram))), CpuExit::Halt);
    let seen = own | cr0::TS;
    assert_eq!([gpr::RCX, gpr::RDX, gpr::RSI].map(|register| cpu.state.gpr[register]), [seen, seen & 0xffff_ffff, 9]);
    assert_eq!((cpu.state.cr0, cpu.state.cr8), (own | cr0::AM, 0));
}
