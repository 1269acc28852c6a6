//! A serial port: National Semiconductor's 16550A with FIFOs (data sheet, section 8). It sends in no time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes of the receiver's FIFO.
const FIFO: usize = 16;

mod interrupt_enable {
    pub(super) const RECEIVED: u8 = 1 << 0;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub(super) const ALL: u8 = 0x0f;
}

mod modem_control {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOPBACK: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1f;
}

mod modem_status {
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RING: u8 = 1 << 6;
    pub(super) const CARRIER: u8 = 1 << 7;
}

const DIVISOR_LATCH: u8 = 1 << 7;
const FIFO_ENABLE: u8 = 1 << 0;
const CLEAR_RECEIVER: u8 = 1 << 1;
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 0x60;

/// A serial port and the cable behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uart {
    divisor: u16,
    interrupt_enable: u8,
    fifo_enabled: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// The transmitter became empty, and nobody has asked yet.
    empty_pending: bool,
    received: VecDeque<u8>,
    /// What waits outside until the receiver has room.
    incoming: VecDeque<u8>,
    sent: Vec<u8>,
}

impl Uart {
    pub(crate) fn new() -> Uart {
        Uart {
            // 9600 baud.
            divisor: 12,
            interrupt_enable: 0,
            fifo_enabled: false,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            empty_pending: false,
            received: VecDeque::new(),
            incoming: VecDeque::new(),
            sent: Vec::new(),
        }
    }

    /// Bytes for the guest, which the receiver takes as it has room.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.incoming.extend(bytes);
        self.fill();
    }

    /// What the guest has sent since the last call.
    pub(crate) fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    /// Whether [`Uart::take_sent`] would find anything.
    pub(crate) fn has_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// The interrupt line, which OUT2 connects on a PC.
    pub(crate) fn line(&self) -> bool {
        self.interrupt().is_some()
            && self.modem_control & (modem_control::OUT2 | modem_control::LOOPBACK) == modem_control::OUT2
    }

    fn fill(&mut self) {
        let room = if self.fifo_enabled { FIFO } else { 1 };
        while self.received.len() < room {
            match self.incoming.pop_front() {
                Some(byte) => self.received.push_back(byte),
                None => break,
            }
        }
    }

    /// The cause with the highest priority, as the interrupt identification names it (table 5). The line has no
    /// errors, and its modem never changes.
    fn interrupt(&self) -> Option<u8> {
        if self.interrupt_enable & interrupt_enable::RECEIVED != 0 && !self.received.is_empty() {
            Some(0b0100)
        } else if self.interrupt_enable & interrupt_enable::TRANSMITTER_EMPTY != 0 && self.empty_pending {
            Some(0b0010)
        } else {
            None
        }
    }

    fn latched(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    /// Reads register 0 to 7.
    pub(crate) fn read(&mut self, register: u16) -> u8 {
        match register {
            0 if self.latched() => self.divisor as u8,
            0 => {
                let byte = self.received.pop_front().unwrap_or(0);
                self.fill();
                byte
            }
            1 if self.latched() => (self.divisor >> 8) as u8,
            1 => self.interrupt_enable,
            2 => {
                let fifos = if self.fifo_enabled { 0xc0 } else { 0 };
                let cause = self.interrupt();
                if cause == Some(0b0010) {
                    self.empty_pending = false;
                }
                fifos | cause.unwrap_or(1)
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => TRANSMITTER_EMPTY | if self.received.is_empty() { 0 } else { DATA_READY },
            6 => self.modem_status(),
            _ => self.scratch,
        }
    }

    /// A modem that is always ready, or in loopback the own outputs.
    fn modem_status(&self) -> u8 {
        if self.modem_control & modem_control::LOOPBACK == 0 {
            return modem_status::CTS | modem_status::DSR | modem_status::CARRIER;
        }
        let wires = [
            (modem_control::RTS, modem_status::CTS),
            (modem_control::DTR, modem_status::DSR),
            (modem_control::OUT1, modem_status::RING),
            (modem_control::OUT2, modem_status::CARRIER),
        ];
        wires.iter().filter(|(output, _)| self.modem_control & output != 0).map(|(_, input)| input).sum()
    }

    /// Writes register 0 to 7.
    pub(crate) fn write(&mut self, register: u16, value: u8) {
        match register {
            0 if self.latched() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => {
                if self.modem_control & modem_control::LOOPBACK != 0 {
                    self.received.push_back(value);
                    self.received.truncate(FIFO);
                } else {
                    self.sent.push(value);
                }
                self.empty_pending = true;
            }
            1 if self.latched() => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                let enabled = value & !self.interrupt_enable;
                self.interrupt_enable = value & interrupt_enable::ALL;
                // Enabling the interrupt of an empty transmitter raises it.
                self.empty_pending |= enabled & interrupt_enable::TRANSMITTER_EMPTY != 0;
            }
            2 => {
                let was_enabled = std::mem::replace(&mut self.fifo_enabled, value & FIFO_ENABLE != 0);
                if value & CLEAR_RECEIVER != 0 || was_enabled != self.fifo_enabled {
                    self.received.clear();
                }
                self.fill();
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & modem_control::ALL,
            // Line and modem status are read only.
            5 | 6 => {}
            _ => self.scratch = value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_interrupts(enable: u8) -> Uart {
        let mut uart = Uart::new();
        uart.write(2, FIFO_ENABLE);
        uart.write(4, modem_control::OUT2);
        uart.write(1, enable);
        uart
    }

    #[test]
    fn reading_the_cause_ends_the_interrupt_of_the_transmitter() {
        let mut uart = with_interrupts(interrupt_enable::TRANSMITTER_EMPTY);
        assert!(uart.line());
        assert_eq!((uart.read(2), uart.line()), (0xc2, false));
        uart.write(0, b'x');
        assert!(uart.line());
        assert_eq!(uart.take_sent(), b"x");
    }

    #[test]
    fn reading_the_data_ends_the_interrupt_of_the_receiver() {
        let mut uart = with_interrupts(interrupt_enable::RECEIVED);
        uart.feed(&[7; 20]);
        assert_eq!(uart.received.len(), FIFO, "the rest waits outside");
        assert_eq!((uart.line(), uart.read(2)), (true, 0xc4));
        for _ in 0..20 {
            assert_eq!((uart.read(5) & DATA_READY, uart.read(0)), (1, 7));
        }
        assert_eq!((uart.line(), uart.read(2), uart.read(5)), (false, 0xc1, TRANSMITTER_EMPTY));
    }

    #[test]
    fn the_receiver_comes_before_the_transmitter() {
        let mut uart = with_interrupts(interrupt_enable::ALL);
        uart.feed(b"a");
        assert_eq!(uart.read(2), 0xc4);
        uart.read(0);
        assert_eq!(uart.read(2), 0xc2);
    }

    #[test]
    fn without_out2_there_is_no_line() {
        let mut uart = with_interrupts(interrupt_enable::TRANSMITTER_EMPTY);
        uart.write(4, 0);
        assert!(!uart.line());
    }

    #[test]
    fn loopback_connects_outputs_with_inputs_and_sends_nothing() {
        let mut uart = Uart::new();
        uart.write(4, modem_control::LOOPBACK | modem_control::RTS | modem_control::OUT2);
        assert_eq!(uart.read(6), modem_status::CTS | modem_status::CARRIER);
        uart.write(0, b'z');
        assert_eq!((uart.read(0), uart.has_sent()), (b'z', false));
    }

    #[test]
    fn the_divisor_is_behind_its_latch_and_no_upper_bit_of_the_enable_register_exists() {
        let mut uart = Uart::new();
        uart.write(3, DIVISOR_LATCH | 3);
        uart.write(0, 1);
        uart.write(1, 2);
        assert_eq!((uart.read(0), uart.read(1)), (1, 2));
        uart.write(3, 3);
        uart.write(1, 0xf0);
        assert_eq!(uart.read(1), 0);
    }
}
