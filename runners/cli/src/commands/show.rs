//! Whole listings on standard output.

use std::io::{self, Write};

use crate::exit::{Early, Status};

/// Writes a whole listing.
///
/// # Errors
/// If `out` cannot be written.
pub(super) fn show(text: &str, out: impl Write) -> Result<Status, Early> {
    show_bytes(text.as_bytes(), out)
}

/// Writes a whole listing that may be no text.
///
/// # Errors
/// If `out` cannot be written.
pub(super) fn show_bytes(bytes: &[u8], mut out: impl Write) -> Result<Status, Early> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader has seen enough, as in `privet list | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Status::Passed),
        Err(error) => Err(Early::usage(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(Status::Passed),
    }
}
