//! What exceptions and privilege changes do, seen from their frames.

use iced_x86::code_asm::*;
use privet_cpu::state::{cr0, cr4, gpr};
use privet_cpu::{Config, Cpu, CpuExit, Event, Exception, Seg, Segment, flags};

use crate::descriptor_tables::{
    HANDLERS, IDT, IST1, KERNEL_CS, KERNEL_DS, RSP0, USER_CS, USER_DS, frame, stop_at_vmcall, with_idt,
};
use crate::machine::{RWU, Ram, TABLES, TestBus, long_mode};

pub(crate) const CODE: u64 = 0x8000;
const STACK: u64 = 0xa000;
/// A region with 4 KiB pages, in the second GiB of linear addresses; its page table maps RAM from 0.
pub(crate) const PAGED: u64 = 1 << 30;
const PAGE_TABLE: u64 = 0xc000;

/// A CPU with handlers and a region of small pages.
pub(crate) struct Machine {
    pub(crate) ram: Ram,
    pub(crate) cpu: Cpu,
}

impl Machine {
    pub(crate) fn new(cpl: u16) -> Machine {
        let ram = Ram::new(1 << 20);
        let mut cpu = Cpu::new(Config::default());
        long_mode(&mut cpu, &ram, cpl);
        with_idt(&mut cpu, &ram);
        ram.write_u64(TABLES + 0x1000 + 8, 0xb000 | RWU);
        ram.write_u64(0xb000, PAGE_TABLE | RWU);
        for index in 0..16 {
            ram.write_u64(PAGE_TABLE + index * 8, index << 12 | RWU);
        }
        cpu.state.gpr[gpr::RSP] = STACK;
        cpu.state.rip = CODE;
        Machine { ram, cpu }
    }

    pub(crate) fn pte(&self, index: u64, bits: u64) {
        self.ram.write_u64(PAGE_TABLE + index * 8, index << 12 | bits);
    }

    pub(crate) fn run(
        &mut self,
        assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> CpuExit {
        let mut a = CodeAssembler::new(64).expect("64-bit");
        assemble(&mut a).expect("the program assembles");
        self.ram.write(CODE, &a.assemble(CODE).expect("the program encodes"));
        self.go()
    }

    fn go(&mut self) -> CpuExit {
        let mut bus = TestBus::new(&self.ram);
        bus.intercept = Some(stop_at_vmcall);
        self.cpu.run(&mut bus)
    }

    /// Runs a program that ends in a handler; returns the vector.
    pub(crate) fn vector(
        &mut self,
        assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> u64 {
        assert_eq!(self.run(assemble), CpuExit::Bus);
        self.handler()
    }

    fn handler(&self) -> u64 {
        assert!(self.cpu.state.rip >= HANDLERS, "no handler at {:#x}", self.cpu.state.rip);
        (self.cpu.state.rip - HANDLERS) / 16
    }

    /// The error code on top of the stack.
    pub(crate) fn error_code(&self) -> u64 {
        self.ram.read_u64(self.cpu.state.gpr[gpr::RSP])
    }

    /// #PF: its error code and address.
    pub(crate) fn page_fault(
        &mut self,
        assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> (u64, u64) {
        assert_eq!(self.vector(assemble), 14);
        (self.error_code(), self.cpu.state.cr2)
    }
}

#[test]
fn a_fault_from_ring_3_switches_to_the_stack_of_ring_0() {
    let mut machine = Machine::new(3);
    machine.cpu.state.segments[Seg::Cs as usize].selector = USER_CS;
    machine.cpu.state.segments[Seg::Ss as usize].selector = USER_DS;
    machine.cpu.state.rflags |= flags::IF | flags::CF;
    assert_eq!(machine.vector(|a| a.ud2()), 6);
    let expected = [CODE, USER_CS.into(), 2 | flags::RF | flags::IF | flags::CF, STACK, USER_DS.into()];
    assert_eq!(frame(&machine.ram, RSP0 - 40), expected);
    assert_eq!(machine.cpu.state.gpr[gpr::RSP], RSP0 - 40);
    assert_eq!(machine.cpu.state.cpl(), 0);
    assert_eq!(machine.cpu.state.segment(Seg::Cs).selector, KERNEL_CS);
    assert_eq!(machine.cpu.state.segment(Seg::Ss).selector, 0);
    assert_eq!(machine.cpu.state.rflags, 2 | flags::CF, "an interrupt gate closes interrupts");
}

#[test]
fn the_stack_is_aligned_before_the_frame() {
    let mut machine = Machine::new(0);
    machine.cpu.state.gpr[gpr::RSP] = STACK - 5;
    assert_eq!(machine.vector(|a| a.ud2()), 6);
    assert_eq!(machine.cpu.state.gpr[gpr::RSP], STACK - 16 - 40);
    assert_eq!(frame(&machine.ram, STACK - 56)[3], STACK - 5);
}

#[test]
fn page_fault_error_codes() {
    const P: u64 = 1;
    const W: u64 = 2;
    const U: u64 = 4;
    const RSVD: u64 = 8;
    const I: u64 = 16;
    let nx = 1_u64 << 63;
    // (PTE bits, CPL, write, expected error code)
    let data = [
        (0, 0, false, 0),
        (0, 0, true, W),
        (0, 3, true, W | U),
        (0b101, 0, true, P | W),
        (0b101, 3, true, P | W | U),
        (0b011, 3, false, P | U),
        (RWU | 1 << 51, 3, false, P | U | RSVD),
    ];
    for (bits, cpl, write, expected) in data {
        let mut machine = Machine::new(cpl);
        machine.pte(15, bits);
        let target = PAGED + 0xf123;
        let fault = machine.page_fault(|a| {
            a.mov(rbx, target)?;
            if write { a.mov(byte_ptr(rbx), al) } else { a.mov(al, byte_ptr(rbx)) }
        });
        assert_eq!(fault, (expected, target), "PTE {bits:#x} at CPL {cpl}");
    }
    let fetch = [(0, 0, I), (RWU | nx, 0, P | I), (0b011, 3, P | U | I)];
    for (bits, cpl, expected) in fetch {
        let mut machine = Machine::new(cpl);
        machine.pte(15, bits);
        let target = PAGED + 0xf000;
        let fault = machine.page_fault(|a| {
            a.mov(rbx, target)?;
            a.jmp(rbx)
        });
        assert_eq!(fault, (expected, target), "fetch through PTE {bits:#x} at CPL {cpl}");
    }
}

#[test]
fn supervisor_protections() {
    let read_user_page = |setup: fn(&mut Cpu)| {
        let mut machine = Machine::new(0);
        // The code has to be in a supervisor page for SMEP: run it from the paged region.
        for index in 0..15 {
            machine.pte(index, 0b011);
        }
        setup(&mut machine.cpu);
        machine.cpu.state.rip = PAGED + CODE;
        machine.cpu.state.gpr[gpr::RSP] = PAGED + STACK;
        machine.cpu.state.idtr.base = PAGED + IDT;
        let mut a = CodeAssembler::new(64).expect("64-bit");
        a.mov(rbx, PAGED + 0xf000).unwrap();
        a.mov(al, byte_ptr(rbx)).unwrap();
        a.vmcall().unwrap();
        machine.ram.write(CODE, &a.assemble(PAGED + CODE).unwrap());
        machine.go();
        machine.cpu.state.rip
    };
    let passed = PAGED + CODE + 12;
    assert_eq!(read_user_page(|_| {}), passed);
    assert_eq!(
        read_user_page(|cpu| {
            cpu.state.cr4 |= cr4::SMAP;
            cpu.state.rflags |= flags::AC;
        }),
        passed
    );
    assert_ne!(read_user_page(|cpu| cpu.state.cr4 |= cr4::SMAP), passed);
    // SMEP: the handlers are in user pages, so that the fault cannot be delivered either.
    let mut machine = Machine::new(0);
    machine.cpu.state.cr4 |= cr4::SMEP;
    assert_eq!(machine.run(|a| a.nop()), CpuExit::Shutdown);
}

#[test]
fn write_protection_of_supervisor_pages_follows_cr0_wp() {
    let mut machine = Machine::new(0);
    machine.pte(15, 0b001);
    machine.cpu.state.cr0 &= !cr0::WP;
    let program = |a: &mut CodeAssembler| {
        a.mov(rbx, PAGED + 0xf000)?;
        a.mov(byte_ptr(rbx), 7)?;
        a.vmcall()
    };
    assert_eq!(machine.run(program), CpuExit::Bus);
    assert_eq!(machine.ram.read(0xf000, 1), [7]);
    let mut machine = Machine::new(0);
    machine.pte(15, 0b001);
    assert_eq!(machine.page_fault(program), (3, PAGED + 0xf000));
}

#[test]
fn accessed_and_dirty_bits() {
    let mut machine = Machine::new(0);
    machine.run(|a| {
        a.mov(rbx, PAGED + 0xf000)?;
        a.mov(al, byte_ptr(rbx))?;
        a.vmcall()
    });
    assert_eq!(machine.ram.read_u64(PAGE_TABLE + 15 * 8) & 0x60, 0x20);
    assert_eq!(machine.ram.read_u64(PAGE_TABLE + 14 * 8) & 0x60, 0);
    machine.cpu.state.rip = CODE;
    machine.run(|a| {
        a.mov(rbx, PAGED + 0xf000)?;
        a.mov(byte_ptr(rbx), al)?;
        a.vmcall()
    });
    assert_eq!(machine.ram.read_u64(PAGE_TABLE + 15 * 8) & 0x60, 0x60);
    assert_eq!(machine.ram.read_u64(TABLES) & 0x60, 0x20, "no dirty bit above the leaf");
}

#[test]
fn invlpg_and_cr3_writes_drop_translations() {
    let mut machine = Machine::new(0);
    machine.ram.write(0xd000, &[1]);
    machine.ram.write(0xe000, &[2]);
    machine.run(|a| {
        a.mov(rbx, PAGED + 0xd000)?;
        a.mov(cl, byte_ptr(rbx))?;
        // Point the page at 0xe000, look again without and with a flush.
        a.mov(rdi, PAGE_TABLE + 13 * 8)?;
        a.mov(qword_ptr(rdi), 0xe007)?;
        a.invlpg(ptr(rbx))?;
        a.mov(ch, byte_ptr(rbx))?;
        a.mov(qword_ptr(rdi), 0xd007)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(dl, byte_ptr(rbx))?;
        a.vmcall()
    });
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], 0x201);
    assert_eq!(machine.cpu.state.gpr[gpr::RDX] & 0xff, 1);
}

#[test]
fn an_instruction_that_faults_has_no_effect() {
    let mut machine = Machine::new(0);
    machine.pte(15, 0);
    let before = machine.cpu.state.gpr;
    // The write straddles into the missing page: its first half must not be written.
    machine.cpu.state.gpr[gpr::RBX] = PAGED + 0xeffc;
    machine.cpu.state.gpr[gpr::RAX] = u64::MAX;
    assert_eq!(machine.page_fault(|a| a.add(qword_ptr(rbx), rax)), (2, PAGED + 0xf000));
    assert_eq!(machine.ram.read(0xeffc, 4), [0; 4]);
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], before[gpr::RCX]);
    assert_eq!(frame(&machine.ram, machine.cpu.state.gpr[gpr::RSP] + 8)[0], CODE);
}

#[test]
fn a_repeated_string_instruction_faults_in_the_middle() {
    let mut machine = Machine::new(0);
    machine.pte(15, 0);
    machine.cpu.state.gpr[gpr::RDI] = PAGED + 0xeff0;
    machine.cpu.state.gpr[gpr::RCX] = 32;
    machine.cpu.state.gpr[gpr::RAX] = 0x55;
    assert_eq!(machine.page_fault(|a| a.rep().stosb()), (2, PAGED + 0xf000));
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], 16);
    assert_eq!(machine.cpu.state.gpr[gpr::RDI], PAGED + 0xf000);
    assert_eq!(machine.ram.read(0xeff0, 16), [0x55; 16]);
    assert_eq!(frame(&machine.ram, machine.cpu.state.gpr[gpr::RSP] + 8)[0], CODE, "RIP stays");
}

#[test]
fn general_protection() {
    let code = |cpl, assemble: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        let mut machine = Machine::new(cpl);
        let vector = machine.vector(assemble);
        (vector, machine.error_code())
    };
    assert_eq!(code(3, |a| a.hlt()), (13, 0));
    assert_eq!(code(3, |a| a.mov(rax, cr0)), (13, 0));
    assert_eq!(code(3, |a| a.int(0x20)), (13, 0x20 * 8 + 2));
    assert_eq!(
        code(0, |a| {
            a.mov(rax, 0x8000_0000_0000_u64)?;
            a.mov(rax, qword_ptr(rax))
        }),
        (13, 0)
    );
    assert_eq!(
        code(0, |a| {
            a.mov(rbp, 0x8000_0000_0000_u64)?;
            a.mov(rax, qword_ptr(rbp))
        }),
        (12, 0),
        "relative to the stack it is #SS"
    );
    assert_eq!(
        code(0, |a| {
            a.mov(rax, 16_u64)?;
            a.mov(cr8, rax)
        }),
        (13, 0),
        "CR8 has four bits"
    );
    assert_eq!(
        code(0, |a| {
            a.mov(eax, 0x70)?;
            a.mov(ds, eax)
        }),
        (13, 0x70)
    );
    assert_eq!(
        code(0, |a| {
            a.mov(eax, 0x8)?;
            a.mov(ss, eax)
        }),
        (13, 0x8)
    );
}

#[test]
fn divide_and_invalid_opcode() {
    let mut machine = Machine::new(0);
    assert_eq!(
        machine.vector(|a| {
            a.xor(ecx, ecx)?;
            a.div(ecx)
        }),
        0
    );
    let mut machine = Machine::new(0);
    assert_eq!(machine.vector(|a| a.db(&[0x0f, 0x04])), 6);
}

#[test]
fn double_and_triple_fault() {
    let mut machine = Machine::new(0);
    // The gate of #GP is not present: #NP while delivering #GP is a double fault, on its own stack.
    machine.ram.write_u64(IDT + 13 * 16, 0);
    assert_eq!(
        machine.vector(|a| {
            a.mov(rax, 1_u64 << 60)?;
            a.mov(cr4, rax)
        }),
        8
    );
    assert_eq!(machine.cpu.state.gpr[gpr::RSP], IST1 - 48);
    assert_eq!(machine.error_code(), 0);
    let mut machine = Machine::new(0);
    machine.cpu.state.idtr.limit = 0;
    assert_eq!(machine.run(|a| a.ud2()), CpuExit::Shutdown);
}

#[test]
fn interrupt_return_to_ring_3_and_back_by_int() {
    let mut machine = Machine::new(0);
    assert_eq!(
        machine.run(|a| {
            let mut user = a.create_label();
            a.push(i32::from(USER_DS))?;
            a.push(0x9000)?;
            a.push(0x202)?;
            a.push(i32::from(USER_CS))?;
            a.lea(rax, ptr(user))?;
            a.push(rax)?;
            a.iretq()?;
            a.set_label(&mut user)?;
            a.mov(ecx, cs)?;
            a.int(0x80)
        }),
        CpuExit::Bus
    );
    assert_eq!(machine.handler(), 0x80);
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], u64::from(USER_CS));
    let frame = frame(&machine.ram, RSP0 - 40);
    assert_eq!(frame[1..], [USER_CS.into(), 0x202, 0x9000, USER_DS.into()]);
    assert_eq!(machine.cpu.state.gpr[gpr::RSP], RSP0 - 40, "no error code");
}

#[test]
fn syscall_and_sysret() {
    let mut machine = Machine::new(3);
    let state = &mut machine.cpu.state;
    state.star = 0x0010_0008 << 32;
    state.lstar = 0x9000;
    state.sfmask = flags::IF | flags::CF;
    state.rflags |= flags::IF | flags::CF | flags::ZF;
    let mut kernel = CodeAssembler::new(64).expect("64-bit");
    kernel.mov(edx, cs).unwrap();
    kernel.pushfq().unwrap();
    kernel.pop(rbx).unwrap();
    kernel.sysretq().unwrap();
    machine.ram.write(0x9000, &kernel.assemble(0x9000).unwrap());
    assert_eq!(
        machine.run(|a| {
            a.syscall()?;
            a.mov(esi, cs)?;
            a.mov(edi, ss)?;
            a.vmcall()
        }),
        CpuExit::Bus
    );
    let state = &machine.cpu.state;
    assert_eq!(state.gpr[gpr::RDX], 8);
    assert_eq!(state.gpr[gpr::RBX], 2 | flags::ZF);
    assert_eq!(state.gpr[gpr::RCX], CODE + 2);
    assert_eq!((state.gpr[gpr::RSI], state.gpr[gpr::RDI]), (0x23, 0x1b));
    assert_eq!(state.cpl(), 3);
    assert_eq!(state.rflags & (flags::IF | flags::CF | flags::ZF), flags::IF | flags::CF | flags::ZF);
}

#[test]
fn events_wait_for_their_window() {
    let mut machine = Machine::new(0);
    let mut a = CodeAssembler::new(64).expect("64-bit");
    a.mov(ecx, 1).unwrap();
    a.sti().unwrap();
    a.inc(ecx).unwrap();
    a.inc(ecx).unwrap();
    a.vmcall().unwrap();
    machine.ram.write(CODE, &a.assemble(CODE).unwrap());
    let mut bus = TestBus::new(&machine.ram);
    bus.intercept = Some(stop_at_vmcall);
    bus.events.push(Event::Interrupt(0x90));
    machine.cpu.kick().raise_event();
    assert_eq!(machine.cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!(machine.handler(), 0x90);
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], 2, "one instruction in the shadow of STI");
}

#[test]
fn injected_exceptions_and_nmi_blocking() {
    let mut machine = Machine::new(0);
    machine.cpu.inject(Exception::pf(0x1234, 2));
    assert_eq!(machine.vector(|a| a.nop()), 14);
    assert_eq!(machine.cpu.state.cr2, 0x1234);
    assert_eq!(machine.error_code(), 2);
    assert_eq!(machine.cpu.state.injection, None);
    let mut bus = TestBus::new(&machine.ram);
    bus.intercept = Some(stop_at_vmcall);
    bus.events.extend([Event::Nmi, Event::Nmi]);
    machine.cpu.skip_instruction();
    machine.cpu.state.rip = CODE;
    machine.cpu.kick().raise_event();
    assert_eq!(machine.cpu.run(&mut bus), CpuExit::Bus);
    assert_eq!(machine.handler(), 2);
    assert!(machine.cpu.state.nmi_blocked);
    assert_eq!(bus.events.len(), 1, "the second waits for IRET");
}

#[test]
fn single_step_and_breakpoints() {
    let mut machine = Machine::new(0);
    machine.cpu.state.rflags |= flags::TF;
    assert_eq!(
        machine.vector(|a| {
            a.nop()?;
            a.nop()
        }),
        1
    );
    assert_eq!(machine.cpu.state.dr6 & (1 << 14), 1 << 14);
    assert_eq!(frame(&machine.ram, machine.cpu.state.gpr[gpr::RSP])[0], CODE + 1);

    let mut machine = Machine::new(0);
    machine.cpu.state.dr[0] = 0x9008;
    // DR7: local 0, write, 8 bytes.
    machine.cpu.state.dr7 = 0x400 | 1 | 0b1001 << 16;
    assert_eq!(
        machine.vector(|a| {
            a.mov(ebx, 0x9000)?;
            a.mov(byte_ptr(rbx), 1)?;
            a.mov(al, byte_ptr(rbx + 12))?;
            a.mov(byte_ptr(rbx + 12), 1)?;
            a.inc(ecx)
        }),
        1
    );
    assert_eq!(machine.cpu.state.dr6 & 0xf, 1);
    assert_eq!(machine.ram.read(0x900c, 1), [1], "a data breakpoint is a trap");

    let mut machine = Machine::new(0);
    machine.cpu.state.dr[1] = CODE + 1;
    machine.cpu.state.dr7 = 0x400 | 1 << 2;
    assert_eq!(
        machine.vector(|a| {
            a.nop()?;
            a.inc(ecx)
        }),
        1
    );
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], 0, "an instruction breakpoint is a fault");
    assert_eq!(machine.cpu.state.dr6 & 0xf, 2);
}

#[test]
fn sse_is_gated() {
    let mut machine = Machine::new(0);
    machine.cpu.state.cr0 |= cr0::TS;
    assert_eq!(machine.vector(|a| a.paddb(xmm0, xmm1)), 7);
    let mut machine = Machine::new(0);
    machine.cpu.state.cr4 &= !cr4::OSFXSR;
    assert_eq!(machine.vector(|a| a.paddb(xmm0, xmm1)), 6);
    let mut machine = Machine::new(0);
    assert_eq!(
        machine.vector(|a| {
            a.mov(ebx, 0x9001)?;
            a.movaps(xmm0, xmmword_ptr(rbx))
        }),
        13
    );
    // One divided by zero, with that exception not masked.
    let mut machine = Machine::new(0);
    machine.cpu.state.fpu.mxcsr = 0x1d80;
    machine.cpu.state.fpu.xmm[0] = 1.0_f32.to_bits().into();
    assert_eq!(machine.vector(|a| a.divss(xmm0, xmm1)), 19);
    assert_eq!(machine.cpu.state.fpu.mxcsr, 0x1d84);
    assert_eq!(machine.cpu.state.fpu.xmm[0], 1.0_f32.to_bits().into(), "no result");
}

#[test]
fn segments_of_ring_3() {
    let mut machine = Machine::new(0);
    assert_eq!(
        machine.run(|a| {
            a.mov(eax, i32::from(KERNEL_DS))?;
            a.mov(ds, eax)?;
            a.xor(eax, eax)?;
            a.mov(es, eax)?;
            a.mov(ecx, 0xc000_0100_u32)?;
            a.mov(eax, 0x9000)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            a.mov(rbx, qword_ptr(0).fs())?;
            a.vmcall()
        }),
        CpuExit::Bus
    );
    assert_eq!(machine.cpu.state.segment(Seg::Ds), &Segment { selector: KERNEL_DS, ..Segment::data(KERNEL_DS) });
    assert!(machine.cpu.state.segment(Seg::Es).unusable);
    assert_eq!(machine.cpu.state.segment(Seg::Fs).base, 0x9000);
}

#[test]
fn far_pointers_go_to_a_register_and_a_segment() {
    let mut machine = Machine::new(0);
    machine.ram.write_u64(0x9000, u64::from(KERNEL_DS) << 32 | 0x1234_5678);
    machine.cpu.state.gpr[gpr::RBX] = 0x9000;
    machine.cpu.state.segments[Seg::Fs as usize].unusable = true;
    let exit = machine.run(|a| {
        a.lfs(ecx, ptr(rbx))?;
        a.vmcall()
    });
    assert_eq!(exit, CpuExit::Bus);
    assert_eq!(machine.cpu.state.gpr[gpr::RCX], 0x1234_5678);
    assert_eq!(machine.cpu.state.segment(Seg::Fs), &Segment { selector: KERNEL_DS, ..Segment::data(KERNEL_DS) });

    let mut missing = Machine::new(0);
    missing.ram.write_u64(0x9000, 0x7770 << 32);
    missing.cpu.state.gpr[gpr::RBX] = 0x9000;
    missing.cpu.state.gpr[gpr::RCX] = 1;
    assert_eq!(missing.vector(|a| a.lss(ecx, ptr(rbx))), 13);
    assert_eq!((missing.error_code(), missing.cpu.state.gpr[gpr::RCX]), (0x7770, 1));
}
