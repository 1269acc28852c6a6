//! Ctrl-C and its relatives, as something that a poll can wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};

/// Tells every thread of a run that it should end. Clones share the state.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<State>);

#[derive(Debug)]
struct State {
    /// The signal that arrived, or 0.
    signal: AtomicI32,
    /// Hangs up, and so wakes every poll, once `writer` is dropped.
    reader: OwnedFd,
    writer: Mutex<Option<OwnedFd>>,
}

impl Interrupt {
    /// An interrupt that only [`Interrupt::trigger`] sets off.
    ///
    /// # Errors
    /// If no pipe can be made.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self(Arc::new(State { signal: AtomicI32::new(0), reader, writer: Mutex::new(Some(writer)) })))
    }

    /// An interrupt that SIGINT, SIGTERM and SIGHUP set off. Call it before the first thread is started:
    /// the signals are blocked in this thread and in those that it starts later. Workers start with
    /// nothing blocked, because the standard library resets the mask of a child.
    ///
    /// # Errors
    /// If there is no pipe or no thread to be had.
    pub fn on_signals() -> io::Result<Self> {
        let interrupt = Self::new()?;
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block()?;
        let theirs = interrupt.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Ok(signal) = signals.wait() {
                theirs.trigger(signal);
            }
        })?;
        Ok(interrupt)
    }

    /// Ends the run as if `signal` had arrived. The first one counts.
    pub fn trigger(&self, signal: Signal) {
        let _ = self.0.signal.compare_exchange(0, signal as i32, Ordering::AcqRel, Ordering::Acquire);
        self.0.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }

    /// The number of the signal that arrived, if one has.
    pub fn signal(&self) -> Option<i32> {
        match self.0.signal.load(Ordering::Acquire) {
            0 => None,
            signal => Some(signal),
        }
    }
}

impl AsFd for Interrupt {
    /// A descriptor that polls as hung up once the interrupt has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.reader.as_fd()
    }
}
