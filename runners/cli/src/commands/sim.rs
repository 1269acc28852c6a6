//! `privet sim`: any program of this system on a real kernel, in a machine of ours.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use privet_rig::{MachineKind, SimOptions};

use crate::args::{RigOptions, Sim};
use crate::exit::{Early, Status};
use crate::guest_program::GuestProgram;

/// Runs the program, passes on what it prints, and ends as it does.
///
/// # Errors
/// If there is no such program or kernel, or the machine ends before the program.
pub fn sim(args: Sim) -> Result<Status, Early> {
    let options = RigOptions {
        kernel: args.kernel,
        modules: args.modules,
        module_param: args.module_param,
        ..RigOptions::default()
    };
    let sim =
        SimOptions { cpus: args.cpus.into(), profile: args.cpu_profile, seed: args.seed, ..SimOptions::default() };
    let [program, arguments @ ..] = args.program.as_slice() else {
        return Err(Early::usage("name a program to run".to_owned()));
    };
    let path = found(program)?;
    let files = args.file.iter().map(|file| absolute(file)).collect::<Result<_, _>>()?;
    GuestProgram { path, files, arguments: arguments.to_vec(), machine: MachineKind::Sim, sim }.run(&options)
}

/// The absolute path of a file that comes along.
fn absolute(file: &Path) -> Result<PathBuf, Early> {
    let cannot = |error| Early::usage(format!("cannot take {} along: {error}", file.display()));
    std::fs::metadata(file).and_then(|_| std::path::absolute(file)).map_err(cannot)
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
