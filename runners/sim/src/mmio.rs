//! The map of the registers in memory.

use crate::board::Board;
use crate::log::Unknown;

/// System-physical address of the I/O APIC.
pub(crate) const IOAPIC: u64 = 0xfec0_0000;
/// System-physical address of each processor's own local APIC.
pub(crate) const LAPIC: u64 = 0xfee0_0000;

const PAGE: u64 = 0xfff;

/// What operating systems look for on any PC, and this one has not: page ranges.
const ABSENT: &[(u64, u64, &str)] = &[
    (0xa_0000, 0xb_f000, "VGA"),
    (0xfed0_0000, 0xfed0_0000, "HPET"),
    (0xfed8_0000, 0xfed8_1000, "AMD's controller hub"),
];

fn is_absent(page: u64) -> bool {
    ABSENT.iter().any(|(first, last, _)| (*first..=*last).contains(&page))
}

impl Board {
    /// A processor reads outside of memory.
    pub(crate) fn mmio_read(&mut self, cpu: usize, address: u64, data: &mut [u8], now: u64) {
        let value = match address & !PAGE {
            LAPIC => self.lapic_read(cpu, address & PAGE, now),
            IOAPIC => self.ioapic.read(address & PAGE),
            _ => None,
        };
        match value {
            Some(value) if data.len() <= 4 => data.copy_from_slice(&value.to_le_bytes()[..data.len()]),
            _ => {
                data.fill(0xff);
                if !is_absent(address & !PAGE) {
                    self.log.unknown(Unknown::MmioRead { page: address & !PAGE });
                }
            }
        }
    }

    /// A processor writes outside of memory.
    pub(crate) fn mmio_write(&mut self, cpu: usize, address: u64, data: &[u8], now: u64) {
        let word = <[u8; 4]>::try_from(data).ok().map(u32::from_le_bytes);
        let known = match (address & !PAGE, word) {
            (LAPIC, Some(value)) => self.lapic_write(cpu, address & PAGE, value, now),
            (IOAPIC, Some(value)) => match self.ioapic.write(address & PAGE, value) {
                Some(message) => {
                    if let Some(message) = message {
                        self.send(message, None);
                    }
                    true
                }
                None => false,
            },
            _ => is_absent(address & !PAGE),
        };
        if !known {
            self.log.unknown(Unknown::MmioWrite { page: address & !PAGE });
        }
    }

    /// Registers of xAPIC mode are 16 bytes apart, and only their first 4 exist.
    fn lapic_read(&mut self, cpu: usize, offset: u64, now: u64) -> Option<u32> {
        if offset & 0xf != 0 {
            return None;
        }
        // A register that is not there reads as zero and is an error that the APIC keeps.
        Some(self.lapics[cpu].read((offset >> 4) as u32, now).unwrap_or(0))
    }

    fn lapic_write(&mut self, cpu: usize, offset: u64, value: u32, now: u64) -> bool {
        if offset & 0xf != 0 {
            return false;
        }
        if let Some(effect) = self.lapics[cpu].write((offset >> 4) as u32, value, now) {
            self.apply(cpu, effect);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use proptest::prelude::*;

    #[test]
    fn each_processor_finds_its_own_apic() {
        let mut board = Board::new(Profile::Plain.into(), 3, None);
        for cpu in 0..3 {
            let mut id = [0; 4];
            board.mmio_read(cpu, LAPIC + 0x20, &mut id, 0);
            assert_eq!(u32::from_le_bytes(id) >> 24, cpu as u32);
        }
        assert_eq!(board.log.take(), []);
    }

    #[test]
    fn what_is_nowhere_reads_as_ones_and_is_told() {
        let mut board = Board::new(Profile::Plain.into(), 1, None);
        let mut data = [0; 8];
        board.mmio_read(0, 0xfed0_0000, &mut data, 0);
        assert_eq!((data, board.log.take()), ([0xff; 8], vec![]));
        board.mmio_read(0, 0xd000_0008, &mut data, 0);
        assert_eq!(board.log.take()[0].what, Unknown::MmioRead { page: 0xd000_0000 });
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics(
            accesses in prop::collection::vec(
                (0usize..3, 0u64..256, prop_oneof![Just(0u64), 0u64..16], prop::collection::vec(any::<u8>(), 1..16),
                 any::<bool>(), 0u64..1 << 40),
                1..200,
            )
        ) {
            let mut board = Board::new(Profile::Plain.into(), 3, None);
            let mut now = 0;
            for (page, register, within, mut data, write, later) in accesses {
                now += later;
                let address = [LAPIC, IOAPIC, 0x1_0000_0000][page] + register * 16 + within;
                let cpu = data.len() % 3;
                if write {
                    board.mmio_write(cpu, address, &data, now);
                } else {
                    board.mmio_read(cpu, address, &mut data, now);
                }
                board.tick(now);
            }
        }
    }
}
