//! What can go wrong on the way to a kernel.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no kernel to boot, or nothing built from its source. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing was built yet and nothing was named.
    #[error("no kernel for the rig in {}: build one with `privet rig build`, fetch one with `privet rig fetch`, or name one with --kernel BZIMAGE --modules DIR", .cache.display())]
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
    /// There is no package of the kernel, or apt cannot tell.
    #[error("no kernel package: {0}")]
    Package(String),
    /// The kernel's source cannot be used.
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
pub(crate) fn cannot<E: Into<io::Error>>(verb: &str, path: &Path) -> impl FnOnce(E) -> KernelError {
    let what = format!("{verb} {}", path.display());
    move |error| KernelError::Io { what, source: error.into() }
}
