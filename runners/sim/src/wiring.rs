//! How one processor is plugged into the board, while it has its turn.

use privet_cpu::{
    Access, AccessKind, Bus, Call, CpuState, CpuidResult, Event, Exception, Intercept, Intercepted, Kick, Reaction,
    Resolve, Trap, VmxAnswer, VmxCall,
};
use privet_silicon::encryption::Key;
use privet_silicon::rmp::Rmp;
use privet_silicon::tdx::Tdx;
use privet_silicon::{Flush, KeyedMemory, Pending, PhysicalMemory, Taken, Translation, Virtualization};

use crate::board::Board;
use crate::clock::{TICKS_PER_PAUSE, TICKS_PER_PORT_ACCESS};
use crate::encryption::Encryption;
use crate::log::{Log, Unknown};
use crate::memory::Memory;
use crate::record::Recorder;
use crate::scheduler::Scheduler;

/// A processor's bus.
pub(crate) struct Wiring<'a> {
    pub(crate) board: &'a mut Board,
    pub(crate) memory: &'a mut Memory,
    pub(crate) scheduler: &'a mut Scheduler,
    pub(crate) recorder: Option<&'a mut Recorder>,
    pub(crate) kick: &'a Kick,
    /// The processor.
    pub(crate) cpu: usize,
}

/// What the processor's silicon sees of all this.
pub(crate) struct Surroundings<'a> {
    memory: &'a mut Memory,
    log: &'a mut Log,
    kick: &'a Kick,
    /// The secure processor's keys are asked for by VMRUN only.
    encryption: Option<&'a Encryption>,
    /// The processor.
    cpu: usize,
    /// Its time stamp counter.
    now: u64,
}

impl PhysicalMemory for Surroundings<'_> {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        self.memory.read(pa, bytes);
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        self.memory.write(pa, bytes);
    }
}

impl KeyedMemory for Surroundings<'_> {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read_as(&mut self, key: Key, pa: u64, bytes: &mut [u8]) {
        self.memory.read_as(key, pa, bytes);
    }

    fn write_as(&mut self, key: Key, pa: u64, bytes: &[u8]) {
        self.memory.write_as(key, pa, bytes);
    }

    fn flush_page(&mut self, pa: u64) {
        self.memory.flush_page(pa);
    }

    fn flush_large_page(&mut self, pa: u64) {
        self.memory.flush_large_page(pa);
    }

    fn flush_asid(&mut self, asid: u16) {
        self.memory.flush_asid(asid);
    }
}

impl privet_silicon::Board for Surroundings<'_> {
    fn flush(&mut self, what: Flush) {
        match what {
            Flush::All => self.kick.request_flush(),
            Flush::World(world) => self.kick.request(privet_cpu::Flush::World(world)),
            // In all worlds: more than is asked for cannot be noticed.
            Flush::Page(_, linear) => self.kick.request(privet_cpu::Flush::Page(linear)),
        }
    }

    fn raise_event(&mut self) {
        self.kick.raise_event();
    }

    fn guest_key(&self, asid: u16) -> Option<Key> {
        self.encryption?.psp.runnable_key(asid)
    }

    fn rmp(&self) -> Option<Rmp> {
        self.encryption?.enforced_rmp(self.cpu)
    }

    fn tsc(&self) -> u64 {
        self.now
    }

    fn unsimulated(&mut self, what: &'static str) {
        self.log.unknown(Unknown::Function(what.into()));
    }
}

impl Wiring<'_> {
    /// What the processor runs guests with, and what that works on.
    fn virtualization(&mut self, state: &CpuState) -> (&mut Virtualization, Surroundings<'_>) {
        let now = self.board.now(state);
        let Board { virtualization, log, encryption, .. } = &mut *self.board;
        log.locate(self.cpu, state.rip);
        let (kick, cpu, encryption) = (self.kick, self.cpu, encryption.as_ref());
        (&mut virtualization[cpu], Surroundings { memory: self.memory, log, kick, encryption, cpu, now })
    }

    /// The TDX module, and what it works on; none where there is no module.
    pub(crate) fn module(&mut self, state: &CpuState) -> Option<(&mut Tdx, Surroundings<'_>)> {
        let now = self.board.now(state);
        let Board { tdx, log, encryption, .. } = &mut *self.board;
        let tdx = tdx.as_mut()?;
        log.locate(self.cpu, state.rip);
        let (kick, cpu, encryption) = (self.kick, self.cpu, encryption.as_ref());
        Some((tdx, Surroundings { memory: self.memory, log, kick, encryption, cpu, now }))
    }

    /// The same while this processor runs a TD.
    fn td(&mut self, state: &CpuState) -> Option<(&mut Tdx, Surroundings<'_>)> {
        let cpu = self.cpu;
        self.module(state).filter(|(tdx, _)| tdx.runs(cpu))
    }

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

    /// Does outside what the processor has decided about an event.
    fn taken(&mut self, state: &mut CpuState, taken: Taken) -> Option<Event> {
        let lapic = &mut self.board.lapics[self.cpu];
        match taken {
            Taken::Init => {
                lapic.signals.init_taken = true;
                self.end_turn(state);
                None
            }
            Taken::Nmi => {
                lapic.signals.nmi = false;
                Some(Event::Nmi)
            }
            Taken::Interrupt => lapic.acknowledge().map(Event::Interrupt),
            Taken::Virtual(vector) => Some(Event::Interrupt(vector)),
            Taken::Switched => Some(Event::Switched),
            Taken::SwitchedByInterrupt => {
                lapic.acknowledge();
                Some(Event::Switched)
            }
            Taken::SwitchedByNmi => {
                lapic.signals.nmi = false;
                Some(Event::Switched)
            }
            Taken::Halted => {
                // Whatever woke it was not for its guest: that took time.
                self.board.clock.pass(TICKS_PER_PAUSE);
                Some(Event::Halted)
            }
            Taken::Nothing | Taken::Smi | Taken::Notified => None,
        }
    }

    /// A TD has met memory that somebody else has written.
    fn machine_check(&mut self, state: &mut CpuState) -> Resolve {
        let cpu = self.cpu;
        if let Some((tdx, mut surroundings)) = self.td(state) {
            tdx.machine_check(&mut surroundings, state, cpu);
        }
        Resolve::Switched
    }

    fn end_turn(&mut self, state: &mut CpuState) {
        self.scheduler.end_turn();
        state.turn_ends = state.instructions;
    }
}

impl Bus for Wiring<'_> {
    fn resolve(&mut self, state: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        let cpu = self.cpu;
        let translation = if let Some((tdx, mut surroundings)) = self.td(state) {
            tdx.translate(&mut surroundings, state, cpu, gpa, access)
        } else {
            let (virtualization, mut surroundings) = self.virtualization(state);
            virtualization.translate(&mut surroundings, state, gpa, access)
        };
        match translation {
            Translation::Page { page, key } => {
                if key != Key::PLAIN && self.memory.is_poisoned(page, key) {
                    return self.machine_check(state);
                }
                let data = !access.walk && access.kind != AccessKind::Fetch;
                if self.memory.key(page) != key && self.board.contention.meet(state.instructions, page, key, data) {
                    return Resolve::Device(page);
                }
                let found = match access.kind {
                    AccessKind::Write => self.memory.page_to_write(page, key),
                    AccessKind::Read | AccessKind::Fetch => self.memory.page(page, key),
                };
                found.map_or(Resolve::Device(page), Resolve::Page)
            }
            Translation::Device(address) => Resolve::Device(address),
            Translation::Reflect(exception) => Resolve::Reflect(exception),
            Translation::Switched => Resolve::Switched,
        }
    }

    fn device_read(&mut self, state: &mut CpuState, address: u64, data: &mut [u8]) {
        if let Some(key) = self.board.contention.key(state.instructions, address) {
            self.memory.read_as(key, address, data);
            return;
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        if virtualization.device_read(&mut surroundings, address, data) {
            return;
        }
        let now = self.touch(state);
        if !self.board.secure_read(address, data) {
            self.board.mmio_read(self.cpu, address, data, now);
        }
        self.touched(state);
    }

    fn device_write(&mut self, state: &mut CpuState, address: u64, data: &[u8]) {
        if let Some(key) = self.board.contention.key(state.instructions, address) {
            self.memory.write_as(key, address, data);
            return;
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        if virtualization.device_write(&mut surroundings, address, data) {
            return;
        }
        let now = self.touch(state);
        if !self.board.secure_write(state, address, data, self.memory) {
            self.board.mmio_write(self.cpu, address, data, now);
        }
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
        self.board.processors.cpuid(self.cpu, self.board.lapics.len(), state, leaf, subleaf)
    }

    fn rdmsr(&mut self, state: &CpuState, index: u32) -> Result<u64, Exception> {
        self.touch(state);
        self.board.msr_read(self.cpu, state, index)
    }

    fn wrmsr(&mut self, state: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
        self.touch(state);
        let (virtualization, mut surroundings) = self.virtualization(state);
        virtualization.check_wrmsr(&mut surroundings, index, value)?;
        let written = self.board.msr_write(self.cpu, state, index, value);
        self.touched(state);
        written
    }

    fn tsc(&mut self, state: &CpuState) -> u64 {
        let (cpu, now) = (self.cpu, self.board.now(state));
        match self.td(state) {
            Some((tdx, _)) => tdx.tsc(cpu, now),
            None => self.board.tsc(cpu, state),
        }
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, length: u8) -> Intercepted {
        let meeting = match what {
            Intercept::Pause => {
                self.board.clock.pass(TICKS_PER_PAUSE);
                true
            }
            Intercept::Invlpg { .. } | Intercept::Invpcid { .. } | Intercept::Call(_) | Intercept::Vmx { .. } => {
                self.scheduler.ends_at_meeting()
            }
            _ => false,
        };
        if meeting {
            self.end_turn(state);
        }
        let in_guest = self.board.virtualization[self.cpu].in_guest() || self.td(state).is_some();
        if what == Intercept::Call(Call::Seamcall) && !in_guest {
            return self.seamcall(state);
        }
        let cpu = self.cpu;
        if let Some((tdx, mut surroundings)) = self.td(state) {
            return tdx.intercept(&mut surroundings, state, cpu, what, length);
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        let intercepted = virtualization.intercept(&mut surroundings, state, what, length);
        if let (Intercept::Wbinvd, Intercepted::Native, Some(encryption)) =
            (what, intercepted, &mut self.board.encryption)
        {
            encryption.psp.written_back(self.cpu);
        }
        if intercepted == Intercepted::Switched && self.scheduler.ends_at_meeting() {
            self.end_turn(state);
        }
        intercepted
    }

    fn vmx(&mut self, state: &mut CpuState, call: VmxCall) -> VmxAnswer {
        if matches!(call, VmxCall::Invept { .. }) && self.board.tdx.is_some() {
            // Translations of shared addresses are told apart by the EPT of private ones, which hosts do not know.
            self.kick.request_flush();
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        let answer = virtualization.vmx(&mut surroundings, state, call);
        if answer == VmxAnswer::Switched {
            self.touched(state);
        }
        answer
    }

    fn entered(&mut self, state: &CpuState, instructions: usize, bytes: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.entered(state, &mut self.memory.ram, instructions, bytes);
        }
    }

    fn locked(&mut self, state: &mut CpuState) {
        if self.scheduler.ends_at_meeting() {
            self.end_turn(state);
        }
    }

    fn cut_short(&mut self, rip: u64, instructions: usize) {
        if let Some(recorder) = &mut self.recorder {
            recorder.cut_short(rip, instructions);
        }
    }

    fn exception(&mut self, state: &mut CpuState, exception: Exception) -> Reaction {
        if self.td(state).is_some() {
            return Reaction::Native;
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        virtualization.exception(&mut surroundings, state, exception)
    }

    fn after(&mut self, state: &mut CpuState, what: Trap) -> Reaction {
        if self.td(state).is_some() {
            return Reaction::Native;
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        virtualization.after(&mut surroundings, state, what)
    }

    fn shutdown(&mut self, state: &mut CpuState) -> Reaction {
        let cpu = self.cpu;
        if let Some((tdx, mut surroundings)) = self.td(state) {
            return tdx.shutdown(&mut surroundings, state, cpu);
        }
        let (virtualization, mut surroundings) = self.virtualization(state);
        virtualization.shutdown(&mut surroundings, state)
    }

    fn take_event(&mut self, state: &mut CpuState, _: bool, _: bool) -> Option<Event> {
        loop {
            let lapic = &self.board.lapics[self.cpu];
            let (init, nmi, interrupt) = (lapic.signals.init, lapic.signals.nmi, lapic.pending());
            let pending = Pending { init, smi: false, nmi, interrupt };
            let cpu = self.cpu;
            let taken = if let Some((tdx, mut surroundings)) = self.td(state) {
                tdx.take_event(&mut surroundings, state, cpu, pending)
            } else {
                let (virtualization, mut surroundings) = self.virtualization(state);
                virtualization.take_event(&mut surroundings, state, pending)
            };
            match taken {
                Taken::Notified => {
                    let lapic = &mut self.board.lapics[self.cpu];
                    lapic.acknowledge();
                    let effect = lapic.end_of_interrupt();
                    self.board.apply(self.cpu, effect);
                }
                taken => return self.taken(state, taken),
            }
        }
    }

    fn set_task_priority(&mut self, state: &mut CpuState, cr8: u64) {
        let (virtualization, mut surroundings) = self.virtualization(state);
        if virtualization.virtual_task_priority() {
            virtualization.task_priority_written(&mut surroundings);
        } else {
            self.board.lapics[self.cpu].set_cr8(cr8);
            self.kick.raise_event();
        }
    }
}
