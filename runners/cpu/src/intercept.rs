//! Leaving it to the bus what an instruction does.

use crate::bus::{Intercept, Intercepted};
use crate::core::{Abort, Core};
use crate::exit::CpuExit;
use crate::op::Op;

/// Whether the bus has done an instruction or the CPU is to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Native,
    Done,
}

impl Core<'_> {
    /// Lets the bus intercept the current instruction.
    pub(crate) fn intercept(&mut self, op: &Op, what: Intercept) -> Result<Outcome, Abort> {
        let rip = self.s.rip;
        let intercepted = self.with_bus(|core| core.bus.intercept(core.s, what, op.len));
        match intercepted {
            Intercepted::Native => Ok(Outcome::Native),
            Intercepted::Done => {
                if self.s.rip != rip {
                    self.next_rip = std::mem::replace(&mut self.s.rip, rip);
                }
                Ok(Outcome::Done)
            }
            Intercepted::Exit => {
                self.completion.intercepted = op.len;
                self.exit(CpuExit::Bus)
            }
            Intercepted::Reflect(exception) => self.raise(exception),
            Intercepted::Rewrite(bytes) => {
                self.set_emulating(true);
                let written = self.write_bytes(self.s.linear_rip(), &bytes);
                self.set_emulating(false);
                self.next_rip = rip;
                written.map(|()| Outcome::Done)
            }
        }
    }

    /// Does something that may take long, a call to the bus above all, holding no host address.
    pub(crate) fn with_bus<R>(&mut self, call: impl FnOnce(&mut Self) -> R) -> R {
        self.kick.leave();
        let result = call(self);
        self.kick.enter();
        if self.kick.take_flush() {
            self.tlbs.flush();
        }
        result
    }
}
