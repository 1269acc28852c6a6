//! One program of this system, run on the rig's kernel: what it reads and prints, and how it ends.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use privet_sim::Record;

use crate::blame::Blame;
use crate::boot::{Boot, End, News};
use crate::error::RigError;
use crate::machine::Machine;
use crate::machine_kind::MachineKind;
use crate::plan::{GuestProgram, Plan, Request, Stream, Work};
use crate::share::Common;
use crate::snapshot::Snapshot;

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramEnd {
    /// Its exit status, or 128 and the number of the signal that killed it, as shells say it.
    pub status: i32,
    /// What was asked of the machine and what it has not: what the program saw may be wrong.
    pub not_simulated: Option<String>,
    /// What the kernel complained about.
    pub trouble: Option<String>,
    /// What was executed while it ran, if the plan records, with the functions of the kernel in the format of
    /// /proc/kallsyms.
    pub recorded: Option<(Record, String)>,
}

/// What the program shares with this process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Attached {
    /// Standard input, if the machine is ours.
    pub input: bool,
    /// The kernel's log is told, likewise.
    pub log: bool,
}

/// What a machine with a program tells, as it happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProgramNews {
    /// The program has printed this.
    Printed(Stream, Vec<u8>),
    /// This came over the console, from the kernel.
    Logged(Vec<u8>),
}

/// Runs a program that is among those of the plan, whose rows do not matter, in one machine: one that is booted for it, or
/// a copy of that if the plan keeps it, which has to be ours then, and tells no log. `tell` gets what it prints, as it
/// comes. `interrupt` ends it when it becomes readable or hangs up.
///
/// # Errors
/// If the machine cannot be started, or ends before the program does.
pub fn run_program(
    plan: &Plan,
    program: GuestProgram,
    attached: Attached,
    interrupt: BorrowedFd<'_>,
    tell: &mut dyn FnMut(ProgramNews),
) -> Result<ProgramEnd, RigError> {
    let common = Common::new(plan, interrupt)?;
    // The snapshot is in use, and so stays, as long as this is here.
    let (_kept, mut machine, mut boot) = if plan.keeps_snapshot {
        let snapshot = Snapshot::of(&common, &mut |_| {})?;
        let mut machine = Machine::copy_once(plan, &snapshot.machine(), Request::Program(program))?;
        let boot = Boot::resumed(&[], common.limits(), machine.usable_time());
        (Some(snapshot), machine, boot)
    } else {
        let archive = common.archive(Work::Program(program))?;
        let machine =
            if attached.log { common.switch_on_and_listen(&archive)? } else { common.switch_on(&archive, None)? };
        (None, machine, Boot::new(&[], common.limits()))
    };
    if plan.machine == MachineKind::Sim
        && let Some(input) = machine.input()
        && attached.input
    {
        // It may wait for somebody who types when all is over, and ends with this process.
        std::thread::spawn(move || pass_on_input(input));
    }
    let mut status = None;
    let mut record = None;
    let mut symbols = None;
    let end = boot.watch(&mut machine, interrupt, &mut |news| match news {
        News::Printed(stream, bytes) => tell(ProgramNews::Printed(stream, bytes)),
        News::Logged(bytes) => tell(ProgramNews::Logged(bytes)),
        News::Exited(code) => status = Some(code),
        News::Recorded(_, executed) => drop(record.get_or_insert(executed)),
        News::Symbols(text) => symbols = Some(text),
        News::Console(_) | News::Room(_) | News::Ready | News::Starved(..) | News::Row(_) => {}
    })?;
    match (status, end) {
        (_, End::Interrupted) => Err(RigError::Interrupted),
        (Some(status), _) => Ok(ProgramEnd {
            status,
            not_simulated: boot.not_simulated.take(),
            trouble: boot.unattributed.take(),
            recorded: record.zip(symbols),
        }),
        (None, end) => Err(RigError::Machine(Blame::new(&end, &machine.console(), None, common.limits()).reason)),
    }
}

/// Copies standard input, until it ends or nobody wants it any more.
fn pass_on_input(mut input: impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
        if input.write_all(&buffer[..length]).and_then(|()| input.flush()).is_err() {
            return;
        }
    }
}
