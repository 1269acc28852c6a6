//! What can go wrong around a rig. Rows that go wrong are reports, not errors.

use std::io;
use std::path::{Path, PathBuf};

/// Why a rig could not be built or run. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// Nothing was built yet and nothing was named.
    #[error("no kernel for the rig in {}: build one with `privet rig build`, or name one with --kernel BZIMAGE --modules DIR", .cache.display())]
    NoKernel {
        /// Where kernels are cached.
        cache: PathBuf,
    },
    /// A kernel image or its modules cannot be used.
    #[error("{}: {why}", .path.display())]
    BadKernel {
        /// The offending file or directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Programs or headers that are not installed.
    #[error("not installed: {missing}; {install}")]
    NotInstalled {
        /// Their names.
        missing: String,
        /// The command that installs them.
        install: String,
    },
    /// The kernel's source cannot be had.
    #[error("no kernel source: {0}")]
    Source(String),
    /// A program that the build needs failed.
    #[error("{what} failed ({status}): {complaint} (its whole output: {})", .log.display())]
    Command {
        /// What was run.
        what: String,
        /// Its exit status.
        status: String,
        /// The first error that it named, or its last line.
        complaint: String,
        /// The file with all that it said.
        log: PathBuf,
    },
    /// The executable cannot be taken into the rig.
    #[error("{}: {why}", .path.display())]
    Worker {
        /// The executable or one of its libraries.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A module parameter that would not have any effect.
    #[error("there is no module parameter {param}: {why}")]
    ModuleParam {
        /// The parameter as it was given.
        param: String,
        /// What there is instead.
        why: String,
    },
    /// The virtual machine or its guest broke while no row could be blamed.
    #[error("the rig broke: {0}")]
    Machine(String),
    /// The kernel complained or panicked while no row was running, so no row can be blamed.
    #[error("while no row was running, {0} (see its console with --artifacts DIR)")]
    Unattributed(String),
    /// The caller's interrupt came.
    #[error("interrupted")]
    Interrupted,
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// The errno.
        source: io::Error,
    },
}

/// Turns an I/O error into one that says what was tried.
pub(crate) fn cannot<E: Into<io::Error>>(verb: &str, path: &Path) -> impl FnOnce(E) -> RigError {
    let what = format!("{verb} {}", path.display());
    move |error| RigError::Io { what, source: error.into() }
}
