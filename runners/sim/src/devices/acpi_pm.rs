//! The fixed power-management registers of ACPI (specification, section 4.8): event and control registers, and the
//! timer.

use serde::{Deserialize, Serialize};

use crate::clock::counts;

/// Frequency of the timer.
const TIMER_HZ: u64 = 3_579_545;
/// ACPI mode is always on.
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
/// The type of sleep that [`crate::boot`]'s tables name for S5.
pub(crate) const SLEEP_TYPE_S5: u16 = 5;

/// Offsets of the registers in their block of 16 ports.
mod offset {
    pub(super) const STATUS: u16 = 0;
    pub(super) const ENABLE: u16 = 2;
    pub(super) const CONTROL: u16 = 4;
    pub(super) const TIMER: u16 = 8;
}

/// What a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    PowerOff,
    /// A sleep that the tables do not offer.
    UnknownSleep(u16),
}

/// The registers. Nothing on this board sets a status bit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AcpiPm {
    enable: u16,
    control: u16,
}

impl AcpiPm {
    /// Reads at an offset in the block; `None` where there is no register.
    pub(crate) fn read(&self, offset: u16, now: u64) -> Option<u32> {
        Some(match offset {
            offset::STATUS => 0,
            offset::ENABLE => self.enable.into(),
            offset::CONTROL => (self.control | SCI_ENABLE).into(),
            // 32 bits, as the flags of the FADT say.
            offset::TIMER => counts(now, TIMER_HZ) as u32,
            _ => return None,
        })
    }

    /// Writes at an offset in the block; `None` where there is no register.
    pub(crate) fn write(&mut self, offset: u16, value: u32) -> Option<Effect> {
        let value = value as u16;
        match offset {
            // Writing ones clears what is not set; the timer is read only.
            offset::STATUS | offset::TIMER => {}
            offset::ENABLE => self.enable = value,
            offset::CONTROL => {
                self.control = value & !SLEEP_ENABLE;
                if value & SLEEP_ENABLE != 0 {
                    let kind = value >> 10 & 7;
                    return Some(if kind == SLEEP_TYPE_S5 { Effect::PowerOff } else { Effect::UnknownSleep(kind) });
                }
            }
            _ => return None,
        }
        Some(Effect::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TSC_HZ;

    #[test]
    fn sleep_type_5_switches_off() {
        let mut pm = AcpiPm::default();
        assert_eq!(pm.write(offset::CONTROL, 5 << 10), Some(Effect::None));
        assert_eq!(pm.write(offset::CONTROL, 5 << 10 | 1 << 13), Some(Effect::PowerOff));
        assert_eq!(pm.write(offset::CONTROL, 1 << 10 | 1 << 13), Some(Effect::UnknownSleep(1)));
        assert_eq!(pm.read(offset::CONTROL, 0), Some(1 << 10 | 1));
    }

    #[test]
    fn the_timer_counts_with_its_frequency() {
        assert_eq!(AcpiPm::default().read(offset::TIMER, TSC_HZ * 2), Some(7_159_090));
    }
}
