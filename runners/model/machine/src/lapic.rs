//! The local APIC, as far as guests send interrupts with it: registers, priorities, and messages between vCPUs.
//!
//! There is no timer. Source: `arch/x86/kvm/lapic.c`; Intel SDM volume 3, chapter 12.

use std::sync::Arc;

use crate::vcpu::{MpState, Vcpu};

/// Bytes of its registers, as `KVM_GET_LAPIC` gives them.
pub(crate) const REGISTER_BYTES: usize = 1024;

const ID: usize = 0x20;
const VERSION: usize = 0x30;
const TASK_PRIORITY: usize = 0x80;
const PROCESSOR_PRIORITY: usize = 0xa0;
const END_OF_INTERRUPT: usize = 0xb0;
const LOGICAL_DESTINATION: usize = 0xd0;
const DESTINATION_FORMAT: usize = 0xe0;
const SPURIOUS: usize = 0xf0;
const IN_SERVICE: usize = 0x100;
const REQUESTED: usize = 0x200;
const COMMAND: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const LOCAL_VECTORS: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
const SELF: usize = 0x3f0;
const MASKED: u32 = 1 << 16;

/// A local APIC.
#[derive(Clone)]
pub(crate) struct Lapic {
    registers: [u8; REGISTER_BYTES],
    /// Startup vector that was received last.
    pub(crate) startup_vector: u8,
}

/// What a write asks of other vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    command: u32,
    destination: u32,
}

impl Lapic {
    /// An APIC after reset.
    pub(crate) fn new(id: u32) -> Self {
        let mut lapic = Self { registers: [0; REGISTER_BYTES], startup_vector: 0 };
        let version_with_6_vectors = 0x5_0014;
        lapic.put(ID, id << 24);
        lapic.put(VERSION, version_with_6_vectors);
        lapic.put(DESTINATION_FORMAT, u32::MAX);
        lapic.put(SPURIOUS, 0xff);
        for vector in LOCAL_VECTORS {
            lapic.put(vector, MASKED);
        }
        lapic
    }

    fn reg(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.registers[at], self.registers[at + 1], self.registers[at + 2], self.registers[at + 3]])
    }

    fn put(&mut self, at: usize, value: u32) {
        self.registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The register page.
    pub(crate) fn registers(&self) -> &[u8; REGISTER_BYTES] {
        &self.registers
    }

    /// Replaces the register page.
    pub(crate) fn set_registers(&mut self, registers: &[u8; REGISTER_BYTES]) {
        self.registers = *registers;
    }

    /// The highest vector of one of the 256-bit registers.
    fn highest(&self, base: usize) -> Option<u8> {
        (0..8).rev().find_map(|word| {
            let bits = self.reg(base + word * 16);
            (bits != 0).then(|| (word * 32 + 31 - bits.leading_zeros() as usize) as u8)
        })
    }

    fn set_bit(&mut self, base: usize, vector: u8, on: bool) {
        let at = base + usize::from(vector / 32) * 16;
        let bit = 1 << (vector % 32);
        self.put(at, if on { self.reg(at) | bit } else { self.reg(at) & !bit });
    }

    /// An interrupt arrives.
    pub(crate) fn request(&mut self, vector: u8) {
        self.set_bit(REQUESTED, vector, true);
    }

    fn update_priority(&mut self) {
        let in_service = self.highest(IN_SERVICE).map_or(0, |vector| u32::from(vector) & 0xf0);
        let task = self.reg(TASK_PRIORITY) & 0xff;
        self.put(PROCESSOR_PRIORITY, if task & 0xf0 >= in_service { task } else { in_service });
    }

    /// Whether an interrupt is due.
    pub(crate) fn has_interrupt(&mut self) -> bool {
        self.update_priority();
        let enabled = self.reg(SPURIOUS) & 0x100 != 0;
        let priority = self.reg(PROCESSOR_PRIORITY) & 0xf0;
        enabled && self.highest(REQUESTED).is_some_and(|vector| u32::from(vector) & 0xf0 > priority)
    }

    /// Takes the interrupt that is due.
    pub(crate) fn take_interrupt(&mut self) -> Option<u8> {
        let vector = if self.has_interrupt() { self.highest(REQUESTED)? } else { return None };
        self.set_bit(REQUESTED, vector, false);
        self.set_bit(IN_SERVICE, vector, true);
        self.update_priority();
        Some(vector)
    }

    /// The task priority, as CR8 has it.
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.reg(TASK_PRIORITY) >> 4 & 0xf)
    }

    /// Sets the task priority by CR8.
    pub(crate) fn set_cr8(&mut self, cr8: u64) {
        self.put(TASK_PRIORITY, (cr8 as u32 & 0xf) << 4);
        self.update_priority();
    }

    /// Reads a register, by its offset in the page.
    pub(crate) fn read(&mut self, offset: usize) -> u32 {
        self.update_priority();
        if offset + 4 <= REGISTER_BYTES { self.reg(offset & !0xf) } else { 0 }
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, offset: usize, value: u32) -> Option<Message> {
        match offset & !0xf {
            END_OF_INTERRUPT => {
                if let Some(vector) = self.highest(IN_SERVICE) {
                    self.set_bit(IN_SERVICE, vector, false);
                }
            }
            COMMAND => {
                self.put(COMMAND, value & !(1 << 12));
                return Some(Message { command: value, destination: self.reg(COMMAND_HIGH) >> 24 });
            }
            SELF => return Some(Message { command: value & 0xff | 1 << 18, destination: 0 }),
            at @ (ID | TASK_PRIORITY | LOGICAL_DESTINATION | DESTINATION_FORMAT | SPURIOUS | COMMAND_HIGH) => {
                self.put(at, value)
            }
            at if LOCAL_VECTORS.contains(&at) || at == 0x380 || at == 0x3e0 => self.put(at, value),
            _ => {}
        }
        self.update_priority();
        None
    }

    /// Writes the 64-bit command register of x2APIC mode.
    pub(crate) fn write_x2apic_command(&mut self, value: u64) -> Message {
        self.put(COMMAND, value as u32);
        self.put(COMMAND_HIGH, (value >> 32) as u32);
        Message { command: value as u32, destination: (value >> 32) as u32 }
    }
}

/// Delivers a message of vCPU `from`. Logical destinations are those of the flat model.
pub(crate) fn send(message: Message, from: &Vcpu, vcpus: &[Arc<Vcpu>]) {
    const ALL_XAPIC: u32 = 0xff;
    let logical = message.command & 1 << 11 != 0;
    let shorthand = message.command >> 18 & 3;
    for vcpu in vcpus {
        let is_self = vcpu.id == from.id;
        let mut mailbox = vcpu.mailbox();
        let Some(lapic) = mailbox.lapic.as_mut() else { continue };
        let addressed = match shorthand {
            0 if logical => lapic.reg(LOGICAL_DESTINATION) >> 24 & message.destination != 0,
            0 => message.destination == vcpu.id || message.destination == ALL_XAPIC || message.destination == u32::MAX,
            1 => is_self,
            2 => true,
            _ => !is_self,
        };
        if !addressed {
            continue;
        }
        let vector = message.command as u8;
        let (fixed, lowest, init, startup) = (0, 1, 5, 6);
        match message.command >> 8 & 7 {
            mode if mode == fixed || mode == lowest => lapic.request(vector),
            mode if mode == init => {
                let asserted = message.command & 1 << 14 != 0;
                if asserted && !vcpu.is_bsp {
                    mailbox.mp_state = MpState::InitReceived;
                }
            }
            mode if mode == startup => {
                lapic.startup_vector = vector;
                if mailbox.mp_state == MpState::InitReceived {
                    mailbox.mp_state = MpState::SipiReceived;
                }
            }
            _ => {}
        }
        drop(mailbox);
        vcpu.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_waits_for_its_priority_and_the_end_of_a_higher_one() {
        let mut lapic = Lapic::new(0);
        lapic.request(0x31);
        assert_eq!(lapic.take_interrupt(), None, "disabled by software");
        lapic.write(SPURIOUS, 0x1ff);
        lapic.set_cr8(3);
        assert_eq!(lapic.take_interrupt(), None, "same class as the task priority");
        lapic.set_cr8(2);
        assert_eq!(lapic.take_interrupt(), Some(0x31));
        lapic.request(0x30);
        lapic.request(0x40);
        assert_eq!(lapic.take_interrupt(), Some(0x40));
        lapic.write(END_OF_INTERRUPT, 0);
        assert_eq!(lapic.take_interrupt(), None);
        lapic.write(END_OF_INTERRUPT, 0);
        assert_eq!(lapic.take_interrupt(), Some(0x30));
    }
}
