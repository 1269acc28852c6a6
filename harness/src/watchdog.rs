//! How a thread is brought out of KVM_RUN.
//!
//! `immediate_exit` makes a KVM_RUN that is about to begin return; a signal ends one that is under way. Both
//! are needed, in this order, and are repeated: whatever a guest does, a limit is a limit.
#![expect(unsafe_code, reason = "a signal handler and tgkill(2)")]

use std::ffi::c_int;
use std::sync::Once;
use std::time::Duration;

use nix::unistd::getpid;

/// How long a thread gets to leave KVM_RUN once its limit is over, before it is left behind.
pub(crate) const GRACE: Duration = Duration::from_millis(40);

/// How often the signal is repeated meanwhile.
pub(crate) const REPEAT: Duration = Duration::from_millis(5);

/// A thread that can be sent the signal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(nix::unistd::Pid);

impl Thread {
    /// The calling thread, made ready: the signal is unblocked and has a handler that does nothing, without
    /// SA_RESTART, so it only ends what the thread waits for.
    pub(crate) fn this() -> Thread {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: an all-zero sigaction is valid: no flags, an empty mask; the handler does nothing.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = ignore as extern "C" fn(c_int) as usize;
                libc::sigaction(signal(), &action, std::ptr::null_mut());
            }
        });
        // SAFETY: a sigset of all zeroes is an empty one; the calls get pointers to it alone.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, signal());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
        Thread(nix::unistd::gettid())
    }

    /// Sends the signal.
    pub(crate) fn interrupt(self) {
        // SAFETY: tgkill takes three numbers. Should the thread be gone, nothing happens: the ids are of
        // this process, so no other one can be hit.
        unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw(), self.0.as_raw(), signal()) };
    }
}

/// A real-time signal, which nothing else in a worker uses.
fn signal() -> c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_signal: c_int) {}
