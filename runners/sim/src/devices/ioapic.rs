//! The I/O APIC (Intel 82093AA data sheet): 24 lines to messages.

use serde::{Deserialize, Serialize};

use super::interrupt_message::{Delivery, Destination, InterruptMessage};

/// Lines.
pub(crate) const LINES: usize = 24;

const VERSION: u32 = 0x20 | (LINES as u32 - 1) << 16;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
const LOGICAL: u64 = 1 << 11;

/// The I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; LINES],
    /// Levels of the lines, as their devices drive them: true is asserted, whatever the polarity.
    asserted: [bool; LINES],
}

impl IoApic {
    pub(crate) fn new() -> IoApic {
        IoApic { id: 0, select: 0, entries: [MASKED; LINES], asserted: [false; LINES] }
    }

    /// A device drives its line; the message that follows, if one does.
    pub(crate) fn set_line(&mut self, line: usize, asserted: bool) -> Option<InterruptMessage> {
        let was_asserted = std::mem::replace(&mut self.asserted[line], asserted);
        let rose = asserted && !was_asserted;
        let level = self.entries[line] & LEVEL != 0;
        if level || rose { self.fire(line) } else { None }
    }

    /// A level that is still asserted interrupts again when its handler has ended or its mask was lifted.
    fn fire(&mut self, line: usize) -> Option<InterruptMessage> {
        let entry = self.entries[line];
        let level = entry & LEVEL != 0;
        if entry & MASKED != 0 || level && (entry & REMOTE_IRR != 0 || !self.asserted[line]) {
            return None;
        }
        if level {
            self.entries[line] |= REMOTE_IRR;
        }
        let id = (entry >> 56) as u32;
        Some(InterruptMessage {
            destination: if entry & LOGICAL != 0 { Destination::Logical(id) } else { Destination::Physical(id) },
            delivery: Delivery::of(entry as u32),
            vector: entry as u8,
            level,
        })
    }

    /// The handler of a level-triggered vector has ended; the messages of lines that are still asserted.
    pub(crate) fn end_of_interrupt(&mut self, vector: u8) -> Vec<InterruptMessage> {
        let ended: Vec<usize> =
            (0..LINES).filter(|line| self.entries[*line] & (LEVEL | 0xff) == LEVEL | u64::from(vector)).collect();
        ended
            .into_iter()
            .filter_map(|line| {
                self.entries[line] &= !REMOTE_IRR;
                self.fire(line)
            })
            .collect()
    }

    /// Reads the page at `offset`; `None` where there is no register.
    pub(crate) fn read(&self, offset: u64) -> Option<u32> {
        match offset {
            0x00 => Some(self.select.into()),
            0x10 => match self.select {
                0 | 2 => Some(self.id << 24),
                1 => Some(VERSION),
                _ => {
                    let (line, shift) = self.entry()?;
                    Some((self.entries[line] >> shift) as u32)
                }
            },
            _ => None,
        }
    }

    /// Writes the page at `offset`; `None` where there is no register. The message that follows, if one does.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Option<Option<InterruptMessage>> {
        match (offset, self.select) {
            (0x00, _) => self.select = value as u8,
            (0x10, 0) => self.id = value >> 24 & 0xf,
            // Version and arbitration ID are read only.
            (0x10, 1 | 2) => {}
            (0x10, _) => {
                let (line, shift) = self.entry()?;
                let written = 0xffff_ffff << shift & !(REMOTE_IRR | DELIVERY_STATUS);
                self.entries[line] = self.entries[line] & !written | u64::from(value) << shift & written;
                if self.entries[line] & LEVEL == 0 {
                    self.entries[line] &= !REMOTE_IRR;
                    return Some(None);
                }
                return Some(self.fire(line));
            }
            _ => return None,
        }
        Some(None)
    }

    /// The line and the half of its entry that are selected.
    fn entry(&self) -> Option<(usize, u32)> {
        let index = usize::from(self.select.checked_sub(0x10)?);
        (index / 2 < LINES).then_some((index / 2, index as u32 % 2 * 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(ioapic: &mut IoApic, line: u32, entry: u64) -> Option<InterruptMessage> {
        let mut message = None;
        for (half, value) in [(1, entry >> 32), (0, entry & 0xffff_ffff)] {
            ioapic.write(0, 0x10 + 2 * line + half).unwrap();
            message = ioapic.write(0x10, value as u32).unwrap();
        }
        message
    }

    #[test]
    fn an_edge_is_sent_once() {
        let mut ioapic = IoApic::new();
        program(&mut ioapic, 4, 1 << 56 | 0x31);
        let message = ioapic.set_line(4, true).unwrap();
        assert_eq!((message.destination, message.vector), (Destination::Physical(1), 0x31));
        assert_eq!(ioapic.set_line(4, true), None);
        ioapic.set_line(4, false);
        assert!(ioapic.set_line(4, true).is_some());
    }

    #[test]
    fn a_masked_edge_is_lost() {
        let mut ioapic = IoApic::new();
        program(&mut ioapic, 4, MASKED | 0x31);
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(program(&mut ioapic, 4, 0x31), None);
    }

    #[test]
    fn a_level_is_sent_again_after_its_end_while_it_stays() {
        let mut ioapic = IoApic::new();
        program(&mut ioapic, 9, LEVEL | 0x41);
        assert!(ioapic.set_line(9, true).unwrap().level);
        assert_eq!(ioapic.set_line(9, true), None, "remote IRR is set");
        assert_eq!(ioapic.end_of_interrupt(0x41).len(), 1);
        ioapic.set_line(9, false);
        assert_eq!(ioapic.end_of_interrupt(0x41), []);
    }

    #[test]
    fn a_level_waits_behind_the_mask() {
        let mut ioapic = IoApic::new();
        program(&mut ioapic, 9, LEVEL | MASKED | 0x41);
        assert_eq!(ioapic.set_line(9, true), None);
        assert!(program(&mut ioapic, 9, LEVEL | 0x41).is_some());
    }

    #[test]
    fn registers_of_other_numbers_do_not_exist() {
        let mut ioapic = IoApic::new();
        ioapic.write(0, 0x40).unwrap();
        assert_eq!((ioapic.read(0x10), ioapic.write(0x10, 0), ioapic.read(0x20)), (None, None, None));
        ioapic.write(0, 1).unwrap();
        assert_eq!(ioapic.read(0x10), Some(0x0017_0020));
    }
}
