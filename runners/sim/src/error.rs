//! What can go wrong before a machine runs, or with its files.

use std::io;

/// Why a machine cannot be made, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The description asks for a machine that cannot be.
    #[error("{0}")]
    Description(String),
    /// The kernel's image is not one that can be started.
    #[error("{0}")]
    Kernel(String),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}
