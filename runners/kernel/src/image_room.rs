//! A copy of what a kernel was compiled to, in which its image is linked again with one object changed.

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::build_tree::{BuildTree, LINES_ONLY};
use crate::command::Runner;
use crate::error::{KernelError, cannot};
use crate::kernel_make::{BUILT_IMAGE, Make};

/// The copy, which goes when this is dropped. The kernel's own build does what is to be done, and finds all objects but
/// one as it has left them.
#[derive(Debug)]
pub struct ImageRoom {
    source: PathBuf,
    /// The tree's own objects.
    built: PathBuf,
    copy: tempfile::TempDir,
    /// What is not the tree's own in the copy.
    changed: Option<String>,
}

impl ImageRoom {
    /// A copy of the objects of `tree`: some 300 MB in the directory for temporary files.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn of(tree: &BuildTree, interrupt: BorrowedFd<'_>) -> Result<Self, KernelError> {
        let copy = tempfile::tempdir().map_err(cannot("create a directory in", &std::env::temp_dir()))?;
        let this = Self { source: tree.source.clone(), built: tree.objects.clone(), copy, changed: None };
        let mut whole = this.built.clone().into_os_string();
        whole.push("/.");
        // With all times, by which make tells what is new.
        let mut command = Command::new("cp");
        command.arg("-a").arg(whole).arg(this.copy.path());
        this.run("cp", &mut command, interrupt)?;
        // The build of objtool, on which every object depends, names files by absolute paths.
        rename_in_commands(&this.copy.path().join("tools"), &this.built, this.copy.path())?;
        Ok(this)
    }

    /// Links the image with what is in the file `object` in place of `name`, an object below the top of the build, and
    /// returns where it is until the next one is linked here.
    ///
    /// # Errors
    /// If it cannot be linked.
    pub fn link(&mut self, name: &str, object: &Path, interrupt: BorrowedFd<'_>) -> Result<PathBuf, KernelError> {
        if let Some(other) = self.changed.take().filter(|other| other != name) {
            put(&self.built.join(&other), &self.copy.path().join(&other))?;
        }
        self.changed = Some(name.to_owned());
        put(object, &self.copy.path().join(name))?;
        let make = Make { tree: &self.source, objects: self.copy.path(), fragment: "", module_flags: LINES_ONLY };
        self.run("make", &mut make.command(&["bzImage"]), interrupt)?;
        Ok(self.copy.path().join(BUILT_IMAGE))
    }

    fn run(&self, what: &str, command: &mut Command, interrupt: BorrowedFd<'_>) -> Result<(), KernelError> {
        let log_path = self.copy.path().join("privet.log");
        let log = File::create(&log_path).map_err(cannot("create", &log_path))?;
        Runner { interrupt, log, log_path }.run(what, command, &mut |_| {})
    }
}

/// Puts an object in its place, newer than all that was made of the one before.
fn put(object: &Path, place: &Path) -> Result<(), KernelError> {
    fs::copy(object, place).map_err(cannot("copy", object))?;
    let placed = File::options().write(true).open(place);
    placed.and_then(|placed| placed.set_modified(SystemTime::now())).map_err(cannot("write", place))
}

/// Writes `to` for `from` in all that make keeps of its commands below a directory.
fn rename_in_commands(dir: &Path, from: &Path, to: &Path) -> Result<(), KernelError> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            rename_in_commands(&path, from, to)?;
        } else if path.extension().is_some_and(|extension| extension == "cmd") {
            let text = fs::read_to_string(&path).map_err(cannot("read", &path))?;
            let renamed = text.replace(&from.display().to_string(), &to.display().to_string());
            fs::write(&path, renamed).map_err(cannot("write", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_copy_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("objtool");
        fs::create_dir(&below).unwrap();
        let (command, other) = (below.join(".a.o.cmd"), below.join("a.o"));
        for path in [&command, &other] {
            fs::write(path, "cmd_/old/a.o := cc -o /old/a.o a.c").unwrap();
        }
        rename_in_commands(dir.path(), Path::new("/old"), Path::new("/new")).unwrap();
        assert_eq!(fs::read_to_string(command).unwrap(), "cmd_/new/a.o := cc -o /new/a.o a.c");
        assert_eq!(fs::read_to_string(other).unwrap(), "cmd_/old/a.o := cc -o /old/a.o a.c");
    }

    #[test]
    fn an_object_is_newer_than_before() {
        let dir = tempfile::tempdir().unwrap();
        let (object, place) = (dir.path().join("new.o"), dir.path().join("a.o"));
        fs::write(&object, "new").unwrap();
        fs::write(&place, "old").unwrap();
        let then = SystemTime::UNIX_EPOCH;
        File::options().write(true).open(&object).unwrap().set_modified(then).unwrap();
        File::options().write(true).open(&place).unwrap().set_modified(then).unwrap();
        put(&object, &place).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "new");
        assert!(fs::metadata(&place).unwrap().modified().unwrap() > then);
    }
}
