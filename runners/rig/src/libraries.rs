//! The shared libraries that an executable needs: what the dynamic loader would find, found beforehand.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use crate::error::RigError;

/// Where the loaders of the common distributions look without being told.
const STANDARD_DIRS: &[&str] =
    &["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// The interpreter of `executable` and all libraries that it needs, directly or not. The paths are those
/// under which the loader would open them, so they can be used in another root as they are.
///
/// # Errors
/// [`RigError::Worker`] if the executable or a library is no x86-64 ELF file, or a library is not found.
pub(crate) fn needed_by(executable: &Path) -> Result<Vec<PathBuf>, RigError> {
    let mut found = BTreeSet::new();
    let mut names_seen = BTreeSet::new();
    let mut waiting = VecDeque::from([executable.to_owned()]);
    while let Some(file) = waiting.pop_front() {
        let needs = Needs::read(&file)?;
        if let Some(interpreter) = needs.interpreter {
            found.insert(interpreter);
        }
        for name in needs.libraries.iter().filter(|name| names_seen.insert((*name).clone())) {
            let standard = STANDARD_DIRS.iter().map(PathBuf::from);
            let path = needs
                .search
                .iter()
                .cloned()
                .chain(standard)
                .map(|dir| dir.join(name))
                .find(|path| path.is_file())
                .ok_or_else(|| RigError::Worker {
                    path: file.clone(),
                    why: format!("needs the library {name}, which is in none of its own or the standard directories"),
                })?;
            if found.insert(path.clone()) {
                waiting.push_back(path);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// What one ELF file asks of the loader.
struct Needs {
    interpreter: Option<PathBuf>,
    libraries: Vec<String>,
    /// The directories of DT_RUNPATH or DT_RPATH.
    search: Vec<PathBuf>,
}

impl Needs {
    fn read(file: &Path) -> Result<Self, RigError> {
        let wrong = |why: String| RigError::Worker { path: file.to_owned(), why };
        let bytes = fs::read(file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let elf = Elf::parse(&bytes).map_err(|error| wrong(format!("is no ELF file: {error}")))?;
        if !elf.is_64 || elf.header.e_machine != goblin::elf::header::EM_X86_64 {
            return Err(wrong("is not for x86-64, as the rig is".into()));
        }
        let origin = file.parent().unwrap_or(Path::new("/")).to_string_lossy();
        // DT_RPATH only counts where there is no DT_RUNPATH.
        let paths = if elf.runpaths.is_empty() { &elf.rpaths } else { &elf.runpaths };
        let search = paths.iter().flat_map(|path| path.split(':')).filter(|dir| !dir.is_empty());
        Ok(Self {
            interpreter: elf.interpreter.map(PathBuf::from),
            libraries: elf.libraries.iter().map(|name| (*name).to_owned()).collect(),
            search: search.map(|dir| dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin).into()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_the_c_library_of_this_test_are_found() {
        let needed = needed_by(&std::env::current_exe().unwrap()).unwrap();
        for part in ["ld-linux-x86-64.so.2", "libc.so.6"] {
            assert!(needed.iter().any(|path| path.ends_with(part)), "{part} in {needed:?}");
        }
        assert!(needed.iter().all(|path| path.is_file()), "{needed:?}");
    }

    #[test]
    fn other_files_are_refused() {
        let error = needed_by(Path::new("/etc/passwd")).unwrap_err().to_string();
        assert!(error.starts_with("/etc/passwd: is no ELF file"), "{error}");
        assert!(needed_by(Path::new("/nonexistent")).unwrap_err().to_string().contains("cannot be read"));
    }

    /// A shared library, or program, with nothing in it but what it needs and where to look.
    fn link(dir: &Path, output: &str, arguments: &[&str]) {
        let source = dir.join("empty.c");
        fs::write(&source, "int nothing;\n").unwrap();
        let status = std::process::Command::new("cc")
            .current_dir(dir)
            .args(["-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed", "-o", output, "empty.c"])
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn libraries_of_libraries_are_found_by_runpath() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        link(dir.path(), "deep/libinner.so", &[]);
        link(dir.path(), "libouter.so", &["-Ldeep", "-linner", "-Wl,-rpath,$ORIGIN/deep"]);
        link(dir.path(), "program", &["-L.", "-louter", "-Wl,-rpath,$ORIGIN", "-Wl,-rpath-link,deep"]);
        let needed = needed_by(&dir.path().join("program")).unwrap();
        assert_eq!(needed, [dir.path().join("deep/libinner.so"), dir.path().join("libouter.so")]);

        fs::remove_file(dir.path().join("deep/libinner.so")).unwrap();
        let error = needed_by(&dir.path().join("program")).unwrap_err().to_string();
        assert!(error.contains("libouter.so: needs the library libinner.so"), "{error}");
    }
}
