//! Leaving it to the bus what an instruction does.

use crate::bus::{Bus, Intercept, Intercepted, Reaction, Trap};
use crate::core::{Abort, Core, Why};
use crate::exception::Exception;
use crate::exit::CpuExit;
use crate::op::Op;
use crate::state::CpuState;

/// Whether the bus has done an instruction or the CPU is to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Native,
    /// With this value in place of the one that is read or written.
    Instead(u64),
    Done,
}

impl Outcome {
    /// The value that an instruction that moves `native` moves; `None` if it is done.
    pub(crate) fn value(self, native: u64) -> Option<u64> {
        match self {
            Outcome::Native => Some(native),
            Outcome::Instead(value) => Some(value),
            Outcome::Done => None,
        }
    }
}

impl Core<'_> {
    /// Lets the bus intercept the current instruction.
    pub(crate) fn intercept(&mut self, op: &Op, what: Intercept) -> Result<Outcome, Abort> {
        let rip = self.s.rip;
        let intercepted = self.with_bus(|core| core.bus.intercept(core.s, what, op.len));
        match intercepted {
            Intercepted::Native => Ok(Outcome::Native),
            Intercepted::Value(value) => Ok(Outcome::Instead(value)),
            Intercepted::Done => {
                if self.s.rip != rip {
                    self.next_rip = std::mem::replace(&mut self.s.rip, rip);
                }
                Ok(Outcome::Done)
            }
            Intercepted::Switched => self.switch(),
            Intercepted::Exit => {
                self.completion.intercepted = op.len;
                self.exit(CpuExit::Bus)
            }
            Intercepted::Reflect(exception) => self.raise(exception),
            Intercepted::Rewrite(bytes) => {
                self.set_emulating(true);
                let written = self.write_bytes(self.s.linear_rip(), &bytes);
                self.set_emulating(false);
                self.stay();
                written.map(|()| Outcome::Done)
            }
        }
    }

    /// Tells the bus what the current instruction has done.
    pub(crate) fn after(&mut self, what: Trap) -> Result<(), Abort> {
        let rip = std::mem::replace(&mut self.s.rip, self.next_rip);
        match self.react(|bus, state| bus.after(state, what)) {
            Reaction::Native => {
                self.s.rip = rip;
                Ok(())
            }
            Reaction::Switched => self.switch(),
        }
    }

    /// Lets the bus see an exception that the current instruction raises on purpose.
    pub(crate) fn offer(&mut self, exception: Exception) -> Result<(), Abort> {
        match self.react(|bus, state| bus.exception(state, exception)) {
            Reaction::Native => Ok(()),
            Reaction::Switched => self.switch(),
        }
    }

    /// Asks the bus about something that is no instruction's to decide.
    pub(crate) fn react(&mut self, ask: impl FnOnce(&mut dyn Bus, &mut CpuState) -> Reaction) -> Reaction {
        self.with_bus(|core| ask(core.bus, core.s))
    }

    /// Gives up the instruction: the bus has put another world in its place.
    #[cold]
    pub(crate) fn switch<T>(&mut self) -> Result<T, Abort> {
        self.why = Why::Switched;
        Err(Abort)
    }

    /// Does something that may take long, a call to the bus above all, holding no host address.
    pub(crate) fn with_bus<R>(&mut self, call: impl FnOnce(&mut Self) -> R) -> R {
        self.kick.leave();
        let result = call(self);
        self.kick.enter();
        self.flush_as_asked();
        result
    }

    /// Drops the translations that somebody has asked to drop; says whether there were any.
    pub(crate) fn flush_as_asked(&mut self) -> bool {
        if !self.kick.any() {
            return false;
        }
        let mut flushed = self.kick.take_flush();
        if flushed {
            self.tlbs.flush();
        }
        for part in self.kick.take_parts() {
            self.tlbs.flush_part(part);
            flushed = true;
        }
        flushed
    }
}
