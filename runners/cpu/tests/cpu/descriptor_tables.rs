//! A GDT, a TSS and an IDT for tests that raise exceptions.

use privet_cpu::{Cpu, CpuState, Intercept, Intercepted};

use crate::machine::Ram;

/// Where [`with_idt`] puts the tables.
pub(crate) const IDT: u64 = 0x3000;
const GDT: u64 = 0x4000;
const TSS: u64 = 0x4800;
/// Handlers, 16 bytes each: VMCALL, which ends a run with the vector's handler address in RIP.
pub(crate) const HANDLERS: u64 = 0x5000;
/// Stack that ring 0 gets when an exception comes from ring 3.
pub(crate) const RSP0: u64 = 0x7000;
/// Stack of the interrupt stack table's entry 1, which vector 8 uses.
pub(crate) const IST1: u64 = 0x7800;

/// Selectors in the GDT that [`with_idt`] makes.
pub(crate) const KERNEL_CS: u16 = 0x8;
pub(crate) const KERNEL_DS: u16 = 0x10;
pub(crate) const USER_DS: u16 = 0x1b;
pub(crate) const USER_CS: u16 = 0x23;

/// Gives a CPU in long mode a GDT, a TSS and an IDT whose handlers end the run.
pub(crate) fn with_idt(cpu: &mut Cpu, ram: &Ram) {
    let descriptors: [u64; 5] =
        [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        ram.write_u64(GDT + index as u64 * 8, descriptor);
    }
    ram.write_u64(TSS + 4, RSP0);
    ram.write_u64(TSS + 0x24, IST1);
    for vector in 0..256_u64 {
        let handler = HANDLERS + vector * 16;
        ram.write(handler, &[0x0f, 0x01, 0xc1]);
        let ist = u64::from(vector == 8);
        // Vectors from 0x80 on may be raised by INT n in ring 3.
        let dpl = if vector >= 0x80 { 3 } else { 0 };
        let low = handler & 0xffff | u64::from(KERNEL_CS) << 16 | ist << 32 | (0x8e | dpl << 5) << 40;
        ram.write_u64(IDT + vector * 16, low);
        ram.write_u64(IDT + vector * 16 + 8, 0);
    }
    cpu.state.gdtr.base = GDT;
    cpu.state.gdtr.limit = 39;
    cpu.state.idtr.base = IDT;
    cpu.state.idtr.limit = 0xfff;
    cpu.state.tr.base = TSS;
    cpu.state.tr.limit = 0x67;
    cpu.state.tr.selector = 0x28;
}

/// Ends a run at VMCALL, RIP at the instruction.
pub(crate) fn stop_at_vmcall(_: &mut CpuState, what: Intercept) -> Intercepted {
    if matches!(what, Intercept::Call(_)) { Intercepted::Exit } else { Intercepted::Native }
}

/// The five words of an interrupt frame at `at`: RIP, CS, RFLAGS, RSP, SS.
pub(crate) fn frame(ram: &Ram, at: u64) -> [u64; 5] {
    std::array::from_fn(|index| ram.read_u64(at + index as u64 * 8))
}
