//! The machine: processors, memory and board, and how they are run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use privet_cpu::state::gpr;
use privet_cpu::{Cpu, CpuExit, CpuState, Exception, Seg, Segment, flags};
use privet_silicon::tdx::{Fault as TdxFault, Tdx};
use privet_silicon::{PhysicalMemory, Rules};
use serde::{Deserialize, Serialize};

use crate::board::{Board, CONSOLE, PORT, PowerEvent};
use crate::boot::{self, Hardware, Images};
use crate::clock;
use crate::description::Description;
use crate::encryption::{rmp_memory, segment_table};
use crate::error::SimError;
use crate::log::{Finding, Unknown};
use crate::memory::Memory;
use crate::profile::Processors;
use crate::ram::Ram;
use crate::record::{Record, Recorder};
use crate::scheduler::{Scheduler, Turns};
use crate::wiring::Wiring;

/// What a processor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Activity {
    Running,
    /// After HLT.
    Halted,
    /// After RESET or INIT, all but the first.
    WaitForStartUp,
}

/// A processor of the machine.
#[derive(Debug)]
pub(crate) struct Processor {
    pub(crate) cpu: Cpu,
    pub(crate) activity: Activity,
}

impl Processor {
    /// A processor on this memory.
    pub(crate) fn new(processors: Processors, state: CpuState, activity: Activity, memory: &mut Memory) -> Processor {
        let mut cpu = Cpu::sharing(processors.config(), Arc::clone(memory.ram.code()));
        cpu.state = state;
        memory.attach(Arc::clone(cpu.kick()));
        Processor { cpu, activity }
    }
}

/// When [`Machine::run`] returns at the latest.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Virtual time since power-on.
    pub until: Option<Duration>,
    /// Executed instructions since power-on, of all processors.
    pub instructions: Option<u64>,
    /// Set by somebody else: a signal handler, or another thread.
    pub stop: Option<Arc<AtomicBool>>,
    /// When all processors wait, the clock does not jump: see [`Outcome::Waiting`].
    pub returns_when_idle: bool,
}

/// Why [`Machine::run`] returned. It can be called again after all but the first three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched the machine off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// A processor shut down, which resets a real machine.
    TripleFault {
        /// Which processor.
        cpu: usize,
    },
    /// The guest has written to the port: see [`Machine::take_port`].
    Port,
    /// All processors wait, and nothing will ever wake them but input.
    Idle,
    /// All processors wait, and so they will until a timer expires, or input comes. Only with
    /// [`Limits::returns_when_idle`]; without it, the next run has the clock jump there.
    Waiting {
        /// By the time since power-on; never if there is none.
        until: Option<Duration>,
    },
    /// [`Limits::until`] has come.
    TimeLimit,
    /// [`Limits::instructions`] were executed.
    InstructionLimit,
    /// [`Limits::stop`] was set.
    Stopped,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    // Before the memory, which they use: fields are dropped in this order.
    pub(crate) processors: Vec<Processor>,
    pub(crate) board: Board,
    pub(crate) scheduler: Scheduler,
    pub(crate) memory: Memory,
    /// Who writes down what is executed, if anybody does.
    pub(crate) recorder: Option<Recorder>,
}

impl Machine {
    /// Switches a machine on.
    ///
    /// # Errors
    /// If there can be no such machine, or its kernel is none.
    pub fn new(description: &Description) -> Result<Machine, SimError> {
        description.check()?;
        let kind = description.processors();
        let ram = Ram::new(description.memory_mib << 20)?;
        let tdx = kind.tdx(description.cpus, ram.ranges());
        let mut memory = if tdx.is_some() { Memory::with_integrity(ram) } else { Memory::new(ram) };
        let mut processors: Vec<Processor> = (0..description.cpus)
            .map(|_| Processor::new(kind, after_reset(kind), Activity::WaitForStartUp, &mut memory))
            .collect();
        for processor in &mut processors[1..] {
            // Not the bootstrap processor.
            processor.cpu.state.apic_base &= !(1 << 8);
        }
        processors[0].activity = Activity::Running;
        let images = Images {
            kernel: &description.kernel,
            initramfs: &description.initramfs,
            command_line: &description.command_line,
        };
        let low_end = memory.ram.ranges().next().map_or(0, |range| range.end);
        let (top, segment) = (memory.ram.top(), kind.rmp_segment());
        let rmp = kind.has_rmp_memory().then(|| rmp_memory(low_end, top, segment));
        if let Some(((first, _), segment)) = rmp.zip(segment) {
            let (at, table) = segment_table(first, top, segment);
            memory.ram.write(at, &table);
        }
        let hardware = Hardware { cpus: description.cpus, rmp };
        boot::load(&mut memory.ram, &images, hardware, &mut processors[0].cpu.state)?;
        let mut board = Board::new(kind, description.cpus, rmp);
        board.tdx = tdx.map(Tdx::new);
        Ok(Machine { processors, board, scheduler: Scheduler::new(description.seed), memory, recorder: None })
    }

    /// Runs until something happens that is the caller's business.
    pub fn run(&mut self, limits: &Limits) -> Outcome {
        let until = limits.until.map_or(u64::MAX, clock::from_duration);
        let instructions = limits.instructions.unwrap_or(u64::MAX);
        loop {
            // First, so that nothing is lost that the guest said before its end.
            if self.board.uarts[PORT].has_sent() {
                return Outcome::Port;
            }
            match self.board.power {
                Some(PowerEvent::Off) => return Outcome::PoweredOff,
                Some(PowerEvent::Reset) => return Outcome::Reset,
                None => {}
            }
            if limits.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Outcome::Stopped;
            }
            let now = self.ticks();
            if now >= until {
                return Outcome::TimeLimit;
            }
            let executed = self.instructions();
            if executed >= instructions {
                return Outcome::InstructionLimit;
            }
            self.board.tick(now);
            self.look_at_signals();
            let processors = &self.processors;
            let board = &self.board;
            let runnable = |cpu: usize| is_runnable(&processors[cpu], board, (cpu, now));
            let Some((cpu, left)) = self.scheduler.turn(runnable, processors.len()) else {
                // Everybody waits: on to whatever happens next.
                match self.board.deadline() {
                    deadline if limits.returns_when_idle => {
                        // Rounded up: at that time it has come.
                        let until = deadline.map(|at| clock::duration(at) + Duration::from_nanos(1));
                        return Outcome::Waiting { until };
                    }
                    Some(deadline) => self.board.clock.pass(deadline.min(until).saturating_sub(now)),
                    None => return Outcome::Idle,
                }
                continue;
            };
            if let Some(outcome) = self.take_turn(cpu, left.min(instructions - executed), until) {
                return outcome;
            }
        }
    }

    /// One processor executes, for so many instructions or until so many ticks at most.
    fn take_turn(&mut self, cpu: usize, instructions: u64, until: u64) -> Option<Outcome> {
        let last = self.processors[self.board.running].cpu.state.instructions;
        let processor = &mut self.processors[cpu];
        processor.activity = Activity::Running;
        let kick = Arc::clone(processor.cpu.kick());
        let state = &mut processor.cpu.state;
        let before = state.instructions;
        processor.cpu.debug.tells_locked = self.scheduler.explores();
        self.board.hand_over(last, (cpu, before));
        let deadline = self.board.deadline().map_or(until, |deadline| deadline.min(until));
        state.turn_ends = (before + instructions).min(self.board.clock.instructions_at(deadline));
        self.board.attention &= !(1 << cpu);
        kick.raise_event();
        let mut wiring = Wiring {
            board: &mut self.board,
            memory: &mut self.memory,
            scheduler: &mut self.scheduler,
            recorder: self.recorder.as_mut(),
            kick: &kick,
            cpu,
        };
        let exit = processor.cpu.run(&mut wiring);
        self.scheduler.used(processor.cpu.state.instructions - before);
        match exit {
            CpuExit::Turn | CpuExit::Stopped => {}
            CpuExit::Halt => {
                processor.activity = Activity::Halted;
                self.board.virtualization[cpu].halted();
            }
            CpuExit::Shutdown => return Some(Outcome::TripleFault { cpu }),
            CpuExit::UnknownInstruction { rip, bytes, len } => {
                self.board.log.locate(cpu, rip);
                self.board.log.unknown(Unknown::Instruction { bytes: bytes[..usize::from(len)].to_vec() });
                processor.cpu.inject(Exception::ud());
            }
            other => {
                // A fetch or a page walk outside of memory gets ones on a real machine, which no code survives.
                self.board.log.locate(cpu, processor.cpu.state.rip);
                self.board.log.unknown(Unknown::Function(format!("{other:x?}")));
                return Some(Outcome::TripleFault { cpu });
            }
        }
        None
    }

    /// INIT and start-up messages that have arrived take effect between turns.
    fn look_at_signals(&mut self) {
        for (cpu, processor) in self.processors.iter_mut().enumerate() {
            let signals = &mut self.board.lapics[cpu].signals;
            // Who executes decides when it takes an INIT; who waits for a start-up does at once.
            let waits = processor.activity == Activity::WaitForStartUp;
            if std::mem::take(&mut signals.init_taken) || waits && signals.init {
                signals.init = false;
                self.board.lapics[cpu].init();
                self.board.virtualization[cpu].init();
                let state = &mut processor.cpu.state;
                // Time does not begin anew.
                let (instructions, apic_base) = (state.instructions, state.apic_base);
                *state = CpuState { instructions, apic_base, ..after_reset(self.board.processors) };
                processor.activity = Activity::WaitForStartUp;
            }
            let signals = &mut self.board.lapics[cpu].signals;
            if let Some(page) = signals.start_up.take()
                && processor.activity == Activity::WaitForStartUp
            {
                start_at(&mut processor.cpu.state, page);
                processor.activity = Activity::Running;
            }
        }
    }

    // ---- the host's side -------------------------------------------------------------------------------------

    /// What the guest has written to its console (`ttyS0`) since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.board.uarts[CONSOLE].take_sent()
    }

    /// Types on the console.
    pub fn feed_console(&mut self, bytes: &[u8]) {
        self.board.feed_serial(CONSOLE, bytes);
    }

    /// What the guest has written to the port (`ttyS1`) since the last call.
    pub fn take_port(&mut self) -> Vec<u8> {
        self.board.uarts[PORT].take_sent()
    }

    /// Sends to the guest's port.
    pub fn feed_port(&mut self, bytes: &[u8]) {
        self.board.feed_serial(PORT, bytes);
    }

    /// Writes to the guest's memory, as a device does.
    pub fn write_memory(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes);
    }

    /// What the guest asked for and the machine has not, since the last call, each once. A verdict that was reached
    /// meanwhile is none.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        self.board.log.take()
    }

    /// From here on the processors' instructions are interleaved as another seed says.
    pub fn reseed(&mut self, seed: u64, turns: Turns) {
        self.scheduler.reseed(seed, turns);
    }

    /// From here on it is written down what is executed. That takes time, and changes nothing that a guest can see.
    pub fn start_recording(&mut self) {
        self.recorder = Some(Recorder::new(self.board.processors.config()));
        for processor in &mut self.processors {
            processor.cpu.debug.records = true;
        }
    }

    /// From here on it is not.
    pub(crate) fn stop_recording(&mut self) {
        self.recorder = None;
        for processor in &mut self.processors {
            processor.cpu.debug.records = false;
        }
    }

    /// What was executed since the last call, or since the recording started; nothing if it was not.
    pub fn take_record(&mut self) -> Record {
        self.recorder.as_mut().map(Recorder::take).unwrap_or_default()
    }

    /// Has the TDX module answer so for once each.
    ///
    /// # Errors
    /// If there is no module.
    pub fn set_tdx_faults(&mut self, faults: &[TdxFault]) -> Result<(), SimError> {
        if faults.is_empty() {
            return Ok(());
        }
        let module = self.board.tdx.as_mut();
        let module = module.ok_or_else(|| SimError::Description("this machine has no TDX module to fail".into()))?;
        faults.iter().for_each(|fault| module.injector().add(*fault));
        Ok(())
    }

    /// From here on only these rules of the silicon hold: the machine is a mutant, which rows have to notice.
    pub fn set_rules(&mut self, rules: Rules) {
        self.board.virtualization.iter_mut().for_each(|virtualization| virtualization.set_rules(rules));
        self.memory.keys.set_rules(rules);
        if let Some(encryption) = &mut self.board.encryption {
            encryption.set_rules(rules);
        }
        if let Some(module) = &mut self.board.tdx {
            module.set_rules(rules);
        }
        self.processors.iter_mut().for_each(|processor| processor.cpu.flush_tlb());
    }

    /// Virtual time since power-on.
    #[must_use]
    pub fn now(&self) -> Duration {
        clock::duration(self.ticks())
    }

    /// Executed instructions since power-on, of all processors.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.processors.iter().map(|processor| processor.cpu.state.instructions).sum()
    }

    fn ticks(&self) -> u64 {
        self.board.now(&self.processors[self.board.running].cpu.state)
    }
}

/// A processor after RESET.
fn after_reset(kind: Processors) -> CpuState {
    CpuState { keyid_bits: kind.keyid_bits(), ..CpuState::reset() }
}

/// Whether a processor can execute now.
fn is_runnable(processor: &Processor, board: &Board, (cpu, now): (usize, u64)) -> bool {
    let lapic = &board.lapics[cpu];
    match processor.activity {
        Activity::Running => true,
        Activity::WaitForStartUp => false,
        Activity::Halted => {
            // In a guest the masks are the hypervisor's: its processor looks for itself.
            let virtualization = &board.virtualization[cpu];
            let interruptible = processor.cpu.state.rflags & flags::IF != 0 || virtualization.in_guest();
            let timer = virtualization.deadline().is_some_and(|deadline| deadline <= now);
            lapic.signals.nmi || lapic.signals.init || timer || interruptible && lapic.pending().is_some()
        }
    }
}

/// A start-up message: real mode at the beginning of a page (SDM volume 3, section 10.4.4).
fn start_at(state: &mut CpuState, page: u8) {
    let code = Segment { base: u64::from(page) << 12, selector: u16::from(page) << 8, ..Segment::real_mode(0, true) };
    state.segments[Seg::Cs as usize] = code;
    state.rip = 0;
    state.gpr[gpr::RDX] = 0;
}
