//! A local APIC: priorities, local vectors, messages in and out (SDM volume 3, chapter 12; AMD APM volume 2,
//! chapter 16). Registers are named by their number, which is the offset of xAPIC mode divided by 16 and the MSR of
//! x2APIC mode less 0x800.

use serde::{Deserialize, Serialize};

use super::apic_timer::ApicTimer;
use super::interrupt_message::{Delivery, Destination, InterruptMessage};
use super::vectors::Vectors;

/// Numbers of the registers.
pub(crate) mod register {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TASK_PRIORITY: u32 = 0x08;
    pub(crate) const ARBITRATION_PRIORITY: u32 = 0x09;
    pub(crate) const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub(crate) const END_OF_INTERRUPT: u32 = 0x0b;
    pub(crate) const REMOTE_READ: u32 = 0x0c;
    pub(crate) const LOGICAL_DESTINATION: u32 = 0x0d;
    pub(crate) const DESTINATION_FORMAT: u32 = 0x0e;
    pub(crate) const SPURIOUS: u32 = 0x0f;
    pub(crate) const IN_SERVICE: u32 = 0x10;
    pub(crate) const TRIGGER_MODE: u32 = 0x18;
    pub(crate) const REQUESTED: u32 = 0x20;
    pub(crate) const ERROR: u32 = 0x28;
    pub(crate) const COMMAND: u32 = 0x30;
    pub(crate) const COMMAND_HIGH: u32 = 0x31;
    pub(crate) const LOCAL_TIMER: u32 = 0x32;
    pub(crate) const LOCAL_ERROR: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_INTERRUPT: u32 = 0x3f;
}

/// Local vectors: timer, thermal, performance counters, LINT0, LINT1, error.
const LOCAL_VECTORS: usize = 6;
const TIMER: usize = 0;
const MASKED: u32 = 1 << 16;
/// Version 0x14 with six local vectors.
const VERSION: u32 = 0x14 | (LOCAL_VECTORS as u32 - 1) << 16;
/// Bits of local vectors that can be written: timer mode, mask, trigger, polarity, delivery, vector.
const WRITABLE: [u32; LOCAL_VECTORS] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
const ILLEGAL_VECTOR_SENT: u32 = 1 << 5;
const ILLEGAL_VECTOR_RECEIVED: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;
const LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;
const LOGICAL: u32 = 1 << 11;

/// What a write asks of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// To send this.
    Send(InterruptMessage),
    /// To tell the I/O APICs that the handler of this level-triggered vector has ended.
    EndOfLevel(u8),
}

/// What has arrived and is not an interrupt with a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signals {
    pub(crate) nmi: bool,
    pub(crate) init: bool,
    /// The processor has taken the INIT, which takes effect when its turn ends.
    pub(crate) init_taken: bool,
    /// The page at which to start.
    pub(crate) start_up: Option<u8>,
}

/// A local APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lapic {
    id: u32,
    x2apic: bool,
    requested: Vectors,
    in_service: Vectors,
    trigger_mode: Vectors,
    task_priority: u8,
    spurious: u32,
    logical_destination: u32,
    destination_format: u32,
    /// The error register shows what was latched by the last write to it.
    error: u32,
    errors: u32,
    command: u64,
    local: [u32; LOCAL_VECTORS],
    pub(crate) timer: ApicTimer,
    pub(crate) signals: Signals,
}

impl Lapic {
    /// After RESET.
    pub(crate) fn new(id: u32) -> Lapic {
        Lapic {
            id,
            x2apic: false,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            trigger_mode: Vectors::default(),
            task_priority: 0,
            spurious: 0xff,
            logical_destination: 0,
            destination_format: u32::MAX,
            error: 0,
            errors: 0,
            command: 0,
            local: [MASKED; LOCAL_VECTORS],
            timer: ApicTimer::default(),
            signals: Signals::default(),
        }
    }

    /// After INIT: as after RESET, but the ID stays, and what is on its way is not lost.
    pub(crate) fn init(&mut self) {
        *self = Lapic { signals: self.signals, x2apic: self.x2apic, ..Lapic::new(self.id) };
    }

    pub(crate) fn set_x2apic(&mut self, on: bool) {
        self.x2apic = on;
    }

    fn enabled(&self) -> bool {
        self.spurious & 0x100 != 0
    }

    // ---- priorities ------------------------------------------------------------------------------------------

    pub(crate) fn processor_priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0) & 0xf0;
        if self.task_priority & 0xf0 >= in_service { self.task_priority } else { in_service }
    }

    /// The interrupt that is due.
    pub(crate) fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.enabled() && vector & 0xf0 > self.processor_priority() & 0xf0).then_some(vector)
    }

    /// The processor takes the interrupt that is due.
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested.remove(vector);
        self.in_service.insert(vector);
        Some(vector)
    }

    /// CR8, which is the upper half of the task priority.
    pub(crate) fn set_cr8(&mut self, cr8: u64) {
        self.task_priority = (cr8 as u8 & 0xf) << 4;
    }

    /// The handler of the interrupt in service has ended.
    pub(crate) fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else { return Effect::None };
        self.in_service.remove(vector);
        if self.trigger_mode.contains(vector) { Effect::EndOfLevel(vector) } else { Effect::None }
    }

    // ---- messages --------------------------------------------------------------------------------------------

    /// Whether a destination of a message from somebody else means this APIC.
    pub(crate) fn is_addressed(&self, destination: Destination) -> bool {
        match destination {
            Destination::Physical(id) => id == self.id || id == if self.x2apic { u32::MAX } else { 0xff },
            Destination::Logical(set) if self.x2apic => {
                let cluster = set >> 16 == self.id >> 4 || set == u32::MAX;
                cluster && set >> (self.id & 0xf) & 1 != 0
            }
            Destination::Logical(set) => {
                let own = self.logical_destination >> 24;
                let flat = self.destination_format >> 28 == 0xf;
                if flat { own & set != 0 } else { own >> 4 == set >> 4 && own & set & 0xf != 0 }
            }
            Destination::Itself => false,
            Destination::All | Destination::Others => true,
        }
    }

    /// A message that means this APIC arrives.
    pub(crate) fn receive(&mut self, delivery: Delivery, vector: u8, level: bool) {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < 16 => self.errors |= ILLEGAL_VECTOR_RECEIVED,
            Delivery::Fixed | Delivery::LowestPriority => {
                self.requested.insert(vector);
                if level {
                    self.trigger_mode.insert(vector);
                } else {
                    self.trigger_mode.remove(vector);
                }
            }
            Delivery::Nmi => self.signals.nmi = true,
            Delivery::Init => self.signals = Signals { init: true, start_up: None, ..self.signals },
            Delivery::StartUp => self.signals.start_up = Some(vector),
            // No firmware lives in SMM here; the vector of an 8259 is fetched, not received.
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => {}
        }
    }

    fn command_message(&mut self) -> Effect {
        let low = self.command as u32;
        let high = (self.command >> 32) as u32;
        let id = if self.x2apic { high } else { high >> 24 };
        let destination = match low >> 18 & 3 {
            0 if low & LOGICAL != 0 => Destination::Logical(id),
            0 => Destination::Physical(id),
            1 => Destination::Itself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        let (delivery, vector) = (Delivery::of(low), low as u8);
        if delivery == Delivery::Init && low & (LEVEL | ASSERT) == LEVEL {
            // INIT level de-assert only set arbitration IDs, on processors with an APIC bus.
            return Effect::None;
        }
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            self.errors |= ILLEGAL_VECTOR_SENT;
            return Effect::None;
        }
        Effect::Send(InterruptMessage { destination, delivery, vector, level: false })
    }

    // ---- local vectors ---------------------------------------------------------------------------------------

    /// Lets the timer fire if it is due.
    pub(crate) fn tick(&mut self, now: u64) {
        if self.timer.expire(now) {
            let local = self.local[TIMER];
            if local & MASKED == 0 {
                self.receive(Delivery::Fixed, local as u8, false);
            }
        }
    }

    // ---- registers -------------------------------------------------------------------------------------------

    /// Reads a register; `None` if there is none of this number.
    pub(crate) fn read(&mut self, number: u32, now: u64) -> Option<u32> {
        use register::*;
        Some(match number {
            ID if self.x2apic => self.id,
            ID => self.id << 24,
            VERSION => self::VERSION,
            TASK_PRIORITY => self.task_priority.into(),
            ARBITRATION_PRIORITY | REMOTE_READ if !self.x2apic => 0,
            PROCESSOR_PRIORITY => self.processor_priority().into(),
            LOGICAL_DESTINATION if self.x2apic => (self.id >> 4) << 16 | 1 << (self.id & 0xf),
            LOGICAL_DESTINATION => self.logical_destination,
            DESTINATION_FORMAT if !self.x2apic => self.destination_format,
            SPURIOUS => self.spurious,
            IN_SERVICE..TRIGGER_MODE => self.in_service.word((number - IN_SERVICE) as usize),
            TRIGGER_MODE..REQUESTED => self.trigger_mode.word((number - TRIGGER_MODE) as usize),
            REQUESTED..ERROR => self.requested.word((number - REQUESTED) as usize),
            ERROR => self.error,
            COMMAND => self.command as u32,
            COMMAND_HIGH => (self.command >> 32) as u32,
            LOCAL_TIMER..=LOCAL_ERROR => self.local[(number - LOCAL_TIMER) as usize],
            INITIAL_COUNT => self.timer.initial_count(),
            CURRENT_COUNT => self.timer.current_count(now),
            DIVIDE => self.timer.divide(),
            // Write only; reads zero in xAPIC mode.
            END_OF_INTERRUPT if !self.x2apic => 0,
            _ => {
                self.errors |= ILLEGAL_REGISTER;
                return None;
            }
        })
    }

    /// Writes a register; `None` if none of this number can be written.
    pub(crate) fn write(&mut self, number: u32, value: u32, now: u64) -> Option<Effect> {
        use register::*;
        match number {
            // The ID of a processor that was made this century does not change.
            ID | REMOTE_READ if !self.x2apic => {}
            TASK_PRIORITY => self.task_priority = value as u8,
            END_OF_INTERRUPT => return Some(self.end_of_interrupt()),
            LOGICAL_DESTINATION if !self.x2apic => self.logical_destination = value & 0xff00_0000,
            DESTINATION_FORMAT if !self.x2apic => self.destination_format = value | 0x0fff_ffff,
            SPURIOUS => {
                self.spurious = value & 0x3ff;
                if !self.enabled() {
                    for local in &mut self.local {
                        *local |= MASKED;
                    }
                }
            }
            ERROR => self.error = std::mem::take(&mut self.errors),
            COMMAND if !self.x2apic => {
                self.command = self.command & !0xffff_ffff | u64::from(value & 0xc_cfff);
                return Some(self.command_message());
            }
            COMMAND_HIGH if !self.x2apic => {
                self.command = self.command & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            SELF_INTERRUPT if self.x2apic => {
                let vector = value as u8;
                let (destination, delivery) = (Destination::Itself, Delivery::Fixed);
                return Some(Effect::Send(InterruptMessage { destination, delivery, vector, level: false }));
            }
            LOCAL_TIMER..=LOCAL_ERROR => {
                let index = (number - LOCAL_TIMER) as usize;
                let masked = if self.enabled() { 0 } else { MASKED };
                self.local[index] = value & WRITABLE[index] | masked;
                if index == TIMER {
                    self.timer.set_mode(value);
                }
            }
            INITIAL_COUNT => self.timer.set_initial_count(value, now),
            DIVIDE => self.timer.set_divide(value),
            _ => {
                self.errors |= ILLEGAL_REGISTER;
                return None;
            }
        }
        Some(Effect::None)
    }

    /// The command register of x2APIC mode has 64 bits.
    pub(crate) fn x2apic_command(&self) -> u64 {
        self.command
    }

    /// Sends by the command register of x2APIC mode.
    pub(crate) fn set_x2apic_command(&mut self, value: u64) -> Effect {
        self.command = value & 0xffff_ffff_000c_cfff;
        self.command_message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Lapic {
        let mut lapic = Lapic::new(1);
        lapic.write(register::SPURIOUS, 0x1ff, 0);
        lapic
    }

    #[test]
    fn an_interrupt_waits_for_its_priority_and_for_the_end_of_a_higher_one() {
        let mut lapic = Lapic::new(0);
        lapic.receive(Delivery::Fixed, 0x31, false);
        assert_eq!(lapic.acknowledge(), None, "disabled by software");
        lapic.write(register::SPURIOUS, 0x1ff, 0);
        lapic.set_cr8(3);
        assert_eq!(lapic.acknowledge(), None, "same class as the task priority");
        lapic.set_cr8(2);
        assert_eq!(lapic.acknowledge(), Some(0x31));
        lapic.receive(Delivery::Fixed, 0x30, false);
        assert_eq!(lapic.pending(), None, "same class as what is in service");
        lapic.receive(Delivery::Fixed, 0x41, false);
        assert_eq!(lapic.acknowledge(), Some(0x41));
        assert_eq!(lapic.write(register::END_OF_INTERRUPT, 0, 0), Some(Effect::None));
        assert_eq!(lapic.pending(), None);
        lapic.write(register::END_OF_INTERRUPT, 0, 0);
        assert_eq!(lapic.pending(), Some(0x30));
    }

    #[test]
    fn the_end_of_a_level_interrupt_is_told() {
        let mut lapic = enabled();
        lapic.receive(Delivery::Fixed, 0x50, true);
        lapic.acknowledge();
        assert_eq!(lapic.write(register::END_OF_INTERRUPT, 0, 0), Some(Effect::EndOfLevel(0x50)));
    }

    #[test]
    fn shorthands_and_destinations() {
        let mut lapic = enabled();
        lapic.write(register::COMMAND_HIGH, 0x0300_0000, 0);
        for (low, destination) in [
            (0x0_00fd, Destination::Physical(3)),
            (0x0_08fd, Destination::Logical(3)),
            (0x4_00fd, Destination::Itself),
            (0x8_00fd, Destination::All),
            (0xc_00fd, Destination::Others),
        ] {
            let Some(Effect::Send(message)) = lapic.write(register::COMMAND, low, 0) else { panic!("{low:x}") };
            assert_eq!((message.destination, message.vector), (destination, 0xfd));
        }
    }

    #[test]
    fn an_illegal_vector_is_an_error_that_shows_after_a_write() {
        let mut lapic = enabled();
        assert_eq!(lapic.write(register::COMMAND, 0x4_0005, 0), Some(Effect::None));
        lapic.receive(Delivery::Fixed, 3, false);
        assert_eq!(lapic.read(register::ERROR, 0), Some(0));
        lapic.write(register::ERROR, 0, 0);
        assert_eq!(lapic.read(register::ERROR, 0), Some(ILLEGAL_VECTOR_SENT | ILLEGAL_VECTOR_RECEIVED));
    }

    #[test]
    fn logical_destinations_in_both_models() {
        let mut lapic = enabled();
        lapic.write(register::LOGICAL_DESTINATION, 0x0200_0000, 0);
        assert!(lapic.is_addressed(Destination::Logical(3)) && !lapic.is_addressed(Destination::Logical(4)));
        lapic.write(register::DESTINATION_FORMAT, 0, 0);
        lapic.write(register::LOGICAL_DESTINATION, 0x2200_0000, 0);
        assert!(lapic.is_addressed(Destination::Logical(0x22)) && !lapic.is_addressed(Destination::Logical(0x12)));
    }

    #[test]
    fn x2apic_has_wide_ids_and_a_fixed_logical_one() {
        let mut lapic = Lapic::new(0x12);
        lapic.set_x2apic(true);
        assert_eq!(lapic.read(register::ID, 0), Some(0x12));
        assert_eq!(lapic.read(register::LOGICAL_DESTINATION, 0), Some(1 << 16 | 1 << 2));
        assert!(lapic.is_addressed(Destination::Logical(0x1_0004)));
        assert!(!lapic.is_addressed(Destination::Logical(0x2_0004)));
        assert!(
            lapic.is_addressed(Destination::Physical(u32::MAX)) && !lapic.is_addressed(Destination::Physical(0xff))
        );
        assert_eq!(lapic.read(register::DESTINATION_FORMAT, 0), None);
    }

    #[test]
    fn disabling_masks_the_local_vectors_and_the_timer_obeys() {
        let mut lapic = enabled();
        lapic.write(register::LOCAL_TIMER, 0x40, 0);
        lapic.write(register::INITIAL_COUNT, 1, 0);
        lapic.tick(1_000);
        assert_eq!(lapic.pending(), Some(0x40));
        lapic.write(register::SPURIOUS, 0xff, 0);
        assert_eq!(lapic.read(register::LOCAL_TIMER, 0), Some(MASKED | 0x40));
    }

    #[test]
    fn init_keeps_the_id_and_drops_an_older_start_up() {
        let mut lapic = enabled();
        lapic.receive(Delivery::StartUp, 0x9a, false);
        lapic.receive(Delivery::Init, 0, false);
        assert_eq!(lapic.signals, Signals { init: true, ..Signals::default() });
        lapic.init();
        assert_eq!(lapic.read(register::ID, 0), Some(1 << 24));
        assert_eq!(lapic.read(register::SPURIOUS, 0), Some(0xff));
    }
}
