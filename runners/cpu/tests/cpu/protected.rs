//! Protected mode of 32 bits: its paging, and its rings.

use iced_x86::code_asm::*;
use privet_cpu::segment::Table;
use privet_cpu::state::{cr0, cr4, gpr};
use privet_cpu::{Config, Cpu, CpuExit, Seg, Segment, vector};

use crate::descriptor_tables::stop_at_vmcall;
use crate::machine::{Ram, TestBus};

const CODE: u64 = 0x8000;
const STACK: u64 = 0xa000;
const GDT: u64 = 0x4000;
const TSS: u64 = 0x4800;
const IDT: u64 = 0x3000;
const HANDLERS: u64 = 0x5000;
const TABLES: u64 = 0x1_0000;
const KERNEL_STACK: u64 = 0x7000;
const CS: u16 = 0x8;
const DS: u16 = 0x10;
const USER_CS: u16 = 0x1b;
const USER_DS: u16 = 0x23;
const GATE: u16 = 0x33;
const GATE_CODE: u64 = 0x9000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Paging {
    Off,
    Pages4K,
    Pages4M,
    Pae,
}

/// Protected mode with the first 4 MiB of linear addresses mapped one to one.
fn machine(paging: Paging, cpl: u16) -> (Ram, Cpu) {
    let ram = Ram::new(1 << 20);
    let mut cpu = Cpu::new(Config::default());
    let descriptors = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0,
        // A call gate of 32 bits for everybody, with one parameter.
        GATE_CODE & 0xffff | u64::from(CS) << 16 | 1 << 32 | 0xec << 40,
    ];
    for (index, descriptor) in (0..).zip(descriptors) {
        ram.write_u64(GDT + index * 8, descriptor);
    }
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        ram.write(handler, &[0x0f, 0x01, 0xc1]);
        let dpl = if vector >= 0x80 { 3 } else { 0 };
        ram.write_u64(IDT + vector * 8, handler | u64::from(CS) << 16 | (0x8e | dpl << 5) << 40);
    }
    ram.write_u64(TSS + 4, KERNEL_STACK | u64::from(DS) << 32);
    let state = &mut cpu.state;
    (state.gdtr, state.idtr) = (Table { base: GDT, limit: 0x37 }, Table { base: IDT, limit: 0x7ff });
    (state.tr.base, state.tr.limit, state.tr.kind) = (TSS, 0x67, 0xb);
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        state.segments[seg as usize] = Segment::data(if cpl == 3 { USER_DS } else { DS });
    }
    state.segments[Seg::Cs as usize] = Segment::code32(if cpl == 3 { USER_CS } else { CS });
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP | if paging == Paging::Off { 0 } else { cr0::PG };
    state.cr3 = TABLES;
    state.cr4 = match paging {
        Paging::Off | Paging::Pages4K => 0,
        Paging::Pages4M => cr4::PSE,
        Paging::Pae => cr4::PAE,
    };
    match paging {
        Paging::Off => {}
        Paging::Pages4K => {
            ram.write_u64(TABLES, TABLES + 0x1007);
            for index in 0..512 {
                ram.write_u64(TABLES + 0x1000 + index * 8, (index << 13 | 7) | (index << 13 | 0x1007) << 32);
            }
        }
        Paging::Pages4M => ram.write_u64(TABLES, 0x87),
        Paging::Pae => {
            ram.write_u64(TABLES, TABLES + 0x1001);
            ram.write_u64(TABLES + 0x1000, 0x87);
        }
    }
    state.gpr[gpr::RSP] = STACK;
    state.rip = CODE;
    (ram, cpu)
}

fn load(ram: &Ram, at: u64, assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
    let mut a = CodeAssembler::new(32).expect("32-bit");
    assemble(&mut a).expect("the program assembles");
    ram.write(at, &a.assemble(at).expect("the program encodes"));
}

/// Runs to the handler that ends the run; returns its vector.
fn vector(ram: &Ram, cpu: &mut Cpu) -> u64 {
    let mut bus = TestBus::new(ram);
    bus.intercept = Some(stop_at_vmcall);
    assert_eq!(cpu.run(&mut bus), CpuExit::Bus);
    (cpu.state.rip - HANDLERS) / 16
}

fn words<const N: usize>(ram: &Ram, at: u64) -> [u32; N] {
    std::array::from_fn(|index| ram.read_u64(at + index as u64 * 4) as u32)
}

#[test]
fn rings_are_entered_through_gates_and_left_again() {
    for paging in [Paging::Off, Paging::Pages4K, Paging::Pages4M, Paging::Pae] {
        let (ram, mut cpu) = machine(paging, 3);
        load(&ram, CODE, |a| {
            a.push(0x1234)?;
            a.db(&[0x9a, 0, 0, 0, 0, GATE as u8, 0])?;
            a.mov(edx, esp)?;
            a.int(0x80)?;
            a.hlt()
        });
        load(&ram, GATE_CODE, |a| {
            a.mov(eax, dword_ptr(esp + 8))?;
            a.mov(ebx, cs)?;
            a.db(&[0xca, 4, 0])
        });
        load(&ram, HANDLERS + 0x80 * 16, |a| {
            a.mov(ecx, cs)?;
            a.iretd()
        });
        assert_eq!(vector(&ram, &mut cpu), u64::from(vector::GP), "{paging:?}: HLT in ring 3");
        let kernel = u64::from(CS);
        let found = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|index| cpu.state.gpr[index]);
        assert_eq!(found, [0x1234, kernel, kernel, STACK], "{paging:?}: RETF has taken the parameter off both stacks");
        let top = KERNEL_STACK - 24;
        assert_eq!(cpu.state.gpr[gpr::RSP], top);
        let mut frame = words(&ram, top);
        frame[3] = 0;
        assert_eq!(frame, [0, CODE as u32 + 16, USER_CS.into(), 0, STACK as u32, USER_DS.into()]);
        assert_eq!((cpu.state.cpl(), cpu.state.segment(Seg::Ss).selector), (0, DS));
    }
}

#[test]
fn a_bad_inner_stack_is_an_invalid_tss() {
    for (selector, code) in [(0_u16, 0), (0x40, 0x40), (USER_DS, USER_DS & !3), (CS, CS)] {
        let (ram, mut cpu) = machine(Paging::Off, 3);
        ram.write_u64(TSS + 4, KERNEL_STACK | u64::from(selector) << 32);
        // The handler of #TS can use no inner stack either: it runs where it is, in ring 3.
        ram.write(IDT + 10 * 8 + 2, &USER_CS.to_le_bytes());
        load(&ram, CODE, |a| a.int(0x80));
        assert_eq!(vector(&ram, &mut cpu), u64::from(vector::TS), "{selector:#x}");
        let [error, eip, ..] = words::<4>(&ram, cpu.state.gpr[gpr::RSP]);
        assert_eq!((error, u64::from(eip)), (u32::from(code), CODE), "{selector:#x}");
        assert_eq!(cpu.state.gpr[gpr::RSP], STACK - 16);
    }
}

#[test]
fn paging_is_entered_from_protected_mode() {
    for paging in [Paging::Pages4K, Paging::Pages4M, Paging::Pae] {
        let (ram, mut cpu) = machine(paging, 0);
        let (tables, features) = (cpu.state.cr3, cpu.state.cr4);
        (cpu.state.cr0, cpu.state.cr3, cpu.state.cr4) = (cr0::PE | cr0::ET, 0, 0);
        load(&ram, CODE, |a| {
            a.mov(eax, features as u32)?;
            a.mov(cr4, eax)?;
            a.mov(eax, tables as u32)?;
            a.mov(cr3, eax)?;
            a.mov(eax, (cr0::PE | cr0::PG) as u32)?;
            a.mov(cr0, eax)?;
            a.mov(eax, dword_ptr(0x0080_0000))?;
            a.hlt()
        });
        assert_eq!(vector(&ram, &mut cpu), u64::from(vector::PF), "{paging:?}");
        assert_eq!((cpu.state.cr2, cpu.state.long_mode()), (0x0080_0000, false));
        assert_eq!(words(&ram, cpu.state.gpr[gpr::RSP]), [0], "{paging:?}: not present");
    }
}

#[test]
fn a_reserved_bit_at_the_root_of_pae_paging_is_found_when_cr3_is_loaded() {
    let (ram, mut cpu) = machine(Paging::Pae, 0);
    ram.write_u64(TABLES + 0x800, TABLES + 0x1001);
    ram.write_u64(TABLES + 0x808, TABLES + 0x1003);
    load(&ram, CODE, |a| {
        a.mov(eax, TABLES as u32 + 0x800)?;
        a.mov(cr3, eax)
    });
    assert_eq!(vector(&ram, &mut cpu), u64::from(vector::GP));
    assert_eq!(cpu.state.cr3, TABLES, "and nothing is loaded");
}

#[test]
fn task_switches_are_told_as_unknown() {
    let (ram, mut cpu) = machine(Paging::Off, 0);
    // An available TSS of 32 bits.
    ram.write_u64(GDT + 0x28, 0x0000_8900_4800_0067);
    load(&ram, CODE, |a| a.db(&[0xea, 0, 0, 0, 0, 0x28, 0]));
    let exit = cpu.run(&mut TestBus::new(&ram));
    assert!(matches!(exit, CpuExit::UnknownInstruction { rip: CODE, .. }), "{exit:?}");
}
