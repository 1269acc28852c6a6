//! `privet sim`: any program of this system on a real kernel, in a machine of ours.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use privet_kernel::Kernel;
use privet_rig::{GuestProgram, MachineKind, Patience, Plan, Program, RigError, SimOptions, Stream, run_program};

use crate::args::{RigOptions, Sim};
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::rig::named_kernel;

/// A program may be silent for as long as it likes.
const DAYS: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs the program, passes on what it prints, and ends as it does.
///
/// # Errors
/// If there is no such program or kernel, or the machine ends before the program.
pub fn sim(args: Sim) -> Result<Status, Early> {
    let options = RigOptions { kernel: args.kernel, modules: args.modules, ..RigOptions::default() };
    let kernel = match named_kernel(&options)? {
        Some(kernel) => kernel,
        None => Kernel::cached().map_err(|error| Early::nothing_ran(error.to_string()))?,
    };
    let interrupt =
        Interrupt::on_signals().map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
    let path = found(&args.program[0])?;
    let worker = std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find privet: {error}")))?;
    let plan = Plan {
        kernel,
        machine: MachineKind::Sim,
        worker,
        programs: vec![Program { path: path.clone(), guest_path: path.clone() }],
        cases: Vec::new(),
        machines: 1,
        module_params: args.module_param,
        patience: Patience { pause: DAYS, ..Patience::default() },
        sim: SimOptions { cpus: args.cpus.into(), seed: args.seed, ..SimOptions::default() },
        artifacts: None,
    };
    let program = GuestProgram { path, arguments: args.program[1..].to_vec() };
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

/// The file of a program, by its path or the first of its name in the search path.
fn found(program: &OsStr) -> Result<PathBuf, Early> {
    let named = Path::new(program);
    let path = if named.components().count() > 1 {
        std::path::absolute(named).ok()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(named)).find(|path| path.is_file())
    };
    path.filter(|path| path.is_file())
        .ok_or_else(|| Early::usage(format!("there is no program {}: give its path", named.display())))
}
