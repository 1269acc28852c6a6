//! The clock with battery-backed memory: Motorola MC146818A. It shows virtual time, so it is the same at every
//! power-on. It does not interrupt.

use serde::{Deserialize, Serialize};

use crate::clock;

/// At power-on it is midnight of this day: Thursday, 1 January 2026.
const DAYS_BEFORE_POWER_ON: u64 = 20_454;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// 24 hours a day, in BCD.
const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
const INTERRUPTS: u8 = 0x70;
/// 32.768 kHz, 1024 Hz.
const DIVIDERS: u8 = 0x26;
const BATTERY_GOOD: u8 = 0x80;

/// The chip behind ports 0x70 and 0x71.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cmos {
    index: u8,
    status_b: u8,
    memory: Vec<u8>,
}

impl Cmos {
    pub(crate) fn new() -> Cmos {
        Cmos { index: 0, status_b: HOURS_24, memory: vec![0; 128] }
    }

    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    /// Bit 7 disables NMIs on the way to the processor, of which this board has none.
    pub(crate) fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    pub(crate) fn read(&self, now: u64) -> u8 {
        let seconds = clock::duration(now).as_secs();
        let days = DAYS_BEFORE_POWER_ON + seconds / 86_400;
        let (year, month, day) = civil(days);
        let value = match self.index {
            0x00 => seconds % 60,
            0x02 => seconds / 60 % 60,
            0x04 => seconds / 3600 % 24,
            // 1 January 1970 was a Thursday; Sunday is 1.
            0x06 => (days + 4) % 7 + 1,
            0x07 => day,
            0x08 => month,
            0x09 => year % 100,
            CENTURY => year / 100,
            STATUS_A => return DIVIDERS,
            STATUS_B => return self.status_b,
            STATUS_C => return 0,
            STATUS_D => return BATTERY_GOOD,
            index => return self.memory[usize::from(index)],
        };
        if self.status_b & BINARY != 0 { value as u8 } else { (value / 10 * 16 + value % 10) as u8 }
    }

    /// Writes; `false` if that asks for an interrupt, which this chip does not send.
    pub(crate) fn write(&mut self, value: u8) -> bool {
        match self.index {
            STATUS_B => {
                self.status_b = value & !INTERRUPTS | HOURS_24;
                value & INTERRUPTS == 0
            }
            // Its time is the machine's, whatever somebody sets.
            0x00 | 0x02 | 0x04 | 0x06..=0x0d | CENTURY => true,
            index => {
                self.memory[usize::from(index)] = value;
                true
            }
        }
    }
}

/// Year, month and day of a day since 1970.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TSC_HZ;

    fn read(cmos: &mut Cmos, index: u8, now: u64) -> u8 {
        cmos.select(index);
        cmos.read(now)
    }

    #[test]
    fn time_is_virtual_and_in_bcd() {
        let mut cmos = Cmos::new();
        let later = TSC_HZ * (86_400 * 58 + 3600 * 21 + 60 * 45 + 59);
        let time = [0x09, 0x08, 0x07, 0x04, 0x02, 0x00, CENTURY].map(|index| read(&mut cmos, index, later));
        assert_eq!(time, [0x26, 0x02, 0x28, 0x21, 0x45, 0x59, 0x20]);
        assert_eq!(read(&mut cmos, 0x06, 0), 5, "a Thursday");
    }

    #[test]
    fn it_can_be_asked_for_binary_and_not_for_interrupts() {
        let mut cmos = Cmos::new();
        cmos.select(STATUS_B);
        assert!(cmos.write(HOURS_24 | BINARY));
        assert_eq!(read(&mut cmos, 0x00, TSC_HZ * 59), 59);
        cmos.select(STATUS_B);
        assert!(!cmos.write(0x40));
    }

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(DAYS_BEFORE_POWER_ON), (2026, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
    }
}
