//! One program of this system in a machine of the rig, seen as if it ran here.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use privet_kernel::Kernel;
use privet_rig::{MachineKind, Patience, Plan, Program, RigError, SimOptions, Stream, run_program};

use crate::args::RigOptions;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::rig::named_kernel;

/// Where programs lie in the guest, which has file systems of its own at /tmp, /dev and others.
const PROGRAMS: &str = "/programs";

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
        let guest_path = Path::new(PROGRAMS).join(self.path.file_name().unwrap_or_default());
        let plan = Plan {
            kernel,
            machine: self.machine,
            worker,
            programs: vec![Program { path: self.path, guest_path: guest_path.clone() }],
            cases: Vec::new(),
            machines: 1,
            module_params: options.module_param.clone(),
            patience: Patience { pause: DAYS, ..Patience::default() },
            sim: self.sim,
            without_rule: None,
            files: self.files,
            artifacts: None,
        };
        let program = privet_rig::GuestProgram { path: guest_path, arguments: self.arguments };
        let mut broken = None;
        let ended = run_program(&plan, program, interrupt.as_fd(), &mut |stream, bytes| {
            let written = match stream {
                Stream::Out => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
                Stream::Err => io::stderr().write_all(bytes),
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
        Ok(Status::Program(u8::try_from(ended.status).unwrap_or(u8::MAX)))
    }
}
