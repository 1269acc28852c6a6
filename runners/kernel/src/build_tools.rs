//! What a build needs from the system (Documentation/process/changes.rst), checked before anything is
//! downloaded.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::KernelError;

/// The programs that a kernel build runs, and the Debian packages that have them.
pub(crate) const KERNEL_PROGRAMS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("awk", "mawk"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];

/// The headers that it needs, likewise. objtool, which every x86-64 kernel needs, reads ELF.
pub(crate) const KERNEL_HEADERS: &[(&str, &str)] = &[("gelf.h", "libelf-dev")];

/// Whether all programs and headers are there. Each comes with the Debian package that has it.
///
/// # Errors
/// [`KernelError::NotInstalled`] with all that is missing.
pub fn check(programs: &[(&str, &str)], headers: &[(&str, &str)]) -> Result<(), KernelError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_program = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    let (missing, packages): (Vec<_>, Vec<_>) = programs
        .iter()
        .filter(|(name, _)| !has_program(name))
        // Without a compiler nothing can be said about its headers.
        .chain(headers.iter().filter(|(name, _)| has_program("gcc") && !has_header(name)))
        .copied()
        .unzip();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages.join(" ");
    let install = if Path::new("/usr/bin/apt-get").exists() {
        format!("run `apt-get install {packages}`")
    } else {
        format!("install them with this system's package manager (Debian's names: {packages})")
    };
    Err(KernelError::NotInstalled { missing: missing.join(", "), install })
}

/// Whether the compiler finds this header.
fn has_header(name: &str) -> bool {
    let mut gcc = Command::new("gcc");
    gcc.args(["-E", "-x", "c", "-include", name, "/dev/null"]).stdout(Stdio::null()).stderr(Stdio::null());
    gcc.status().is_ok_and(|status| status.success())
}
