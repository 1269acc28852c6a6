//! Accesses of a guest to the MSRs of x2APIC mode (SDM volume 3, 31.5) that nobody intercepts.

use privet_cpu::Exception;

use super::VirtualApic;
use crate::memory::PhysicalMemory;

/// The MSRs, each of which is a register at 16 times its number in the page.
const FIRST: u32 = 0x800;
const LAST: u32 = 0x8ff;
const TASK_PRIORITY: u32 = 0x808;
const END_OF_INTERRUPT: u32 = 0x80b;
const SELF_INTERRUPT: u32 = 0x83f;

impl VirtualApic {
    /// RDMSR; `None` if it is not virtualized.
    pub(crate) fn x2apic_read(&self, memory: &mut (impl PhysicalMemory + ?Sized), index: u32) -> Option<u64> {
        let virtualized = match index {
            TASK_PRIORITY => true,
            FIRST..=LAST => self.registers,
            _ => false,
        };
        (self.x2apic && virtualized).then(|| self.read_msr(memory, u64::from(index & 0xff) << 4))
    }

    /// WRMSR; `None` if it is not virtualized.
    pub(crate) fn x2apic_write(
        &mut self,
        memory: &mut (impl PhysicalMemory + ?Sized),
        index: u32,
        value: u64,
    ) -> Option<Result<(), Exception>> {
        let (delivers, byte) = (self.interrupts.is_some(), value >> 8 == 0);
        let valid = match index {
            _ if !self.x2apic => return None,
            TASK_PRIORITY => byte,
            END_OF_INTERRUPT if delivers => value == 0,
            SELF_INTERRUPT if delivers => byte,
            _ => return None,
        };
        if !valid {
            return Some(Err(Exception::gp(0)));
        }
        match index {
            TASK_PRIORITY => self.set_task_priority(memory, value as u8),
            END_OF_INTERRUPT => self.end_of_interrupt(memory),
            _ => self.request(memory, value as u8),
        }
        Some(Ok(()))
    }
}
