//! Breakpoints in DR0 to DR3, the guest's or the host's.

use crate::bus::Reaction;
use crate::core::Core;
use crate::exception::Exception;
use crate::exit::CpuExit;
use crate::flags;
use crate::state::{Injection, Shadow};

impl Core<'_> {
    fn breakpoints(&self) -> ([u64; 4], u64) {
        self.debug.hardware_breakpoints.unwrap_or((self.s.dr, self.s.dr7))
    }

    /// Whether any breakpoint is enabled.
    #[inline]
    pub(crate) fn breakpoints_armed(&self) -> bool {
        match self.debug.hardware_breakpoints {
            None => self.s.dr7 & 0xff != 0,
            Some((_, dr7)) => dr7 & 0xff != 0,
        }
    }

    /// Delivers or reports a breakpoint on the instruction at RIP; says whether there was one.
    pub(crate) fn instruction_breakpoint(&mut self, shadow: Shadow) -> Result<bool, CpuExit> {
        if !self.breakpoints_armed() || shadow == Shadow::MovSs || self.s.rflags & flags::RF != 0 {
            return Ok(false);
        }
        let (addresses, dr7) = self.breakpoints();
        let rip = self.s.linear_rip();
        let mut dr6 = 0;
        for (index, address) in addresses.into_iter().enumerate() {
            let enabled = dr7 >> (index * 2) & 3 != 0;
            let on_execution = dr7 >> (16 + index * 4) & 0xf == 0;
            if enabled && on_execution && address == rip {
                dr6 |= 1 << index;
            }
        }
        if dr6 == 0 {
            return Ok(false);
        }
        if self.debug.hardware_breakpoints.is_some() {
            return Err(self.debug_exit(dr6));
        }
        let exception = Exception::db(dr6);
        if self.react(|bus, state| bus.exception(state, exception)) == Reaction::Switched {
            self.enter_world();
            return Ok(true);
        }
        // A fault, unlike the other causes of #DB: RF in the frame keeps it from recurring on return.
        self.s.rflags |= flags::RF;
        self.deliver_all(Injection::Exception(exception))?;
        Ok(true)
    }

    /// Notes a data access if a breakpoint watches it.
    pub(crate) fn watch(&mut self, linear: u64, size: usize, write: bool) {
        let (addresses, dr7) = self.breakpoints();
        for (index, address) in addresses.into_iter().enumerate() {
            let enabled = dr7 >> (index * 2) & 3 != 0;
            let condition = dr7 >> (16 + index * 4) & 3;
            let length = [1, 2, 8, 4][(dr7 >> (18 + index * 4) & 3) as usize];
            let watches = condition == 3 || condition == 1 && write;
            let start = address & !(length - 1);
            let overlaps = linear.wrapping_sub(start) < length || start.wrapping_sub(linear) < size as u64;
            if enabled && watches && overlaps {
                self.watch_hits |= 1 << index;
            }
        }
    }
}
