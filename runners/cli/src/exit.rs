//! The exit statuses of `privet`, and the one-line errors that end it early.

use std::process::ExitCode;

/// How `privet` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Every selected row passed or was skipped, and at least one passed.
    Passed,
    /// A row failed, broke or ran out of time.
    Failed,
    /// The command line cannot be followed: an unknown id, a bad value, an unwritable file.
    Usage,
    /// No row could run here. The kernel's selftests call this "skip".
    NothingRan,
    /// A program that was run on the way ended with this status.
    Program(u8),
    /// A signal, by its number, ended the run early.
    Interrupted(i32),
}

impl Status {
    /// The status as the shell sees it.
    pub fn code(self) -> u8 {
        match self {
            Status::Passed => 0,
            Status::Failed => 1,
            Status::Usage => 2,
            Status::NothingRan => 4,
            Status::Program(status) => status,
            Status::Interrupted(signal) => 128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(status.code())
    }
}

/// Why `privet` ends before it has a result: one line that says what to do, and the status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Early {
    /// The status to exit with.
    pub status: Status,
    /// One line.
    pub message: String,
}

impl Early {
    /// The command line cannot be followed.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { status: Status::Usage, message: message.into() }
    }

    /// Something that is needed is not there.
    pub fn nothing_ran(message: impl Into<String>) -> Self {
        Self { status: Status::NothingRan, message: message.into() }
    }
}
