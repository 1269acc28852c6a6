//! The map of the ports.
//!
//! A port that no chip answers reads as ones. Ports that every Linux probes on a PC are absent by name; any other is
//! told in the machine's log.

use crate::board::{Board, PowerEvent};
use crate::devices::acpi_pm;
use crate::log::Unknown;

/// The fixed power-management registers.
pub(crate) const ACPI_PM: u16 = 0x600;
const ACPI_PM_END: u16 = ACPI_PM + 15;
const SERIAL: [u16; 2] = [0x3f8, 0x2f8];
/// The reset control register of the chip set, which the FADT names.
pub(crate) const RESET_CONTROL: u16 = 0xcf9;
/// The value that resets a running system: bit 2, with bit 1 for a hard one.
pub(crate) const RESET_NOW: u8 = 1 << 2;
/// The command to a keyboard controller that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;

/// What operating systems look for on any PC, and this one has not.
const ABSENT: &[(u16, u16, &str)] = &[
    (0x000, 0x01f, "DMA controller 1"),
    (0x02e, 0x02f, "Super I/O"),
    (0x04e, 0x04f, "Super I/O"),
    (0x060, 0x060, "keyboard controller"),
    (0x064, 0x064, "keyboard controller"),
    (0x080, 0x08f, "DMA page registers and POST codes"),
    (0x092, 0x092, "system control port A"),
    (0x0c0, 0x0df, "DMA controller 2"),
    (0x0ed, 0x0ed, "delay port"),
    (0x0f0, 0x0ff, "x87 error latch"),
    (0x1f0, 0x1f7, "IDE"),
    (0x170, 0x177, "IDE"),
    (0x220, 0x22f, "sound card"),
    (0x278, 0x27f, "parallel port"),
    (0x2e8, 0x2ef, "COM4"),
    (0x376, 0x376, "IDE"),
    (0x378, 0x37f, "parallel port"),
    (0x3b0, 0x3df, "VGA"),
    (0x3e8, 0x3ef, "COM3"),
    (0x3f0, 0x3f7, "floppy disks and IDE"),
    // Mechanism #2 is asked for by its two registers.
    (0xcf8, 0xcfb, "PCI configuration mechanism #2"),
];

fn is_absent(port: u16) -> bool {
    ABSENT.iter().any(|(first, last, _)| (*first..=*last).contains(&port))
}

/// A register of a serial port: which port, and the number of the register.
fn serial(port: u16) -> Option<(usize, u16)> {
    let index = SERIAL.iter().position(|base| (*base..base + 8).contains(&port))?;
    Some((index, port - SERIAL[index]))
}

/// Whether an access of 1, 2 or 4 bytes stays in the data register of PCI's configuration mechanism.
fn in_pci_data(port: u16, size: u8) -> bool {
    (0xcfc..=0xcff).contains(&port) && port + u16::from(size) <= 0xd00
}

impl Board {
    /// IN: 1, 2 or 4 bytes.
    pub(crate) fn port_read(&mut self, port: u16, size: u8, now: u64) -> u32 {
        match port {
            0xcf8 if size == 4 => self.pci.address(),
            _ if in_pci_data(port, size) => self.pci.read(port - 0xcfc, size),
            ACPI_PM..=ACPI_PM_END => match self.pm.read(port - ACPI_PM, now) {
                Some(value) => value,
                None => self.unknown_port_read(port).into(),
            },
            // Chips that are 8 bits wide answer at one port after the other.
            _ => (0..size).fold(0, |value, byte| {
                value | u32::from(self.byte_read(port.wrapping_add(byte.into()), now)) << (8 * byte)
            }),
        }
    }

    fn byte_read(&mut self, port: u16, now: u64) -> u8 {
        if let Some((index, register)) = serial(port) {
            let value = self.uarts[index].read(register);
            self.update_serial(index);
            return value;
        }
        match port {
            0x20 => self.pics[0].read_command(),
            0x21 => self.pics[0].read_data(),
            0xa0 => self.pics[1].read_command(),
            0xa1 => self.pics[1].read_data(),
            0x4d0 => self.pics[0].levels(),
            0x4d1 => self.pics[1].levels(),
            0x40..=0x43 => self.pit.read(port, now),
            0x61 => self.pit.read_gate(now),
            0x70 => self.cmos.index(),
            0x71 => self.cmos.read(now),
            RESET_CONTROL => 0,
            _ if is_absent(port) => 0xff,
            _ => self.unknown_port_read(port),
        }
    }

    fn unknown_port_read(&mut self, port: u16) -> u8 {
        self.log.unknown(Unknown::PortRead { port });
        0xff
    }

    /// OUT: 1, 2 or 4 bytes.
    pub(crate) fn port_write(&mut self, port: u16, size: u8, value: u32, now: u64) {
        match port {
            0xcf8 if size == 4 => self.pci.set_address(value),
            _ if in_pci_data(port, size) => self.pci.write(port - 0xcfc, size, value),
            ACPI_PM..=ACPI_PM_END => match self.pm.write(port - ACPI_PM, value) {
                Some(acpi_pm::Effect::None) => {}
                Some(acpi_pm::Effect::PowerOff) => self.power = Some(PowerEvent::Off),
                Some(acpi_pm::Effect::UnknownSleep(kind)) => {
                    self.log.unknown(Unknown::Function(format!("ACPI sleep type {kind}")));
                }
                None => self.log.unknown(Unknown::PortWrite { port }),
            },
            _ => {
                for (byte, value) in value.to_le_bytes()[..size.into()].iter().enumerate() {
                    self.byte_write(port.wrapping_add(byte as u16), *value, now);
                }
            }
        }
    }

    fn byte_write(&mut self, port: u16, value: u8, now: u64) {
        if let Some((index, register)) = serial(port) {
            self.uarts[index].write(register, value);
            return self.update_serial(index);
        }
        match port {
            0x20 => self.pics[0].write_command(value),
            0x21 => self.pics[0].write_data(value),
            0xa0 => self.pics[1].write_command(value),
            0xa1 => self.pics[1].write_data(value),
            0x4d0 => self.pics[0].set_levels(value),
            0x4d1 => self.pics[1].set_levels(value),
            0x40..=0x43 => self.pit.write(port, value, now),
            0x61 => self.pit.write_gate(value, now),
            0x64 if value == PULSE_RESET => self.power = Some(PowerEvent::Reset),
            0x70 => self.cmos.select(value),
            0x71 => {
                if !self.cmos.write(value) {
                    self.log.unknown(Unknown::Function("interrupt of the real-time clock".into()));
                }
            }
            RESET_CONTROL => {
                if value & RESET_NOW != 0 {
                    self.power = Some(PowerEvent::Reset);
                }
            }
            _ if is_absent(port) => {}
            _ => self.log.unknown(Unknown::PortWrite { port }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::{CONSOLE, PORT};
    use crate::profile::Profile;
    use proptest::prelude::*;

    fn board() -> Board {
        Board::new(Profile::Plain.into(), 2, None)
    }

    #[test]
    fn the_serial_ports_are_console_and_port() {
        let mut board = board();
        board.port_write(0x3f8, 1, b'c'.into(), 0);
        board.port_write(0x2f8, 1, b'p'.into(), 0);
        assert_eq!(board.uarts[CONSOLE].take_sent(), b"c");
        assert_eq!(board.uarts[PORT].take_sent(), b"p");
        board.feed_serial(PORT, b"x");
        assert_eq!(board.port_read(0x2f8, 1, 0), b'x'.into());
    }

    #[test]
    fn three_ways_to_end_a_machine() {
        for (port, size, value, event) in [
            (0x604, 2, 0x3400, PowerEvent::Off),
            (0xcf9, 1, 0x06, PowerEvent::Reset),
            (0x64, 1, 0xfe, PowerEvent::Reset),
        ] {
            let mut board = board();
            board.port_write(port, size, value, 0);
            assert_eq!(board.power, Some(event));
        }
    }

    #[test]
    fn an_absent_port_reads_as_ones_and_an_unknown_one_is_told_too() {
        let mut board = board();
        assert_eq!(board.port_read(0x60, 1, 0), 0xff);
        assert_eq!(board.log.take(), []);
        assert_eq!(board.port_read(0x1234, 2, 0), 0xffff);
        let told: Vec<_> = board.log.take().into_iter().map(|finding| finding.what).collect();
        assert_eq!(told, [Unknown::PortRead { port: 0x1234 }, Unknown::PortRead { port: 0x1235 }]);
    }

    /// Where chips are, and anywhere.
    fn ports() -> impl Strategy<Value = u16> {
        let chips = [0x20, 0x40, 0x60, 0x70, 0xa0, 0x2f8, 0x3f8, 0x4d0, 0x600, 0xcf8];
        let near = (prop::sample::select(chips.to_vec()), 0u16..16).prop_map(|(chip, offset)| chip + offset);
        prop_oneof![near, any::<u16>()]
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics(
            accesses in prop::collection::vec(
                (ports(), prop::sample::select(vec![1u8, 2, 4]), any::<Option<u32>>(), 0u64..1 << 40),
                1..200,
            )
        ) {
            let mut board = board();
            let mut now = 0;
            for (port, size, write, later) in accesses {
                now += later;
                match write {
                    Some(value) => board.port_write(port, size, value, now),
                    None => drop(board.port_read(port, size, now)),
                }
                board.tick(now);
            }
        }
    }
}
