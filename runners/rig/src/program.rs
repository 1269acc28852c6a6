//! One program of this system, run on the rig's kernel: what it prints and how it ends.

use std::os::fd::BorrowedFd;

use crate::blame::Blame;
use crate::boot::{Boot, End, News};
use crate::error::RigError;
use crate::plan::{GuestProgram, Plan, Stream, Work};
use crate::share::Common;

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramEnd {
    /// Its exit status, or 128 and the number of the signal that killed it, as shells say it.
    pub status: i32,
    /// What was asked of the machine and what it has not: what the program saw may be wrong.
    pub not_simulated: Option<String>,
    /// What the kernel complained about.
    pub trouble: Option<String>,
}

/// Runs a program that is among those of the plan, whose rows do not matter, in one machine. `tell` gets what it
/// prints, as it comes. `interrupt` ends it when it becomes readable or hangs up.
///
/// # Errors
/// If the machine cannot be started, or ends before the program does.
pub fn run_program(
    plan: &Plan,
    program: GuestProgram,
    interrupt: BorrowedFd<'_>,
    tell: &mut dyn FnMut(Stream, &[u8]),
) -> Result<ProgramEnd, RigError> {
    let common = Common::new(plan, interrupt)?;
    let mut machine = common.switch_on(&common.archive(Work::Program(program))?, None)?;
    let mut boot = Boot::new(&[], common.limits());
    let mut status = None;
    let end = boot.watch(&mut machine, interrupt, &mut |news| match news {
        News::Printed(stream, bytes) => tell(stream, &bytes),
        News::Exited(code) => status = Some(code),
        News::Console(_) | News::Ready | News::Starved(..) | News::Row(_) => {}
    })?;
    match (status, end) {
        (_, End::Interrupted) => Err(RigError::Interrupted),
        (Some(status), _) => {
            Ok(ProgramEnd { status, not_simulated: boot.not_simulated.take(), trouble: boot.unattributed.take() })
        }
        (None, end) => Err(RigError::Machine(Blame::new(&end, &machine.console(), None, common.limits()).reason)),
    }
}
