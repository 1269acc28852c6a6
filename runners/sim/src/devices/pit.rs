//! The interval timer: Intel 8254 data sheet. Channel 0 is IRQ 0, channel 2 is gated and read through port 0x61.
//! Counters are computed from the clock when somebody looks.

use serde::{Deserialize, Serialize};

use crate::clock::{counts, ticks};

/// Frequency of the counters.
pub(crate) const HZ: u64 = 1_193_182;

const CHANNELS: usize = 3;
const SPEAKER: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// 0: the output rises when the count has run down.
    TerminalCount,
    /// 1: the same after a rising gate.
    Retriggerable,
    /// 2: a pulse at the end of each period.
    Rate,
    /// 3: high for half of the period.
    Square,
    /// 4 and 5: one pulse at the end.
    Strobe,
}

impl Mode {
    fn is_periodic(self) -> bool {
        matches!(self, Mode::Rate | Mode::Square)
    }
}

/// Which bytes of the count an access moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: Mode,
    access: Access,
    /// 1 to 65536.
    reload: u32,
    /// When counting began; `None` until a count was written.
    started: Option<u64>,
    /// The low byte of a count whose high byte is still to be written.
    written_low: Option<u8>,
    /// A count that was latched, and whether its low byte has been read.
    latched: Option<u16>,
    latched_status: Option<u8>,
    read_low: bool,
    gate: bool,
    /// Periods, or runs, whose end has been told.
    told: u64,
}

impl Channel {
    fn new(gate: bool) -> Channel {
        Channel {
            mode: Mode::TerminalCount,
            access: Access::LowThenHigh,
            reload: 0x1_0000,
            started: None,
            written_low: None,
            latched: None,
            latched_status: None,
            read_low: false,
            gate,
            told: 0,
        }
    }

    /// Counts since the beginning.
    fn elapsed(&self, now: u64) -> Option<u64> {
        self.started.filter(|_| self.gate).map(|started| counts(now - started, HZ))
    }

    fn count(&self, now: u64) -> u16 {
        let Some(elapsed) = self.elapsed(now) else { return self.reload as u16 };
        let reload = u64::from(self.reload);
        match self.mode {
            Mode::Rate => (reload - elapsed % reload) as u16,
            // Counts by twos, twice a period.
            Mode::Square => (reload - 2 * elapsed % reload) as u16,
            _ => reload.wrapping_sub(elapsed) as u16,
        }
    }

    fn output(&self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else { return self.mode != Mode::TerminalCount };
        let reload = u64::from(self.reload);
        match self.mode {
            Mode::TerminalCount | Mode::Retriggerable => elapsed >= reload,
            Mode::Rate => elapsed % reload != reload - 1,
            Mode::Square => elapsed % reload < reload.div_ceil(2),
            Mode::Strobe => elapsed != reload,
        }
    }

    /// When the output rises next.
    fn deadline(&self) -> Option<u64> {
        let started = self.started.filter(|_| self.gate)?;
        let ends = self.told + 1;
        (self.mode.is_periodic() || ends == 1).then(|| started + ticks(ends * u64::from(self.reload), HZ))
    }

    /// Whether the output has risen since the last call.
    fn expire(&mut self, now: u64) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        if due {
            let periods = self.elapsed(now).unwrap_or(0) / u64::from(self.reload);
            self.told = if self.mode.is_periodic() { periods } else { 1 };
        }
        due
    }

    fn set_control(&mut self, mode: u8, access: Access) {
        let mode = match mode & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::Retriggerable,
            2 | 6 => Mode::Rate,
            3 | 7 => Mode::Square,
            _ => Mode::Strobe,
        };
        *self = Channel { mode, access, ..Channel::new(self.gate) };
    }

    fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.written_low) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowThenHigh, None) => {
                self.written_low = Some(value);
                return;
            }
            (Access::LowThenHigh, Some(low)) => u16::from(value) << 8 | u16::from(low),
        };
        self.written_low = None;
        self.reload = if count == 0 { 0x1_0000 } else { count.into() };
        self.started = Some(now);
        self.told = 0;
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched.unwrap_or_else(|| self.count(now));
        let [low, high] = count.to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowThenHigh => {
                let second = self.read_low;
                self.read_low = !second;
                (if second { high } else { low }, second)
            }
        };
        if last {
            self.latched = None;
        }
        byte
    }

    fn status(&self, now: u64) -> u8 {
        let mode = match self.mode {
            Mode::TerminalCount => 0,
            Mode::Retriggerable => 1,
            Mode::Rate => 2,
            Mode::Square => 3,
            Mode::Strobe => 4,
        };
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        u8::from(self.output(now)) << 7 | u8::from(self.started.is_none()) << 6 | access << 4 | mode << 1
    }
}

/// The timer and the part of port 0x61 that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pit {
    channels: [Channel; CHANNELS],
    speaker_data: bool,
}

impl Pit {
    pub(crate) fn new() -> Pit {
        Pit { channels: [Channel::new(true), Channel::new(true), Channel::new(false)], speaker_data: false }
    }

    /// When IRQ 0 rises next.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.channels[0].deadline()
    }

    /// Whether IRQ 0 has risen.
    pub(crate) fn expire(&mut self, now: u64) -> bool {
        self.channels[0].expire(now)
    }

    /// Reads port 0x40 to 0x43.
    pub(crate) fn read(&mut self, port: u16, now: u64) -> u8 {
        match self.channels.get_mut(usize::from(port & 3)) {
            Some(channel) => channel.read(now),
            // The control word cannot be read.
            None => 0xff,
        }
    }

    /// Writes port 0x40 to 0x43.
    pub(crate) fn write(&mut self, port: u16, value: u8, now: u64) {
        match self.channels.get_mut(usize::from(port & 3)) {
            Some(channel) => channel.write(value, now),
            None => self.control(value, now),
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        let access = match value >> 4 & 3 {
            0 => None,
            1 => Some(Access::Low),
            2 => Some(Access::High),
            _ => Some(Access::LowThenHigh),
        };
        match (self.channels.get_mut(usize::from(value >> 6)), access) {
            (Some(channel), Some(access)) => channel.set_control(value >> 1, access),
            (Some(channel), None) => channel.latched = channel.latched.or(Some(channel.count(now))),
            (None, _) => self.read_back(value, now),
        }
    }

    /// The read-back command: bits 5 and 4, active low, latch counts and status of the channels in bits 3 to 1.
    fn read_back(&mut self, value: u8, now: u64) {
        let chosen = self.channels.iter_mut().enumerate().filter(|(index, _)| value >> (index + 1) & 1 != 0);
        for (_, channel) in chosen {
            if value & 1 << 5 == 0 {
                channel.latched = channel.latched.or(Some(channel.count(now)));
            }
            if value & 1 << 4 == 0 {
                channel.latched_status = channel.latched_status.or(Some(channel.status(now)));
            }
        }
    }

    /// Reads port 0x61: gate and data of the speaker, the refresh toggle, and the output of channel 2.
    pub(crate) fn read_gate(&self, now: u64) -> u8 {
        let refresh = counts(now, HZ / 18) as u8 & 1;
        let speaker = &self.channels[SPEAKER];
        u8::from(speaker.output(now)) << 5 | refresh << 4 | u8::from(self.speaker_data) << 1 | u8::from(speaker.gate)
    }

    /// Writes port 0x61. A rising gate starts the count anew.
    pub(crate) fn write_gate(&mut self, value: u8, now: u64) {
        let speaker = &mut self.channels[SPEAKER];
        let gate = value & 1 != 0;
        if gate && !speaker.gate && speaker.started.is_some() {
            speaker.started = Some(now);
        }
        speaker.gate = gate;
        self.speaker_data = value & 2 != 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: u16 = 0x43;

    #[test]
    fn terminal_count_raises_the_output_once() {
        let mut pit = Pit::new();
        pit.write_gate(1, 0);
        pit.write(CONTROL, 0b1011_0000, 0);
        pit.write(0x42, 100, 0);
        pit.write(0x42, 0, 0);
        assert_eq!(pit.read_gate(ticks(99, HZ)) & 0x20, 0);
        assert_eq!(pit.read_gate(ticks(100, HZ)) & 0x20, 0x20);
    }

    #[test]
    fn a_count_is_read_low_byte_first_and_stays_latched() {
        let mut pit = Pit::new();
        pit.write(CONTROL, 0b0011_0000, 0);
        pit.write(0x40, 0x34, 0);
        pit.write(0x40, 0x12, 0);
        pit.write(CONTROL, 0, ticks(0x11, HZ));
        let later = ticks(0x300, HZ);
        assert_eq!([pit.read(0x40, later), pit.read(0x40, later)], [0x23, 0x12]);
        assert_eq!([pit.read(0x40, later), pit.read(0x40, later)], [0x34, 0x0f]);
    }

    #[test]
    fn the_rate_generator_interrupts_each_period() {
        let mut pit = Pit::new();
        assert_eq!(pit.deadline(), None);
        pit.write(CONTROL, 0b0011_0100, 0);
        pit.write(0x40, 10, 0);
        pit.write(0x40, 0, 0);
        assert_eq!(pit.deadline(), Some(ticks(10, HZ)));
        assert!(!pit.expire(ticks(10, HZ) - 1) && pit.expire(ticks(10, HZ)));
        assert!(pit.expire(ticks(45, HZ)), "several periods at once");
        assert_eq!(pit.deadline(), Some(ticks(50, HZ)));
    }

    #[test]
    fn a_closed_gate_stops_channel_2() {
        let mut pit = Pit::new();
        pit.write(CONTROL, 0b1011_0000, 0);
        pit.write(0x42, 1, 0);
        pit.write(0x42, 0, 0);
        assert_eq!(pit.read_gate(ticks(5, HZ)) & 0x20, 0);
        pit.write_gate(1, ticks(5, HZ));
        assert_eq!(pit.read_gate(ticks(7, HZ)) & 0x20, 0x20);
    }

    #[test]
    fn the_read_back_command_latches_status() {
        let mut pit = Pit::new();
        pit.write(CONTROL, 0b0011_0100, 0);
        pit.write(CONTROL, 0b1110_0010, 0);
        assert_eq!(pit.read(0x40, 0), 0b1111_0100);
    }
}
