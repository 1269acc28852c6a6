//! Signals during KVM_RUN.
//!
//! The kernel runs no handler while a vCPU runs: KVM_RUN sees that a signal is pending, returns EINTR, and
//! the handler runs on the way out. So signals are blocked while the model runs a vCPU, what is pending is
//! looked at once a tick, and the mask is put back by the last thing that the ioctl does, when no lock is
//! held: handlers may end the thread or jump away.
#![expect(unsafe_code, reason = "signal masks of the C library")]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_int, sigset_t};

/// Signals that the CPU raises for what this thread does; blocked, they would end the process.
const SYNCHRONOUS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];
/// Signals that nothing happens on unless there is a handler.
const IGNORED_BY_DEFAULT: [c_int; 4] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

thread_local! {
    /// The mask and the cancellation state to go back to.
    static BEFORE: Cell<Option<(sigset_t, c_int)>> = const { Cell::new(None) };
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}
const PTHREAD_CANCEL_DISABLE: c_int = 1;

/// The signals that end this run.
pub(crate) struct Blocked {
    /// Those that the program has blocked itself, or with KVM_SET_SIGNAL_MASK.
    held: sigset_t,
}

fn empty() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: room for a set, which the call fills in.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Blocks all signals but the synchronous ones, until [`restore`]. `mask`, bit n-1 for signal n, replaces the
/// thread's own mask for the run.
pub(crate) fn block(mask: Option<u64>) -> Blocked {
    let (mut all, mut old) = (empty(), empty());
    let mut cancel = 0;
    // SAFETY: sets and an integer of ours; deferring cancellation keeps the stack ours until `restore`.
    unsafe {
        libc::sigfillset(&mut all);
        for signal in SYNCHRONOUS {
            libc::sigdelset(&mut all, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut cancel);
    }
    BEFORE.set(Some((old, cancel)));
    let held = match mask {
        None => old,
        Some(mask) => {
            let mut held = empty();
            for signal in (1..=64).filter(|signal| mask & 1 << (signal - 1) != 0) {
                // SAFETY: a set of ours and a signal number; the C library's own are refused.
                unsafe { libc::sigaddset(&mut held, signal) };
            }
            held
        }
    };
    Blocked { held }
}

/// Puts back what [`block`] changed. Handlers of pending signals run in here, and may not come back.
pub fn restore() {
    let Some((mask, cancel)) = BEFORE.take() else { return };
    // SAFETY: what `block` found.
    unsafe {
        pthread_setcancelstate(cancel, ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, ptr::null_mut());
    }
}

impl Blocked {
    /// Whether a signal is pending that would have interrupted the kernel.
    pub(crate) fn is_pending(&self) -> bool {
        let mut pending = empty();
        // SAFETY: a set of ours.
        unsafe { libc::sigpending(&mut pending) };
        (1..=64).any(|signal| {
            // SAFETY: sets of ours.
            let (is_pending, held) =
                unsafe { (libc::sigismember(&pending, signal) == 1, libc::sigismember(&self.held, signal) == 1) };
            is_pending && !held && !is_ignored(signal)
        })
    }
}

/// The kernel drops ignored signals at once unless they are blocked, which here is our doing.
fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks, with room for the answer.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled in above.
    match unsafe { action.assume_init() }.sa_sigaction {
        libc::SIG_IGN => true,
        libc::SIG_DFL => IGNORED_BY_DEFAULT.contains(&signal),
        _ => false,
    }
}
