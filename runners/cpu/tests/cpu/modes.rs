//! Real mode, protected mode without paging, and the ways into long mode.

use iced_x86::code_asm::*;
use privet_cpu::state::{cr0, cr4, efer, gpr};
use privet_cpu::{Config, Cpu, CpuExit, Encryption, Seg, Segment};

use crate::descriptor_tables::with_idt;
use crate::machine::{Ram, TestBus, long_mode};

#[test]
fn a_tdx_reset_stub_reaches_long_mode() {
    let ram = Ram::new(1 << 20);
    let mut cpu = Cpu::new(Config::default());
    cpu.state.encryption = Encryption::SharedBit(47);
    // Tables and a GDT as `machine` makes them, then the state that the TDX module sets up.
    long_mode(&mut cpu, &ram, 0);
    with_idt(&mut cpu, &ram);
    let gdt = cpu.state.gdtr;
    ram.write(0x9000, &gdt.limit.to_le_bytes());
    ram.write(0x9002, &(gdt.base as u32).to_le_bytes());
    let mut a = CodeAssembler::new(32).expect("32-bit");
    a.lgdt(ptr(0x9000)).unwrap();
    a.mov(eax, (cr4::PAE | cr4::MCE) as u32).unwrap();
    a.mov(cr4, eax).unwrap();
    a.mov(eax, 0x1000).unwrap();
    a.mov(cr3, eax).unwrap();
    a.mov(eax, (cr0::PE | cr0::NE | cr0::PG) as u32).unwrap();
    a.mov(cr0, eax).unwrap();
    let mut code = a.assemble(0x8000).unwrap();
    // ljmp 0x8:0x8800
    code.extend([0xea, 0x00, 0x88, 0, 0, 0x08, 0]);
    ram.write(0x8000, &code);
    let mut long = CodeAssembler::new(64).expect("64-bit");
    long.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
    long.mov(rsp, 0xa000_u64).unwrap();
    long.push(rax).unwrap();
    long.hlt().unwrap();
    ram.write(0x8800, &long.assemble(0x8800).unwrap());

    let state = &mut cpu.state;
    state.cr0 = cr0::PE | cr0::NE | cr0::ET;
    state.cr3 = 0;
    state.cr4 = cr4::MCE;
    state.efer = efer::SCE | efer::LME | efer::NXE;
    state.segments = [Segment::data(0x10); 6];
    state.segments[Seg::Cs as usize] = Segment::code32(0x8);
    state.rip = 0x8000;
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 0x1122_3344_5566_7788);
    assert_eq!(ram.read_u64(0x9ff8), 0x1122_3344_5566_7788);
    assert!(cpu.state.code64());
    assert_ne!(cpu.state.efer & efer::LMA, 0);
    assert!(bus.accesses.iter().all(|(_, access)| access.private), "no shared bit anywhere");
}

#[test]
fn the_encryption_bit_is_no_part_of_the_address() {
    for (encryption, bit_set_is_private) in [(Encryption::CBit(47), true), (Encryption::SharedBit(47), false)] {
        let ram = Ram::new(1 << 20);
        let mut cpu = Cpu::new(Config::default());
        cpu.state.encryption = encryption;
        long_mode(&mut cpu, &ram, 0);
        let mut a = CodeAssembler::new(64).expect("64-bit");
        a.mov(rbx, 0x9000_u64 + (1 << 30)).unwrap();
        a.mov(qword_ptr(rbx), 5).unwrap();
        a.mov(rbx, 0x9008_u64).unwrap();
        a.mov(qword_ptr(rbx), 6).unwrap();
        a.hlt().unwrap();
        ram.write(0x8000, &a.assemble(0x8000).unwrap());
        // The second GiB maps the first one, with the bit set.
        ram.write_u64(0x2008, 1 << 47 | 0x87);
        cpu.state.rip = 0x8000;
        let mut bus = TestBus::new(&ram);
        assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
        assert_eq!((ram.read_u64(0x9000), ram.read_u64(0x9008)), (5, 6));
        let writes: Vec<bool> = bus
            .accesses
            .iter()
            .filter(|(gpa, access)| *gpa == 0x9000 && !access.walk)
            .map(|(_, access)| access.private)
            .collect();
        assert_eq!(writes, [bit_set_is_private, !bit_set_is_private]);
        assert!(bus.accesses.iter().filter(|(_, access)| access.walk).all(|(_, access)| access.private));
    }
}

#[test]
fn real_mode_code_with_interrupts() {
    let ram = Ram::new(1 << 20);
    let mut cpu = Cpu::new(Config::default());
    let mut a = CodeAssembler::new(16).expect("16-bit");
    a.mov(ax, 0x900).unwrap();
    a.mov(ds, ax).unwrap();
    a.mov(sp, 0x7000).unwrap();
    a.mov(word_ptr(bx + 2), 0x1234).unwrap();
    a.int(0x21).unwrap();
    a.hlt().unwrap();
    ram.write(0x10100, &a.assemble(0x100).unwrap());
    // Vector 0x21 at 0x2000:0x10: inc dx; iret
    ram.write(0x84, &[0x10, 0x00, 0x00, 0x20]);
    ram.write(0x20010, &[0x42, 0xcf]);
    cpu.state.segments[Seg::Cs as usize] = Segment::real_mode(0x1000, true);
    cpu.state.rip = 0x100;
    cpu.state.gpr[gpr::RBX] = 0xffff_0010;
    cpu.state.gpr[gpr::RDX] = 0xffff;
    assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::Halt);
    assert_eq!(ram.read(0x9012, 2), [0x34, 0x12]);
    assert_eq!(cpu.state.gpr[gpr::RDX], 0, "16-bit registers wrap");
    assert_eq!(cpu.state.gpr[gpr::RSP], 0x7000);
    assert_eq!(cpu.state.segment(Seg::Cs).selector, 0x1000);
}

#[test]
fn reset_starts_at_the_top_of_the_first_4_gib() {
    let ram = Ram::new(0x1000);
    let mut cpu = Cpu::new(Config::default());
    assert_eq!(cpu.state.linear_rip(), 0xffff_fff0);
    assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::NoMemory { gpa: 0xffff_f000 });
}

#[test]
fn five_level_paging() {
    let ram = Ram::new(1 << 20);
    let mut cpu = Cpu::new(Config::default());
    long_mode(&mut cpu, &ram, 0);
    ram.write_u64(0x6000, 0x1007);
    ram.write_u64(0x6000 + 0x100 * 8, 0x1007);
    cpu.state.cr3 = 0x6000;
    cpu.state.cr4 |= cr4::LA57;
    let mut a = CodeAssembler::new(64).expect("64-bit");
    a.mov(rbx, 0xff00_0000_0000_9000_u64).unwrap();
    a.mov(qword_ptr(rbx), 9).unwrap();
    a.hlt().unwrap();
    ram.write(0x8000, &a.assemble(0x8000).unwrap());
    cpu.state.rip = 0x8000;
    assert_eq!(cpu.run(&mut TestBus::new(&ram)), CpuExit::Halt);
    assert_eq!(ram.read_u64(0x9000), 9);
}
