//! What ends a run, and how it goes on.

use iced_x86::code_asm::*;
use privet_cpu::state::{Injection, cr4, gpr};
use privet_cpu::{
    Access, Bus, Config, Cpu, CpuExit, CpuState, CpuidResult, Datum, Exception, Intercept, Intercepted, Resolve,
};

use crate::descriptor_tables::{stop_at_vmcall, with_idt};
use crate::machine::{Ram, TestBus, long_mode};

const CODE: u64 = 0x8000;
/// The first address behind RAM.
const HOLE: u64 = 1 << 20;

fn machine(assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> (Ram, Cpu) {
    let ram = Ram::new(HOLE as usize);
    let mut cpu = Cpu::new(Config::default());
    long_mode(&mut cpu, &ram, 0);
    with_idt(&mut cpu, &ram);
    let mut a = CodeAssembler::new(64).expect("64-bit");
    assemble(&mut a).expect("the program assembles");
    ram.write(CODE, &a.assemble(CODE).expect("the program encodes"));
    cpu.state.rip = CODE;
    cpu.state.gpr[gpr::RBX] = HOLE;
    cpu.state.gpr[gpr::RSP] = 0xa000;
    (ram, cpu)
}

fn datum(bytes: &[u8]) -> Datum {
    Datum::from_slice(bytes)
}

#[test]
fn an_mmio_read_completes_with_the_data_given() {
    let (ram, mut cpu) = machine(|a| {
        a.add(eax, dword_ptr(rbx + 4))?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    cpu.state.gpr[gpr::RAX] = 1;
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioRead { gpa: HOLE + 4, len: 4 });
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RAX]), (CODE, 1), "nothing has happened yet");
    cpu.complete_mmio_read(&[2, 0, 0, 1]);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 0x0100_0003);
}

#[test]
fn an_mmio_write_leaves_after_its_instruction() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(word_ptr(rbx), 0x1234)?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE, data: datum(&[0x34, 0x12]) });
    assert_eq!(cpu.state.rip, CODE + 5);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
}

#[test]
fn read_modify_write_of_mmio() {
    let (ram, mut cpu) = machine(|a| {
        a.lock().inc(qword_ptr(rbx))?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioRead { gpa: HOLE, len: 8 });
    cpu.complete_mmio_read(&[0xff, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE, data: datum(&[0, 1, 0, 0, 0, 0, 0, 0]) });
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
}

#[test]
fn wide_and_straddling_accesses_are_fragments() {
    let (ram, mut cpu) = machine(|a| {
        a.movups(xmm0, xmmword_ptr(rbx))?;
        a.mov(qword_ptr(rbx - 4), rax)?;
        a.mov(rcx, qword_ptr(rbx + 0xffc))?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    cpu.state.gpr[gpr::RAX] = 0x8877_6655_4433_2211;
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioRead { gpa: HOLE, len: 8 });
    cpu.complete_mmio_read(&[1; 8]);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioRead { gpa: HOLE + 8, len: 8 });
    cpu.complete_mmio_read(&[2; 8]);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE, data: datum(&[0x55, 0x66, 0x77, 0x88]) });
    assert_eq!(cpu.state.fpu.xmm[0], 0x0202_0202_0202_0202_0101_0101_0101_0101);
    assert_eq!(ram.read(HOLE - 4, 4), [0x11, 0x22, 0x33, 0x44]);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioRead { gpa: HOLE + 0xffc, len: 4 });
    cpu.complete_mmio_read(&[3; 4]);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioRead { gpa: HOLE + 0x1000, len: 4 });
    cpu.complete_mmio_read(&[4; 4]);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RCX], 0x0404_0404_0303_0303);
}

#[test]
fn repeated_moves_to_mmio_go_one_by_one() {
    let (ram, mut cpu) = machine(|a| {
        a.rep().movsd()?;
        a.hlt()
    });
    ram.write(0x9000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    cpu.state.gpr[gpr::RSI] = 0x9000;
    cpu.state.gpr[gpr::RDI] = HOLE;
    cpu.state.gpr[gpr::RCX] = 2;
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE, data: datum(&[1, 2, 3, 4]) });
    assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.rip), (1, CODE));
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE + 4, data: datum(&[5, 6, 7, 8]) });
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RCX], 0);
}

#[test]
fn port_io() {
    let (ram, mut cpu) = machine(|a| {
        a.out(0x42, al)?;
        a.mov(edx, 0x3f8)?;
        a.in_(eax, dx)?;
        a.hlt()
    });
    cpu.state.gpr[gpr::RAX] = 0x1122;
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::PortOut { port: 0x42, data: datum(&[0x22]) });
    assert_eq!(cpu.state.rip, CODE, "KVM moves RIP when it is run again");
    cpu.kick().stop();
    assert_eq!(cpu.run(&mut bus), CpuExit::Stopped);
    assert_eq!(cpu.state.rip, CODE + 2, "a stop does not keep an instruction from being completed");
    cpu.kick().clear_stop();
    assert_eq!(cpu.run(&mut bus), CpuExit::PortIn { port: 0x3f8, size: 4, count: 1 });
    cpu.complete_port_in(&[1, 2, 3, 4]);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 0x0403_0201);
}

#[test]
fn a_moved_rip_abandons_the_completion() {
    let (ram, mut cpu) = machine(|a| {
        a.out(0x42, al)?;
        a.out(0x43, al)?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::PortOut { port: 0x42, data: datum(&[0]) });
    cpu.state.rip += 2;
    assert_eq!(cpu.run(&mut bus), CpuExit::PortOut { port: 0x43, data: datum(&[0]) });
}

#[test]
fn string_port_io() {
    let (ram, mut cpu) = machine(|a| {
        a.rep().insb()?;
        a.mov(ecx, 2)?;
        a.mov(esi, 0x9000)?;
        a.rep().outsw()?;
        a.hlt()
    });
    cpu.state.gpr[gpr::RDX] = 0x80;
    cpu.state.gpr[gpr::RDI] = 0x9000;
    cpu.state.gpr[gpr::RCX] = 3;
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::PortIn { port: 0x80, size: 1, count: 3 });
    // Upstream's userspace_io_test changes RCX here.
    cpu.state.gpr[gpr::RCX] = 8192;
    let mut total = 0;
    let mut count = 3;
    loop {
        cpu.complete_port_in(&vec![0xaa; count as usize]);
        total += count;
        match cpu.run(&mut bus) {
            CpuExit::PortIn { port: 0x80, size: 1, count: next } => count = next,
            exit => {
                assert_eq!(exit, CpuExit::PortOut { port: 0x80, data: datum(&[0xaa, 0xaa]) });
                break;
            }
        }
    }
    assert_eq!(total, 8192);
    assert!(ram.read(0x9000, 8192).iter().all(|&byte| byte == 0xaa));
    assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.gpr[gpr::RSI]), (1, 0x9002));
    assert!(matches!(cpu.run(&mut bus), CpuExit::PortOut { .. }));
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
}

#[test]
fn intercepts() {
    let (ram, mut cpu) = machine(|a| {
        a.vmmcall()?;
        a.cpuid()?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    bus.intercept = Some(stop_at_vmcall);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!(cpu.state.rip, CODE);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus, "until the caller moves RIP, the instruction is next");
    cpu.state.gpr[gpr::RAX] = 7;
    cpu.skip_instruction();
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!((cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RDX]), (7, 4));

    bus.intercept = Some(|state, what| {
        if what == Intercept::Cpuid {
            state.gpr[gpr::RAX] = 99;
            Intercepted::Done
        } else if what == Intercept::Hlt {
            Intercepted::Reflect(Exception::vc(0x78))
        } else {
            Intercepted::Native
        }
    });
    cpu.state.rip = CODE + 3;
    ram.write(0x5000 + 29 * 16, &[0xeb, 0xfe]);
    cpu.kick().stop();
    assert_eq!(cpu.run(&mut bus), CpuExit::Stopped);
    cpu.kick().clear_stop();
    let kick = std::sync::Arc::clone(cpu.kick());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            kick.stop();
        });
        assert_eq!(cpu.run(&mut bus), CpuExit::Stopped);
    });
    assert_eq!(cpu.state.gpr[gpr::RAX], 99);
    assert_eq!(cpu.state.rip, 0x5000 + 29 * 16, "in the handler of #VC");
    assert_eq!(ram.read_u64(cpu.state.gpr[gpr::RSP]), 0x78);
}

#[test]
fn unknown_instructions_say_so() {
    let (ram, mut cpu) = machine(|a| {
        a.nop()?;
        a.maskmovq(mm0, mm1)
    });
    let exit = cpu.run(&mut TestBus::new(&ram));
    let CpuExit::UnknownInstruction { rip, bytes, len } = exit else { panic!("{exit:?}") };
    assert_eq!((rip, &bytes[..usize::from(len)]), (CODE + 1, &[0x0f, 0xf7, 0xc1][..]));
    assert_eq!(cpu.state.rip, CODE + 1);
}

#[test]
fn code_in_a_hole_and_tables_in_a_hole() {
    let (ram, mut cpu) = machine(|a| a.jmp(rbx));
    assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::NoMemory { gpa: HOLE });
    cpu.state.cr3 = 2 * HOLE;
    assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::NoMemory { gpa: 2 * HOLE });
}

#[test]
fn code_that_changes_is_decoded_anew() {
    let (ram, mut cpu) = machine(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, 1)?;
        a.inc(ecx)?;
        // The guest rewrites the immediate of its first instruction, then runs it again.
        a.mov(byte_ptr(CODE + 1), 2)?;
        a.cmp(ecx, 2)?;
        a.jne(top)?;
        a.hlt()
    });
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 2);
    // And so does the host.
    ram.write(CODE + 1, &[3]);
    ram.write(CODE + 7, &[0x90; 8]);
    cpu.state.rip = CODE;
    cpu.state.gpr[gpr::RCX] = 1;
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 3);
}

#[test]
fn an_instruction_across_two_pages() {
    let (ram, mut cpu) = machine(|a| a.hlt());
    // mov eax, 0x44332211; hlt
    ram.write(0x8ffe, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    for second in [0x44, 0x55] {
        ram.write(0x9002, &[second]);
        cpu.state.rip = 0x8ffe;
        assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::Halt);
        assert_eq!(cpu.state.gpr[gpr::RAX], 0x33_2211 | u64::from(second) << 24);
        assert_eq!(cpu.state.rip, 0x9004);
    }
}

#[test]
fn translation_as_the_host_asks_for_it() {
    let (ram, mut cpu) = machine(|a| a.hlt());
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.translate(&mut bus, 0x1_2345_6789), Some(0x1_2345_6789));
    assert_eq!(cpu.translate(&mut bus, 1 << 45), None);
    assert_eq!(cpu.translate(&mut bus, 1 << 60), None);
}

/// A bus on which one page is something else than memory.
struct Special<'a> {
    ram: TestBus<'a>,
    gpa: u64,
    resolve: Resolve,
    asked: u32,
}

impl Bus for Special<'_> {
    fn resolve(&mut self, state: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        if gpa != self.gpa {
            return self.ram.resolve(state, gpa, access);
        }
        self.asked += 1;
        self.resolve
    }

    fn cpuid(&mut self, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        self.ram.cpuid(state, leaf, subleaf)
    }

    fn rdmsr(&mut self, state: &CpuState, index: u32) -> Result<u64, Exception> {
        self.ram.rdmsr(state, index)
    }

    fn wrmsr(&mut self, state: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
        self.ram.wrmsr(state, index, value)
    }

    fn tsc(&mut self, state: &CpuState) -> u64 {
        self.ram.tsc(state)
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, length: u8) -> Intercepted {
        self.ram.intercept(state, what, length)
    }
}

#[test]
fn a_bus_ends_or_reflects_an_access() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(eax, dword_ptr(0x9000))?;
        a.hlt()
    });
    ram.write(0x9000, &[7]);
    let mut bus = Special { ram: TestBus::new(&ram), gpa: 0x9000, resolve: Resolve::Exit, asked: 0 };
    bus.ram.intercept = Some(stop_at_vmcall);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus, "the instruction runs again");
    assert_eq!((cpu.state.rip, bus.asked), (CODE, 2));
    bus.gpa = 0;
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 7);

    let (ram, mut cpu) = machine(|a| a.mov(eax, dword_ptr(0x9000)));
    // The stack is elsewhere, else delivering #VC would raise another.
    cpu.state.gpr[gpr::RSP] = 0xc000;
    let reflect = Resolve::Reflect(Exception::vc(0x400));
    let mut bus = Special { ram: TestBus::new(&ram), gpa: 0x9000, resolve: reflect, asked: 0 };
    bus.ram.intercept = Some(stop_at_vmcall);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!(cpu.state.rip, 0x5000 + 29 * 16);
    assert_eq!(ram.read_u64(cpu.state.gpr[gpr::RSP]), 0x400);
    assert_eq!(ram.read_u64(cpu.state.gpr[gpr::RSP] + 8), CODE);
}

#[test]
fn an_exit_while_an_exception_is_delivered_keeps_the_exception() {
    let (ram, mut cpu) = machine(|a| a.ud2());
    cpu.state.gpr[gpr::RSP] = 0x9800;
    let mut bus = Special { ram: TestBus::new(&ram), gpa: 0x9000, resolve: Resolve::Exit, asked: 0 };
    bus.ram.intercept = Some(stop_at_vmcall);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!((cpu.state.rip, bus.asked), (CODE, 1));
    assert_eq!(cpu.state.injection, Some(Injection::Exception(Exception::ud())));
    bus.gpa = 0;
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!(cpu.state.rip, 0x5000 + 6 * 16);
    assert_eq!(cpu.state.injection, None);
}

#[test]
fn extended_state_goes_to_memory_and_comes_back() {
    let (ram, mut cpu) = machine(|a| {
        a.xsave64(ptr(0x9000))?;
        a.pxor(xmm3, xmm3)?;
        a.fninit()?;
        a.xrstor64(ptr(0x9000))?;
        a.fxsave64(ptr(0xb000))?;
        a.hlt()
    });
    cpu.state.cr4 |= cr4::OSXSAVE;
    cpu.state.xcr0 = 7;
    cpu.state.gpr[gpr::RAX] = 7;
    let fpu = &mut cpu.state.fpu;
    (fpu.fcw, fpu.xmm[3], fpu.ymm_high[9], fpu.mxcsr) = (0x27f, 0x1234 << 100, 0x5678, 0x1fa0);
    let before = fpu.clone();
    assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::Halt);
    assert_eq!(cpu.state.fpu, before);
    assert_eq!(ram.read_u64(0x9000 + 512), 7, "XSTATE_BV");
    assert_eq!(ram.read_u64(0x9000 + 576 + 9 * 16), 0x5678);
    assert_eq!(ram.read(0xb000, 416), ram.read(0x9000, 416));
    let image: [u8; 4096] = ram.read(0x9000, 4096).try_into().expect("4096 bytes");
    assert_eq!(*before.xsave(7), image, "the same image as for the host");
}

#[test]
fn an_interrupt_frame_in_mmio_is_not_delivered() {
    let (ram, mut cpu) = machine(|a| a.ud2());
    cpu.state.gpr[gpr::RSP] = HOLE + 0x100;
    let exit = cpu.run(&mut TestBus::new(&ram));
    assert!(matches!(exit, CpuExit::NoMemory { gpa } if (HOLE..HOLE + 0x100).contains(&gpa)), "{exit:?}");
    assert!(cpu.state.injection.is_some());
    assert_eq!(cpu.state.rip, CODE);
}

#[test]
fn an_instruction_that_meets_mmio_is_the_emulators_in_all_its_parts() {
    let (ram, mut cpu) = machine(|a| {
        a.mov(qword_ptr(rbx - 16), rax)?; // The processor's.
        a.mov(qword_ptr(rbx - 4), rax)?; // The emulator's, also where it is memory.
        a.mov(rdi, rbx)?;
        a.lea(rsi, ptr(rbx - 32))?;
        a.movsq()?; // Also what it reads.
        a.mov(rcx, qword_ptr(rbx - 16))?; // The processor's again.
        a.hlt()
    });
    let emulators = Ram::new(HOLE as usize);
    emulators.write(0, &ram.read(0, HOLE as usize));
    emulators.write_u64(HOLE - 32, 9);
    cpu.state.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
    let mut bus = TestBus { emulators: Some(&emulators), ..TestBus::new(&ram) };
    let half = datum(&[0x44, 0x33, 0x22, 0x11]);
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE, data: half });
    assert_eq!(cpu.run(&mut bus), CpuExit::MmioWrite { gpa: HOLE, data: datum(&9u64.to_le_bytes()) });
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RCX], 0x1122_3344_5566_7788);
    assert_eq!((ram.read_u64(HOLE - 8), emulators.read_u64(HOLE - 8)), (0, 0x5566_7788 << 32));
    assert_eq!(emulators.read_u64(HOLE - 16), 0);
}
