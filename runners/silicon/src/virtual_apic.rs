//! The virtual APIC (SDM volume 3, chapter 31): its page, its priorities, and virtual interrupts. Guests of VMX have one, and
//! TDs.

mod x2apic;

use serde::{Deserialize, Serialize};

use crate::memory::{PhysicalMemory, read_u32, read_u64, write_u32, write_u64};

/// Offsets of registers in the virtual-APIC page.
pub(crate) mod register {
    pub(crate) const ID: u64 = 0x20;
    pub(crate) const VERSION: u64 = 0x30;
    pub(crate) const TASK_PRIORITY: u64 = 0x80;
    pub(crate) const PROCESSOR_PRIORITY: u64 = 0xa0;
    pub(crate) const END_OF_INTERRUPT: u64 = 0xb0;
    pub(crate) const LOGICAL_DESTINATION: u64 = 0xd0;
    pub(crate) const DESTINATION_FORMAT: u64 = 0xe0;
    pub(crate) const SPURIOUS: u64 = 0xf0;
    pub(crate) const IN_SERVICE: u64 = 0x100;
    pub(crate) const REQUESTED: u64 = 0x200;
    pub(crate) const LAST_REQUESTED: u64 = 0x270;
    pub(crate) const ERROR: u64 = 0x280;
    pub(crate) const COMMAND: u64 = 0x300;
    pub(crate) const COMMAND_HIGH: u64 = 0x310;
    pub(crate) const INITIAL_COUNT: u64 = 0x380;
    pub(crate) const DIVIDE: u64 = 0x3e0;
}

/// The APIC that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtualApic {
    /// Physical address of the virtual-APIC page, if there is a TPR shadow.
    pub(crate) page: Option<u64>,
    /// Physical address of the APIC-access page, if accesses to it are virtualized.
    pub(crate) access_page: Option<u64>,
    /// In x2APIC mode registers are MSRs.
    pub(crate) x2apic: bool,
    /// Most registers are virtualized.
    pub(crate) registers: bool,
    /// The lowest task priority that does not exit; counts without virtual-interrupt delivery.
    pub(crate) threshold: u8,
    /// Virtual-interrupt delivery, if there is that.
    pub(crate) interrupts: Option<VirtualInterrupts>,
    /// The notification vector and the physical address of the posted-interrupt descriptor.
    pub(crate) posted: Option<(u8, u64)>,
    /// What a write has to be told about behind its instruction.
    pub(crate) trap: Option<Trap>,
}

/// The guest interrupt status (25.4.2), and what of it exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtualInterrupts {
    /// The highest vector that is requested (RVI); 0 for none.
    requested: u8,
    /// The highest vector that is in service (SVI); 0 for none.
    in_service: u8,
    /// The EOI-exit bitmap.
    exits: [u64; 4],
}

/// An exit behind an instruction that has written to the virtual APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Trap {
    TprThreshold,
    /// EOI of this vector.
    Eoi(u8),
    /// A write to this offset of the APIC-access page.
    Write(u16),
}

impl VirtualInterrupts {
    /// Of a guest interrupt status: RVI, and SVI above it.
    pub(crate) fn new(status: u16, exits: [u64; 4]) -> VirtualInterrupts {
        let [requested, in_service] = status.to_le_bytes();
        VirtualInterrupts { requested, in_service, exits }
    }

    /// The guest interrupt status.
    pub(crate) fn status(self) -> u16 {
        u16::from_le_bytes([self.requested, self.in_service])
    }
}

impl VirtualApic {
    /// After VM entry: the processor priority is computed anew (27.3.2.5), and a task priority below its threshold
    /// exits before the first instruction (27.7.7).
    pub(crate) fn enter(&mut self, memory: &mut (impl PhysicalMemory + ?Sized)) {
        self.update_priority(memory);
        self.check_threshold(memory);
    }

    /// The 32 bits of a register.
    pub(crate) fn read(&self, memory: &mut (impl PhysicalMemory + ?Sized), offset: u64) -> u32 {
        self.page.map_or(0, |page| read_u32(memory, page + offset))
    }

    fn write(&self, memory: &mut (impl PhysicalMemory + ?Sized), offset: u64, value: u32) {
        if let Some(page) = self.page {
            write_u32(memory, page + offset, value);
        }
    }

    /// The register of x2APIC mode as RDMSR gives it: 64 bits, as the command register needs.
    pub(crate) fn read_msr(&self, memory: &mut (impl PhysicalMemory + ?Sized), offset: u64) -> u64 {
        self.page.map_or(0, |page| read_u64(memory, page + offset))
    }

    // ---- priorities (31.1) -----------------------------------------------------------------------------------

    /// The task priority, 0 to 15, that is CR8.
    pub(crate) fn task_priority(&self, memory: &mut (impl PhysicalMemory + ?Sized)) -> u64 {
        u64::from(self.read(memory, register::TASK_PRIORITY) >> 4 & 0xf)
    }

    /// Sets the task priority, and virtualizes that (31.1.2).
    pub(crate) fn set_task_priority(&mut self, memory: &mut (impl PhysicalMemory + ?Sized), value: u8) {
        self.write(memory, register::TASK_PRIORITY, value.into());
        self.update_priority(memory);
        self.check_threshold(memory);
    }

    fn check_threshold(&mut self, memory: &mut (impl PhysicalMemory + ?Sized)) {
        let counts = self.page.is_some() && self.interrupts.is_none();
        if counts && self.task_priority(memory) < u64::from(self.threshold) {
            self.trap = Some(Trap::TprThreshold);
        }
    }

    /// PPR virtualization (31.1.3).
    fn update_priority(&self, memory: &mut (impl PhysicalMemory + ?Sized)) {
        let Some(VirtualInterrupts { in_service, .. }) = self.interrupts else { return };
        let task = self.read(memory, register::TASK_PRIORITY) & 0xff;
        let service = u32::from(in_service) & 0xf0;
        let priority = if task & 0xf0 >= service { task } else { service };
        self.write(memory, register::PROCESSOR_PRIORITY, priority);
    }

    // ---- virtual interrupts (31.2) ---------------------------------------------------------------------------

    /// The virtual interrupt that is recognized (31.2.1): its class is above the processor's priority.
    pub(crate) fn recognized(&self, memory: &mut (impl PhysicalMemory + ?Sized)) -> Option<u8> {
        let requested = self.interrupts?.requested;
        let priority = self.read(memory, register::PROCESSOR_PRIORITY) as u8;
        (requested >> 4 > priority >> 4).then_some(requested)
    }

    /// Moves the virtual interrupt that is recognized into service (31.2.2).
    pub(crate) fn take(&mut self, memory: &mut (impl PhysicalMemory + ?Sized)) {
        let Some(mut interrupts) = self.interrupts else { return };
        let vector = interrupts.requested;
        self.set_bit(memory, register::IN_SERVICE, vector, true);
        self.set_bit(memory, register::REQUESTED, vector, false);
        interrupts.in_service = vector;
        interrupts.requested = self.highest(memory, register::REQUESTED);
        self.interrupts = Some(interrupts);
        self.write(memory, register::PROCESSOR_PRIORITY, u32::from(vector) & 0xf0);
    }

    /// Requests a virtual interrupt.
    pub(crate) fn request(&mut self, memory: &mut (impl PhysicalMemory + ?Sized), vector: u8) {
        self.set_bit(memory, register::REQUESTED, vector, true);
        if let Some(interrupts) = &mut self.interrupts {
            interrupts.requested = interrupts.requested.max(vector);
        }
    }

    /// EOI virtualization (31.1.4).
    pub(crate) fn end_of_interrupt(&mut self, memory: &mut (impl PhysicalMemory + ?Sized)) {
        let Some(mut interrupts) = self.interrupts else { return };
        let vector = interrupts.in_service;
        self.set_bit(memory, register::IN_SERVICE, vector, false);
        interrupts.in_service = self.highest(memory, register::IN_SERVICE);
        self.interrupts = Some(interrupts);
        self.update_priority(memory);
        if interrupts.exits[usize::from(vector >> 6)] >> (vector & 0x3f) & 1 != 0 {
            self.trap = Some(Trap::Eoi(vector));
        }
    }

    /// Processes posted interrupts (31.6): what the descriptor has is requested.
    pub(crate) fn take_posted(&mut self, memory: &mut (impl PhysicalMemory + ?Sized)) {
        const OUTSTANDING: u64 = 1;
        const CONTROL: u64 = 32;
        let Some((_, descriptor)) = self.posted else { return };
        let control = read_u64(memory, descriptor + CONTROL);
        write_u64(memory, descriptor + CONTROL, control & !OUTSTANDING);
        for word in 0..8 {
            let at = descriptor + u64::from(word) * 4;
            let posted = read_u32(memory, at);
            if posted == 0 {
                continue;
            }
            write_u32(memory, at, 0);
            let offset = register::REQUESTED + u64::from(word) * 0x10;
            let requested = self.read(memory, offset);
            self.write(memory, offset, requested | posted);
            let highest = word * 32 + (31 - posted.leading_zeros()) as u8;
            if let Some(interrupts) = &mut self.interrupts {
                interrupts.requested = interrupts.requested.max(highest);
            }
        }
    }

    fn set_bit(&self, memory: &mut (impl PhysicalMemory + ?Sized), bitmap: u64, vector: u8, on: bool) {
        let offset = bitmap + u64::from(vector >> 5) * 0x10;
        let (word, bit) = (self.read(memory, offset), 1 << (vector & 31));
        self.write(memory, offset, if on { word | bit } else { word & !bit });
    }

    fn highest(&self, memory: &mut (impl PhysicalMemory + ?Sized), bitmap: u64) -> u8 {
        (0..8_u8)
            .rev()
            .find_map(|word| {
                let bits = self.read(memory, bitmap + u64::from(word) * 0x10);
                (bits != 0).then(|| word * 32 + (31 - bits.leading_zeros()) as u8)
            })
            .unwrap_or(0)
    }

    // ---- accesses (31.4) -------------------------------------------------------------------------------------

    /// Whether a read of the APIC-access page at this offset is virtualized (31.4.2).
    pub(crate) fn reads(&self, offset: u64) -> bool {
        use register::*;
        let register = offset & !0xf;
        self.page.is_some()
            && offset & 0xf < 4
            && match register {
                TASK_PRIORITY => true,
                ID
                | VERSION
                | END_OF_INTERRUPT
                | LOGICAL_DESTINATION
                | DESTINATION_FORMAT
                | SPURIOUS
                | IN_SERVICE..=LAST_REQUESTED
                | ERROR
                | COMMAND..=INITIAL_COUNT
                | DIVIDE => self.registers,
                _ => false,
            }
    }

    /// Whether a write to the APIC-access page at this offset is virtualized (31.4.3).
    pub(crate) fn writes(&self, offset: u64) -> bool {
        use register::*;
        self.page.is_some()
            && offset & 0xf == 0
            && match offset {
                TASK_PRIORITY => true,
                END_OF_INTERRUPT | COMMAND => self.registers || self.interrupts.is_some(),
                ID
                | LOGICAL_DESTINATION
                | DESTINATION_FORMAT
                | SPURIOUS
                | ERROR
                | COMMAND_HIGH..=INITIAL_COUNT
                | DIVIDE => self.registers,
                _ => false,
            }
    }

    /// APIC-write emulation (31.4.3.2): what follows from a write that the page has taken.
    pub(crate) fn written(&mut self, memory: &mut (impl PhysicalMemory + ?Sized), offset: u64) {
        match (offset, self.interrupts) {
            (register::TASK_PRIORITY, _) => {
                let value = self.read(memory, offset) as u8;
                self.set_task_priority(memory, value);
            }
            (register::END_OF_INTERRUPT, Some(_)) => {
                self.write(memory, offset, 0);
                self.end_of_interrupt(memory);
            }
            (register::COMMAND, Some(_)) if is_self_interrupt(self.read(memory, offset)) => {
                let vector = self.read(memory, offset) as u8;
                self.request(memory, vector);
            }
            (register::COMMAND_HIGH, _) => {
                let value = self.read(memory, offset);
                self.write(memory, offset, value & 0xff00_0000);
            }
            _ => self.trap = Some(Trap::Write(offset as u16)),
        }
    }
}

/// Whether a command is a fixed, edge-triggered interrupt to the processor itself, with a legal vector.
fn is_self_interrupt(command: u32) -> bool {
    const SHORTHAND: u32 = 3 << 18;
    const ITSELF: u32 = 1 << 18;
    // Reserved bits, delivery status, trigger mode and delivery mode.
    const ZERO: u32 = 0xfff3_0000 | 1 << 15 | 1 << 13 | 1 << 12 | 7 << 8;
    command & SHORTHAND == ITSELF && command & ZERO == 0 && command as u8 >= 16
}
