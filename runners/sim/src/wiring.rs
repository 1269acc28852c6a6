//! How one processor is plugged into the board, while it has its turn.

use privet_cpu::{Access, Bus, CpuState, CpuidResult, Event, Exception, Intercept, Intercepted, Kick, Resolve};

use crate::board::Board;
use crate::clock::TICKS_PER_PORT_ACCESS;
use crate::ram::Ram;
use crate::scheduler::Scheduler;

/// A processor's bus.
pub(crate) struct Wiring<'a> {
    pub(crate) board: &'a mut Board,
    pub(crate) ram: &'a mut Ram,
    pub(crate) scheduler: &'a mut Scheduler,
    pub(crate) kick: &'a Kick,
    /// The processor.
    pub(crate) cpu: usize,
}

impl Wiring<'_> {
    /// A chip is about to be touched: the time. What it lacks is told with the place.
    fn touch(&mut self, state: &CpuState) -> u64 {
        self.board.log.locate(self.cpu, state.rip);
        self.board.now(state)
    }

    /// A chip was touched: whoever got something is told, and a timer may be nearer than it was.
    fn touched(&mut self, state: &mut CpuState) {
        let own = 1 << self.cpu;
        if self.board.attention & own != 0 {
            self.board.attention &= !own;
            self.kick.raise_event();
        }
        if self.board.attention != 0 || self.board.power.is_some() {
            self.end_turn(state);
        }
        if let Some(deadline) = self.board.deadline() {
            state.turn_ends = state.turn_ends.min(self.board.clock.instructions_at(deadline));
        }
    }

    fn end_turn(&mut self, state: &mut CpuState) {
        self.scheduler.end_turn();
        state.turn_ends = state.instructions;
    }
}

impl Bus for Wiring<'_> {
    fn resolve(&mut self, _: &mut CpuState, gpa: u64, _: Access) -> Resolve {
        self.ram.page(gpa).map_or(Resolve::Device(gpa), Resolve::Page)
    }

    fn device_read(&mut self, state: &mut CpuState, address: u64, data: &mut [u8]) {
        let now = self.touch(state);
        self.board.mmio_read(self.cpu, address, data, now);
        self.touched(state);
    }

    fn device_write(&mut self, state: &mut CpuState, address: u64, data: &[u8]) {
        let now = self.touch(state);
        self.board.mmio_write(self.cpu, address, data, now);
        self.touched(state);
    }

    fn port_read(&mut self, state: &mut CpuState, port: u16, size: u8) -> Option<u32> {
        self.board.clock.pass(TICKS_PER_PORT_ACCESS);
        let now = self.touch(state);
        let value = self.board.port_read(port, size, now);
        self.touched(state);
        Some(value)
    }

    fn port_write(&mut self, state: &mut CpuState, port: u16, size: u8, value: u32) -> bool {
        self.board.clock.pass(TICKS_PER_PORT_ACCESS);
        let now = self.touch(state);
        self.board.port_write(port, size, value, now);
        self.touched(state);
        true
    }

    fn cpuid(&mut self, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        self.board.profile.cpuid(self.cpu, self.board.lapics.len(), state, leaf, subleaf)
    }

    fn rdmsr(&mut self, state: &CpuState, index: u32) -> Result<u64, Exception> {
        self.touch(state);
        self.board.msr_read(self.cpu, state, index)
    }

    fn wrmsr(&mut self, state: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
        self.touch(state);
        let written = self.board.msr_write(self.cpu, state, index, value);
        self.touched(state);
        written
    }

    fn tsc(&mut self, state: &CpuState) -> u64 {
        self.board.now(state)
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, _: u8) -> Intercepted {
        match what {
            Intercept::Pause => self.end_turn(state),
            Intercept::Invlpg { .. } | Intercept::Invpcid { .. } if self.scheduler.ends_at_meeting() => {
                self.end_turn(state);
            }
            _ => {}
        }
        Intercepted::Native
    }

    fn take_event(&mut self, _: &mut CpuState, interrupts_open: bool, nmis_open: bool) -> Option<Event> {
        let lapic = &mut self.board.lapics[self.cpu];
        if nmis_open && std::mem::take(&mut lapic.signals.nmi) {
            return Some(Event::Nmi);
        }
        if interrupts_open { lapic.acknowledge().map(Event::Interrupt) } else { None }
    }

    fn set_task_priority(&mut self, _: &mut CpuState, cr8: u64) {
        self.board.lapics[self.cpu].set_cr8(cr8);
        self.kick.raise_event();
    }
}
