//! GDT, TSS and IDT of one vCPU (Intel SDM vol. 3, 3.4.5, 6.14, 7.7).
#![expect(unsafe_code, reason = "fills the tables in place and loads them into the CPU")]

use core::arch::asm;
use core::cell::UnsafeCell;

/// Vectors that exceptions can have.
pub(crate) const VECTORS: usize = 32;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TASK: u16 = 0x18;

/// 64-bit code, ring 0; accessed, so that the CPU need not write to the table.
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Data, ring 0, accessed.
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// Available 64-bit TSS, ring 0, present.
const TASK_DESCRIPTOR: u64 = 0x89 << 40;

/// Interrupt gate, ring 0, present.
const INTERRUPT_GATE: u64 = 0x8e << 40;

/// The IST entries in use. The pre-built `core` has a red zone, so that no exception may use the stack of what
/// it interrupts.
const EXCEPTION_IST: u64 = 1;
const URGENT_IST: u64 = 2;

const NMI: usize = 2;
const DOUBLE_FAULT: usize = 8;
const MACHINE_CHECK: usize = 18;

#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Tss {
    reserved: u32,
    rsp: [u64; 3],
    reserved_2: u64,
    /// IST1 is the first.
    ist: [u64; 7],
    reserved_3: u64,
    reserved_4: u16,
    io_map: u16,
}

const _: () = assert!(size_of::<Tss>() == 104);

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Tables {
    idt: [[u64; 2]; VECTORS],
    gdt: [u64; 5],
    tss: Tss,
}

/// The tables of one vCPU, all zeros until [`Self::load`].
pub(crate) struct DescriptorTables(UnsafeCell<Tables>);

impl DescriptorTables {
    pub(crate) const fn new() -> Self {
        let tss = Tss { reserved: 0, rsp: [0; 3], reserved_2: 0, ist: [0; 7], reserved_3: 0, reserved_4: 0, io_map: 0 };
        Self(UnsafeCell::new(Tables { idt: [[0; 2]; VECTORS], gdt: [0; 5], tss }))
    }

    /// Fills the tables and makes the vCPU that executes this use them. To be called once on the vCPU that
    /// they belong to, before anything can raise an exception. The stacks are given by their tops; `stub` tells
    /// where the handler of a vector is.
    pub(crate) fn load(&'static self, stub: fn(usize) -> u64, exception_stack: u64, urgent_stack: u64) {
        // SAFETY: this vCPU is the only one that uses these tables, and does not use them yet.
        let tables = unsafe { &mut *self.0.get() };
        for (vector, gate) in tables.idt.iter_mut().enumerate() {
            let ist = match vector {
                NMI | DOUBLE_FAULT | MACHINE_CHECK => URGENT_IST,
                _ => EXCEPTION_IST,
            };
            *gate = interrupt_gate(stub(vector), ist);
        }
        tables.tss.ist[EXCEPTION_IST as usize - 1] = exception_stack;
        tables.tss.ist[URGENT_IST as usize - 1] = urgent_stack;
        tables.tss.io_map = size_of::<Tss>() as u16;
        let tss = &raw const tables.tss as u64;
        let [low, high] = task_descriptor(tss);
        tables.gdt = [0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, low, high];

        let gdtr = Pointer::to(&tables.gdt);
        let idtr = Pointer::to(&tables.idt);
        // SAFETY: both tables are static and complete; the new code and data segments are flat like the
        // host's, so that execution goes on at the next instruction.
        unsafe {
            asm!(
                "lgdt [{gdtr}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2: mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "ltr {task:x}",
                "lidt [{idtr}]",
                gdtr = in(reg) &gdtr,
                idtr = in(reg) &idtr,
                code = const CODE,
                data = in(reg) u64::from(DATA),
                task = in(reg) TASK,
                scratch = out(reg) _,
            );
        }
    }
}

/// The operand of `lgdt` and `lidt`.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

impl Pointer {
    fn to<T>(table: &T) -> Self {
        Self { limit: size_of::<T>() as u16 - 1, base: table as *const T as u64 }
    }
}

const fn interrupt_gate(handler: u64, ist: u64) -> [u64; 2] {
    let low = handler & 0xffff | (handler >> 16 & 0xffff) << 48;
    [low | (CODE as u64) << 16 | ist << 32 | INTERRUPT_GATE, handler >> 32]
}

const fn task_descriptor(base: u64) -> [u64; 2] {
    let limit = size_of::<Tss>() as u64 - 1;
    [limit | (base & 0xff_ffff) << 16 | TASK_DESCRIPTOR | (base >> 24 & 0xff) << 56, base >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_and_descriptors_hold_their_addresses_in_pieces() {
        assert_eq!(interrupt_gate(0x1122_3344_5566_7788, 1), [0x5566_8e01_0008_7788, 0x1122_3344]);
        assert_eq!(task_descriptor(0x1122_3344_5566_7788), [0x5500_8966_7788_0067, 0x1122_3344]);
    }
}
