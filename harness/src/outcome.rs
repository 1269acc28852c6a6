//! How a story ends: with what it made, or with why it stopped.

/// Why a row did not pass: the `Err` of every story. Each is one line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stop {
    /// The kernel did something else than the row expects.
    #[error("{0}")]
    Fail(String),
    /// The harness or the guest broke.
    #[error("{0}")]
    Error(String),
    /// A time limit was reached.
    #[error("{0}")]
    Timeout(String),
    /// This place cannot run the row.
    #[error("{0}")]
    Skip(String),
}

/// What a story returns.
pub type Outcome<T = ()> = Result<T, Stop>;
