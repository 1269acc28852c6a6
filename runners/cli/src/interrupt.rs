//! What ends a run before its last row, as something that a poll can wait for: Ctrl-C and its relatives, and limits
//! of the run itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};

/// Tells every thread of a run that it should end. Clones share the state.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<State>);

/// Why a run ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A signal came.
    Signal(Signal),
    /// So many rows are red that `--max-fail` wants no more.
    MaxFail(usize),
    /// `--global-timeout` is over.
    GlobalTimeout(Duration),
    /// What the run tells cannot be written: verdicts that nobody sees are not worth their time.
    Unwritable,
}

#[derive(Debug)]
struct State {
    /// Set once.
    cause: OnceLock<Cause>,
    /// Hangs up, and so wakes every poll, once `writer` is dropped.
    reader: OwnedFd,
    writer: Mutex<Option<OwnedFd>>,
}

impl Interrupt {
    /// An interrupt that only [`Interrupt::end`] sets off.
    ///
    /// # Errors
    /// If no pipe can be made.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self(Arc::new(State { cause: OnceLock::new(), reader, writer: Mutex::new(Some(writer)) })))
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
                theirs.end(Cause::Signal(signal));
            }
        })?;
        Ok(interrupt)
    }

    /// Ends the run when this time is over.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn after(&self, limit: Duration) -> io::Result<()> {
        let theirs = self.clone();
        std::thread::Builder::new().name("global timeout".into()).spawn(move || {
            std::thread::sleep(limit);
            theirs.end(Cause::GlobalTimeout(limit));
        })?;
        Ok(())
    }

    /// Ends the run. The first cause counts.
    pub fn end(&self, cause: Cause) {
        let _ = self.0.cause.set(cause);
        self.0.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }

    /// Why the run ends, once it does.
    pub fn cause(&self) -> Option<Cause> {
        self.0.cause.get().copied()
    }

    /// The number of the signal that ends the run, if one does.
    pub fn signal(&self) -> Option<i32> {
        match self.cause() {
            Some(Cause::Signal(signal)) => Some(signal as i32),
            _ => None,
        }
    }
}

impl AsFd for Interrupt {
    /// A descriptor that polls as hung up once the interrupt has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.reader.as_fd()
    }
}
