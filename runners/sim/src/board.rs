//! The board: its chips, and the wires between them.

use privet_cpu::CpuState;
use privet_silicon::Virtualization;
use privet_silicon::tdx::Tdx;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::contention::Contention;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::cmos::Cmos;
use crate::devices::interrupt_message::{Delivery, Destination, InterruptMessage};
use crate::devices::ioapic::IoApic;
use crate::devices::lapic::{Effect, Lapic};
use crate::devices::pci::Pci;
use crate::devices::pic::Pic;
use crate::devices::pit::Pit;
use crate::devices::uart::Uart;
use crate::encryption::Encryption;
use crate::log::{Log, Unknown};
use crate::msrs::Msrs;
use crate::profile::Processors;

/// Lines of the I/O APIC. The MADT tells that IRQ 0 is wired to the second.
mod line {
    pub(super) const SERIAL: [usize; 2] = [4, 3];
    pub(super) const TIMER: usize = 2;
}

/// The first serial port, which is the console, and the second, over which the guest talks to the host.
pub(crate) const CONSOLE: usize = 0;
pub(crate) const PORT: usize = 1;

/// How the board ends a machine's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PowerEvent {
    Off,
    Reset,
}

/// Everything but processors and memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Board {
    pub(crate) clock: Clock,
    /// The processor that executes, or did last: the clock counts its instructions.
    pub(crate) running: usize,
    pub(crate) processors: Processors,
    pub(crate) lapics: Vec<Lapic>,
    pub(crate) msrs: Vec<Msrs>,
    /// What each processor runs guests with.
    pub(crate) virtualization: Vec<Virtualization>,
    pub(crate) ioapic: IoApic,
    pub(crate) pics: [Pic; 2],
    pub(crate) pit: Pit,
    pub(crate) cmos: Cmos,
    pub(crate) uarts: [Uart; 2],
    pub(crate) pm: AcpiPm,
    pub(crate) pci: Pci,
    /// Of processors that encrypt guests.
    pub(crate) encryption: Option<Encryption>,
    /// Intel's TDX module, if firmware has loaded it.
    pub(crate) tdx: Option<Tdx>,
    pub(crate) contention: Contention,
    pub(crate) log: Log,
    /// The guest has asked for it.
    pub(crate) power: Option<PowerEvent>,
    /// The processors for which something has arrived since they were last asked, one bit each.
    pub(crate) attention: u64,
}

impl Board {
    /// A board after power-on. `rmp` is the memory that firmware has set aside for the reverse map table, if it has.
    pub(crate) fn new(processors: Processors, cpus: usize, rmp: Option<(u64, u64)>) -> Board {
        let mut pci = Pci::new();
        let encryption = Encryption::new(processors, cpus, rmp.unwrap_or_default(), &mut pci);
        Board {
            clock: Clock::default(),
            running: 0,
            processors,
            lapics: (0..cpus).map(|id| Lapic::new(id as u32)).collect(),
            msrs: (0..cpus).map(|_| Msrs::default()).collect(),
            virtualization: (0..cpus).map(|_| processors.virtualization()).collect(),
            ioapic: IoApic::new(),
            pics: [Pic::new(), Pic::new()],
            pit: Pit::new(),
            cmos: Cmos::new(),
            uarts: [Uart::new(), Uart::new()],
            pm: AcpiPm::default(),
            pci,
            encryption,
            tdx: None,
            contention: Contention::default(),
            log: Log::default(),
            power: None,
            attention: 0,
        }
    }

    // ---- time ------------------------------------------------------------------------------------------------

    /// The time at which a processor is that executes now.
    pub(crate) fn now(&self, state: &CpuState) -> u64 {
        self.clock.at(state.instructions)
    }

    /// What the processor that executes now reads as its TSC, in a guest or not.
    pub(crate) fn tsc(&self, cpu: usize, state: &CpuState) -> u64 {
        self.virtualization[cpu].tsc(self.now(state))
    }

    /// Another processor's turn begins, with its count of instructions.
    pub(crate) fn hand_over(&mut self, from: u64, to: (usize, u64)) {
        self.clock.hand_over(from, to.1);
        self.running = to.0;
    }

    /// When something happens next by itself.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let timers = self.lapics.iter().filter_map(|lapic| lapic.timer.deadline());
        let guests = self.virtualization.iter().filter_map(Virtualization::deadline);
        timers.chain(guests).chain(self.pit.deadline()).min()
    }

    /// Lets everything happen whose time has come.
    pub(crate) fn tick(&mut self, now: u64) {
        for (cpu, lapic) in self.lapics.iter_mut().enumerate() {
            if lapic.timer.deadline().is_some_and(|deadline| deadline <= now) {
                lapic.tick(now);
                self.attention |= 1 << cpu;
            }
        }
        for (cpu, virtualization) in self.virtualization.iter().enumerate() {
            if virtualization.deadline().is_some_and(|deadline| deadline <= now) {
                self.attention |= 1 << cpu;
            }
        }
        if self.pit.expire(now) {
            self.set_line(line::TIMER, true);
            self.set_line(line::TIMER, false);
        }
    }

    // ---- interrupts ------------------------------------------------------------------------------------------

    /// Drives a line of the I/O APIC.
    fn set_line(&mut self, line: usize, asserted: bool) {
        if let Some(message) = self.ioapic.set_line(line, asserted) {
            self.send(message, None);
        }
    }

    /// A serial port was touched: its interrupt follows.
    pub(crate) fn update_serial(&mut self, index: usize) {
        let asserted = self.uarts[index].line();
        self.set_line(line::SERIAL[index], asserted);
    }

    /// Carries out what a processor's write to its local APIC asks for.
    pub(crate) fn apply(&mut self, cpu: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => self.send(message, Some(cpu)),
            Effect::EndOfLevel(vector) => {
                for message in self.ioapic.end_of_interrupt(vector) {
                    self.send(message, None);
                }
            }
        }
        // The priority may have fallen, so that something waits no longer.
        self.attention |= 1 << cpu;
    }

    /// Delivers an interrupt message; `from` is the processor that sends it, if one does.
    pub(crate) fn send(&mut self, message: InterruptMessage, from: Option<usize>) {
        match message.delivery {
            Delivery::Smi => return self.log.unknown(Unknown::Function("system-management interrupt".into())),
            Delivery::ExtInt => return self.log.unknown(Unknown::Function("interrupt through the 8259".into())),
            Delivery::Reserved => {
                return self.log.unknown(Unknown::Function("reserved delivery mode of an APIC".into()));
            }
            _ => {}
        }
        let means = |cpu: usize, lapic: &Lapic| match message.destination {
            Destination::Itself => from == Some(cpu),
            Destination::Others => from != Some(cpu),
            destination => lapic.is_addressed(destination),
        };
        let mut targets: Vec<usize> =
            self.lapics.iter().enumerate().filter(|(cpu, lapic)| means(*cpu, lapic)).map(|(cpu, _)| cpu).collect();
        if message.delivery == Delivery::LowestPriority {
            let least_busy = targets.iter().copied().min_by_key(|cpu| self.lapics[*cpu].processor_priority());
            targets = least_busy.into_iter().collect();
        }
        for cpu in targets {
            self.lapics[cpu].receive(message.delivery, message.vector, message.level);
            self.attention |= 1 << cpu;
        }
    }

    // ---- the host's side -------------------------------------------------------------------------------------

    /// Bytes for one of the guest's serial ports.
    pub(crate) fn feed_serial(&mut self, index: usize, bytes: &[u8]) {
        self.uarts[index].feed(bytes);
        self.update_serial(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::lapic::register;
    use crate::profile::Profile;

    fn board(cpus: usize) -> Board {
        let mut board = Board::new(Profile::Plain.into(), cpus, None);
        for lapic in &mut board.lapics {
            lapic.write(register::SPURIOUS, 0x1ff, 0);
        }
        board
    }

    fn pending(board: &Board) -> Vec<Option<u8>> {
        board.lapics.iter().map(Lapic::pending).collect()
    }

    fn message(destination: Destination, delivery: Delivery) -> InterruptMessage {
        InterruptMessage { destination, delivery, vector: 0x40, level: false }
    }

    #[test]
    fn shorthands_reach_whom_they_name() {
        for (destination, reached) in [
            (Destination::Itself, [false, true, false]),
            (Destination::All, [true; 3]),
            (Destination::Others, [true, false, true]),
            (Destination::Physical(2), [false, false, true]),
            (Destination::Physical(0xff), [true; 3]),
        ] {
            let mut board = board(3);
            board.send(message(destination, Delivery::Fixed), Some(1));
            assert_eq!(pending(&board), reached.map(|reached| reached.then_some(0x40)), "{destination:?}");
        }
    }

    #[test]
    fn the_lowest_priority_takes_it() {
        let mut board = board(3);
        board.lapics[0].set_cr8(5);
        board.lapics[1].set_cr8(2);
        board.lapics[2].set_cr8(3);
        board.send(message(Destination::Physical(0xff), Delivery::LowestPriority), None);
        assert_eq!(pending(&board), [None, Some(0x40), None]);
    }

    #[test]
    fn a_timer_wakes_its_processor_when_its_time_has_come() {
        let mut board = board(2);
        board.lapics[1].write(register::LOCAL_TIMER, 0x33, 0);
        board.lapics[1].write(register::INITIAL_COUNT, 5, 0);
        let deadline = board.deadline().unwrap();
        board.tick(deadline - 1);
        assert_eq!(board.attention, 0);
        board.tick(deadline);
        assert_eq!((board.attention, pending(&board)), (2, vec![None, Some(0x33)]));
    }

    #[test]
    fn what_the_board_has_not_is_told() {
        let mut board = board(1);
        board.send(message(Destination::All, Delivery::Smi), None);
        assert_eq!(board.log.take().len(), 1);
    }
}
