//! Standard output that was closed before this program began, as in `privet run >&-`.
//!
//! The standard library opens /dev/null in the place of a standard stream that is closed, before `main`: what is
//! written then goes nowhere and nobody hears of it. Whether it was closed can only be seen earlier.
#![expect(unsafe_code, reason = "a function that runs before main is named in a section of its own")]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::Early;

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: F_GETFD takes a number and touches no memory.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    WAS_CLOSED.store(flags < 0, Ordering::Relaxed);
}

// SAFETY: the dynamic loader calls every entry of this section once, before main and in its one thread. `look`
// needs nothing that is set up later.
#[unsafe(link_section = ".init_array")]
#[used]
static LOOK: extern "C" fn() = look;

/// Refuses to go on without a standard output.
///
/// # Errors
/// If it was closed.
pub fn check() -> Result<(), Early> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(Early::usage("cannot write to standard output: it is closed; send it to a file or to /dev/null"));
    }
    Ok(())
}
