//! What can go wrong around a rig. Rows that go wrong are reports, not errors.

use std::io;
use std::path::{Path, PathBuf};

use privet_kernel::KernelError;

/// Why a rig could not run. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// The kernel or its modules cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An emulator, or what it needs, is not installed.
    #[error("not installed: {missing}; {install}")]
    NotInstalled {
        /// Its name.
        missing: String,
        /// The command that installs it.
        install: String,
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
