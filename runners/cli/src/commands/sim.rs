//! `privet sim`: any program of this system on a real kernel, in a machine of ours; a shell if none is named.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use privet_rig::{Attached, MachineKind, SimOptions};

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
    let sim = SimOptions {
        cpus: args.cpus.into(),
        profile: args.cpu_profile,
        without: args.cpu_without.unwrap_or_default(),
        seed: args.seed,
        ..SimOptions::default()
    };
    let shell = ["sh".into(), "-i".into()];
    let is_console = args.program.is_empty();
    let words = match args.program.as_slice() {
        // Without somebody to read it, no prompt.
        [] => &shell[..if io::stdin().is_terminal() { 2 } else { 1 }],
        words => words,
    };
    let path = found(&words[0])?;
    let files = args.file.iter().map(|file| absolute(file)).collect::<Result<_, _>>()?;
    let beside = if is_console {
        SMALL_PROGRAMS.iter().filter_map(|name| found(name.as_ref()).ok()).collect()
    } else {
        Vec::new()
    };
    GuestProgram {
        path,
        files,
        arguments: words[1..].to_vec(),
        machine: MachineKind::Sim,
        sim,
        beside,
        attached: Attached { input: true, log: is_console },
        is_kept: args.keep,
        recording: args.recording,
    }
    .run(&options)
}

/// Where the machine mounts file systems of its own, below which no file that comes along could be seen.
const MOUNTED_OVER: [&str; 4] = ["/dev", "/proc", "/sys", "/tmp"];

/// The absolute path of a file that comes along.
fn absolute(file: &Path) -> Result<PathBuf, Early> {
    let cannot = |why: String| Early::usage(format!("cannot take {} along: {why}", file.display()));
    let path =
        std::fs::metadata(file).and_then(|_| std::path::absolute(file)).map_err(|error| cannot(error.to_string()))?;
    match MOUNTED_OVER.iter().find(|mounted| path.starts_with(mounted)) {
        Some(mounted) => Err(cannot(format!("the machine has a {mounted} of its own; put the file elsewhere"))),
        None => Ok(path),
    }
}

/// What a shell can start, as far as this system has it.
const SMALL_PROGRAMS: &[&str] = &[
    "cat", "cp", "dd", "df", "dmesg", "env", "find", "free", "grep", "head", "hexdump", "id", "insmod", "kill", "ln",
    "ls", "lsmod", "mkdir", "mount", "mv", "od", "ps", "rm", "rmmod", "sed", "sleep", "sort", "stat", "tail", "tee",
    "touch", "tr", "umount", "uname", "wc",
];

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
