//! One program of this system in a machine of the rig, seen as if it ran here.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use privet_kernel::Kernel;
use privet_rig::{
    Attached, MachineKind, PROGRAMS, Patience, Plan, Program, ProgramNews, RigError, SimOptions, Stream, run_program,
};

use crate::args::{Recording, RigOptions};
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::recorded::Recorded;
use crate::rig::named_kernel;

/// A program may be silent for as long as it likes.
const DAYS: Duration = Duration::from_secs(24 * 60 * 60);

/// A program, and the machine to run it in.
#[derive(Debug)]
pub struct GuestProgram {
    /// The program's file.
    pub path: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
    /// Files that come along, by their absolute paths.
    pub files: Vec<PathBuf>,
    /// What plays the machine.
    pub machine: MachineKind,
    /// What the machine is like if it is ours.
    pub sim: SimOptions,
    /// Other programs' files, which it may start.
    pub beside: Vec<PathBuf>,
    /// What it shares with this process; the kernel's log is shown as standard error.
    pub attached: Attached,
    /// Whether the machine is kept as it was before the program started, and the next run goes on from there. It has to be
    /// ours, and to tell neither a log nor what it executes.
    pub is_kept: bool,
    /// What is asked about what the machine executes; nothing if it is not ours.
    pub recording: Recording,
}

impl GuestProgram {
    /// Runs the program, passes on what it prints, and ends as it does. Of the options only the kernel and the module
    /// parameters matter.
    ///
    /// # Errors
    /// If there is no kernel, or the machine ends before the program.
    pub fn run(self, options: &RigOptions) -> Result<Status, Early> {
        let kernel = match named_kernel(options)? {
            Some(kernel) => kernel,
            None => Kernel::cached().map_err(|error| Early::nothing_ran(error.to_string()))?,
        };
        let interrupt = Interrupt::on_signals()
            .map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
        let worker =
            std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find privet: {error}")))?;
        let recorded = Recorded::asked(&self.recording)?;
        let in_guest = |path: PathBuf| {
            let guest_path = Path::new(PROGRAMS).join(path.file_name().unwrap_or_default());
            Program { path, guest_path }
        };
        let programs: Vec<Program> = std::iter::once(self.path).chain(self.beside).map(in_guest).collect();
        let guest_path = programs[0].guest_path.clone();
        let plan = Plan {
            kernel,
            machine: self.machine,
            worker,
            programs,
            cases: Vec::new(),
            machines: 1,
            module_params: options.module_param.clone(),
            patience: Patience { pause: DAYS, ..Patience::default() },
            sim: self.sim,
            without_rule: None,
            tdx_faults: Vec::new(),
            keeps_snapshot: self.is_kept,
            files: self.files,
            records: recorded.is_some(),
            artifacts: None,
        };
        let name = guest_path.display().to_string();
        let program =
            privet_rig::GuestProgram { path: guest_path, arguments: self.arguments, tells_symbols: recorded.is_some() };
        let mut broken = None;
        let ended = run_program(&plan, program, self.attached, interrupt.as_fd(), &mut |news| {
            let written = match news {
                ProgramNews::Printed(Stream::Out, bytes) => {
                    io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush())
                }
                ProgramNews::Printed(Stream::Err, bytes) | ProgramNews::Logged(bytes) => io::stderr().write_all(&bytes),
            };
            broken = broken.take().or(written.err());
        });
        let ended = ended.map_err(|error| match (&error, interrupt.signal()) {
            (RigError::Interrupted, Some(signal)) => {
                Early { status: Status::Interrupted(signal), message: "interrupted".to_owned() }
            }
            (RigError::ModuleParam { .. }, _) => Early::usage(error.to_string()),
            (RigError::NotInstalled { .. }, _) => Early::nothing_ran(error.to_string()),
            _ => Early { status: Status::Failed, message: error.to_string() },
        })?;
        if let Some(error) = broken {
            return Err(Early::usage(format!("cannot pass on what the program prints: {error}")));
        }
        if let Some(what) = ended.not_simulated {
            eprintln!("privet: the program met what the sim has not, and what it saw may be wrong: {what}");
        }
        if let Some(trouble) = ended.trouble {
            eprintln!("privet: the kernel complained: {trouble}");
        }
        if let (Some(mut recorded), Some((record, symbols))) = (recorded, ended.recorded) {
            recorded.symbols(&symbols);
            recorded.add(&name, &record);
            recorded.tell(&plan.kernel)?;
        }
        Ok(Status::Program(u8::try_from(ended.status).unwrap_or(u8::MAX)))
    }
}
