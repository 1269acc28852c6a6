//! `privet model`: any program on the model.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;

use crate::args;
use crate::exit::{Early, Status};
use crate::model::Model;

/// Becomes the program, with the model under it.
///
/// # Errors
/// If there is no such machine or model, or the program cannot be started.
pub fn model(args: &args::Model) -> Result<Status, Early> {
    let model = Model::described(args.vendor.map(Into::into), &args.module_param, args.defect)?;
    let program = &args.program[0];
    if is_static(program) {
        return Err(Early::usage(format!(
            "{} is linked statically, so that nothing can be put under it: link it dynamically",
            program.display()
        )));
    }
    let mut command = Command::new(program);
    command.args(&args.program[1..]);
    let this = std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find privet: {error}")))?;
    model.ready(&this).map_err(Early::nothing_ran)?.lie_under(&mut command);
    let error = command.exec();
    Err(Early::usage(format!("cannot start {}: {error}", program.display())))
}

/// Whether a program is known to have no dynamic loader: it would run on the host without a word.
pub(super) fn is_static(program: &OsStr) -> bool {
    let Some(bytes) = found(program).and_then(|path| fs::read(path).ok()) else { return false };
    // What is no ELF file is a script, whose interpreter is a program of its own.
    Elf::parse(&bytes).is_ok_and(|elf| elf.interpreter.is_none())
}

/// The file that exec takes: the first of the name in the search path, unless a directory is named.
fn found(program: &OsStr) -> Option<PathBuf> {
    let named = Path::new(program);
    if named.components().count() > 1 {
        return Some(named.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(named)).find(|path| path.is_file())
}
