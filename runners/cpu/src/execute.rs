//! The loop that executes blocks, and what it looks at between them.

use crate::block::{Block, BlockCache};
use crate::bus::Event;
use crate::core::{Abort, Core, Why};
use crate::exception::{Exception, vector};
use crate::exit::CpuExit;
use crate::flags;
use crate::state::{Injection, Shadow};
use crate::translate::{self, Ended, Way};

/// DR6: single step.
const DR6_BS: u64 = 1 << 14;

/// Whether the bus may have an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    None,
    /// It has to be asked.
    Waiting,
    /// It was asked while these windows were closed: what it has may be for one of them.
    Closed {
        interrupts: bool,
        nmis: bool,
    },
}

impl Core<'_> {
    /// Executes until something ends it.
    pub(crate) fn execute(&mut self, blocks: &mut BlockCache) -> CpuExit {
        // An instruction that waits for data is finished before anything else is looked at.
        let mut completing = self.completion.resume(self.s.linear_rip());
        self.emulate_next = completing;
        let mut events = Events::Waiting;
        loop {
            if self.kick.any() {
                self.flush_as_asked();
                if self.kick.take_event() {
                    events = Events::Waiting;
                }
                if self.kick.stop_requested() && !completing {
                    return CpuExit::Stopped;
                }
            }
            if !completing {
                if self.s.instructions >= self.s.turn_ends {
                    return CpuExit::Turn;
                }
                if std::mem::take(&mut self.new_world) {
                    events = Events::Waiting;
                }
                if events != Events::None {
                    events = match self.take_event(events) {
                        Ok(events) => events,
                        Err(exit) => return exit,
                    };
                }
                if let Some(injection) = self.s.injection {
                    if let Err(exit) = self.deliver_all(injection).and_then(|()| self.attend()) {
                        return exit;
                    }
                    // The handler may be interrupted before it begins.
                    continue;
                }
                if self.new_world {
                    continue;
                }
            }
            let watches = self.breakpoints_armed();
            if self.watches_memory != watches {
                // Watched accesses go where they are compared with the breakpoints: past the TLB.
                self.watches_memory = watches;
                self.tlbs.flush();
            }
            self.stepping = completing || watches || self.single_steps();
            let result = if self.stepping {
                self.step(blocks)
            } else if self.debug.records {
                self.run_blocks::<true>(blocks)
            } else {
                self.run_blocks::<false>(blocks)
            };
            if let Err(exit) = result {
                return exit;
            }
            completing = self.emulate_next;
        }
    }

    /// Whether the next instruction has to be executed on its own.
    #[inline]
    fn single_steps(&self) -> bool {
        self.s.rflags & flags::TF != 0 || self.s.shadow != Shadow::None || self.debug.single_step
    }

    /// Asks the bus for an event, unless it was asked already and nothing has opened since.
    ///
    /// # Errors
    /// The bus has none, and the processor waits.
    fn take_event(&mut self, events: Events) -> Result<Events, CpuExit> {
        let interrupts_open = self.s.rflags & flags::IF != 0 && self.s.shadow == Shadow::None;
        let nmis_open = !self.s.nmi_blocked && self.s.shadow != Shadow::MovSs;
        let opened = match events {
            Events::None => false,
            Events::Waiting => true,
            Events::Closed { interrupts, nmis } => interrupts && interrupts_open || nmis && nmis_open,
        };
        if !opened || self.s.injection.is_some() {
            return Ok(events);
        }
        match self.with_bus(|core| core.bus.take_event(core.s, interrupts_open, nmis_open)) {
            Some(Event::Nmi) => self.s.injection = Some(Injection::Nmi),
            Some(Event::Interrupt(vector)) => self.s.injection = Some(Injection::Interrupt(vector)),
            Some(Event::Switched) => self.enter_world(),
            Some(Event::Halted) => return Err(CpuExit::Halt),
            None if interrupts_open && nmis_open => return Ok(Events::None),
            None => return Ok(Events::Closed { interrupts: !interrupts_open, nmis: !nmis_open }),
        }
        Ok(Events::Waiting)
    }

    /// Executes blocks, until something has happened that the loop around has to look at.
    #[inline(always)]
    fn run_blocks<const RECORDS: bool>(&mut self, blocks: &mut BlockCache) -> Result<(), CpuExit> {
        let mut way = Way::Any;
        loop {
            let block = match blocks.find(self, way) {
                Ok(block) => block,
                Err(abort) => return self.aborted(abort, false),
            };
            let ended = match block.code {
                Some((buffer, code)) if !RECORDS => translate::enter(self, buffer, code),
                _ => self.run_handlers::<RECORDS>(&block),
            };
            match ended {
                Ended::Done(by) => way = by,
                Ended::Changed => {
                    self.update_mode();
                    return Ok(());
                }
                Ended::Aborted { stack } => return self.aborted(Abort, stack),
                Ended::Attention => {
                    self.s.rip = self.next_rip;
                    self.update_mode();
                    return self.attend();
                }
            }
            if self.kick.any() || self.s.instructions >= self.s.turn_ends {
                return Ok(());
            }
        }
    }

    /// Has the handlers of its ops execute a block.
    #[inline(always)]
    fn run_handlers<const RECORDS: bool>(&mut self, block: &Block<'_>) -> Ended {
        if RECORDS {
            self.bus.entered(self.s, block.ops.len(), block.bytes());
        }
        // Only the last op of a block changes where execution goes on.
        let mut rip = self.s.rip;
        for (index, op) in block.ops.iter().enumerate() {
            self.s.rip = rip;
            rip = rip.wrapping_add(u64::from(op.len));
            self.next_rip = rip;
            if let Err(Abort) = (op.run)(self, op) {
                if RECORDS && self.why != Why::Switched {
                    self.bus.cut_short(self.s.rip, block.ops.len() - index);
                }
                return Ended::Aborted { stack: op.mem.stack };
            }
            self.s.instructions = self.s.instructions.wrapping_add(1);
            if self.attention {
                if RECORDS {
                    self.bus.cut_short(self.next_rip, block.ops.len() - index - 1);
                }
                return Ended::Attention;
            }
        }
        self.s.rip = self.next_rip;
        if block.changes_mode { Ended::Changed } else { Ended::Done(Way::Any) }
    }

    /// Executes one instruction, with everything that may come between two.
    fn step(&mut self, blocks: &mut BlockCache) -> Result<(), CpuExit> {
        let shadow = self.s.shadow;
        let trap = self.s.rflags & flags::TF != 0;
        let emulated = std::mem::take(&mut self.emulate_next);
        if self.instruction_breakpoint(shadow)? {
            return Ok(());
        }
        let block = match blocks.find(self, Way::Any) {
            Ok(block) => block,
            Err(abort) => return self.aborted(abort, false),
        };
        self.watch_hits = 0;
        self.casts_shadow = false;
        self.delivered = false;
        let op = &block.ops[0];
        self.next_rip = self.s.rip.wrapping_add(u64::from(op.len));
        if self.debug.records {
            self.bus.entered(self.s, 1, op.len.into());
        }
        // Code is the processor's business in any case: it has handed the bytes over.
        self.set_emulating(emulated);
        let done = (op.run)(self, op);
        self.set_emulating(false);
        match done {
            Ok(()) => {
                if !self.casts_shadow {
                    self.s.shadow = Shadow::None;
                }
                self.s.rip = self.next_rip;
                self.s.instructions = self.s.instructions.wrapping_add(1);
                self.s.rflags &= !flags::RF;
                self.completion.forget();
                self.update_mode();
                let result = self.attend();
                result.and_then(|()| self.debug_traps(trap && !self.delivered))
            }
            Err(abort) => {
                if self.debug.records && self.why != Why::Switched {
                    self.bus.cut_short(self.s.rip, 1);
                }
                if !matches!(self.why, Why::Exit(_) | Why::Emulate(_)) {
                    self.completion.forget();
                }
                self.aborted(abort, op.mem.stack)
            }
        }
    }

    /// #DB traps after an instruction: single step and data breakpoints, the guest's or the host's.
    fn debug_traps(&mut self, trap: bool) -> Result<(), CpuExit> {
        let mut dr6 = self.watch_hits;
        if trap || self.debug.single_step {
            dr6 |= DR6_BS;
        }
        if dr6 == 0 || self.s.shadow == Shadow::MovSs {
            return Ok(());
        }
        if self.debug.single_step || self.debug.hardware_breakpoints.is_some() && self.watch_hits != 0 {
            return Err(self.debug_exit(dr6));
        }
        self.raised(Exception::db(dr6))
    }

    /// The exit that hands a #DB to the host.
    pub(crate) fn debug_exit(&self, dr6: u64) -> CpuExit {
        CpuExit::Debug {
            exception: Exception::db(dr6),
            pc: self.s.linear_rip(),
            dr6: dr6 | 0xffff_0ff0,
            dr7: self.debug.hardware_breakpoints.map_or(self.s.dr7, |(_, dr7)| dr7),
        }
    }

    /// What an instruction left behind for the loop.
    #[cold]
    fn attend(&mut self) -> Result<(), CpuExit> {
        self.attention = false;
        if let Some(exit) = self.exit_after.take() {
            return Err(exit);
        }
        self.completion.next_write().map_or(Ok(()), Err)
    }

    /// Sees to an instruction that did not complete, and whose operand is, or is not, relative to the stack.
    #[cold]
    fn aborted(&mut self, _: Abort, stack: bool) -> Result<(), CpuExit> {
        self.attention = false;
        self.exit_after = None;
        self.completion.drop_writes();
        let exception = match self.why {
            Why::Exit(exit) => {
                self.s.vectoring = None;
                return Err(exit);
            }
            Why::Emulate(_) => {
                self.s.vectoring = None;
                self.emulate_next = true;
                return Ok(());
            }
            Why::Switched => {
                self.enter_world();
                return Ok(());
            }
            Why::NonCanonical if stack => Exception::ss(0),
            Why::NonCanonical => Exception::gp(0),
            Why::Exception(exception) => exception,
        };
        if exception.vector == vector::BP && self.debug.software_breakpoints {
            return Err(CpuExit::Debug { exception, pc: self.s.linear_rip(), dr6: self.s.dr6, dr7: self.s.dr7 });
        }
        self.raised(exception)?;
        // The frame may have gone to MMIO.
        self.attend()
    }
}
