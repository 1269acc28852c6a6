//! What can be wrong with a file of results.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file of results cannot be used: one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: {why}", path.display())]
    NoResult {
        /// The file or directory.
        path: PathBuf,
        /// What it is not, and what would be.
        why: String,
    },
}

impl Error {
    pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Unreadable { path: path.to_owned(), source }
    }

    pub(crate) fn no_result(path: &Path, why: impl Into<String>) -> Self {
        Self::NoResult { path: path.to_owned(), why: why.into() }
    }
}
