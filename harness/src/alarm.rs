//! Signals to a thread after a time, for ioctls that may end by nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::outcome::{Outcome, Stop};
use crate::watchdog::{REPEAT, Thread};

/// Rings until it is dropped, once its time is over: each signal makes an ioctl that waits or retries return,
/// as a rule with EINTR.
#[derive(Debug)]
pub struct Alarm {
    rang: Arc<AtomicBool>,
    clock: Option<(Sender<()>, thread::JoinHandle<()>)>,
}

impl Alarm {
    /// Sends signals to the calling thread from `limit` on.
    ///
    /// # Errors
    /// `Stop::Error` if there is no thread to be had for it.
    pub fn after(limit: Duration) -> Outcome<Alarm> {
        let rang = Arc::new(AtomicBool::new(false));
        let (dropped, waiting) = channel();
        let (sleeper, noted) = (Thread::this(), Arc::clone(&rang));
        let clock = thread::Builder::new().name("alarm".into()).spawn(move || {
            let mut wait = limit;
            while waiting.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                noted.store(true, Ordering::Release);
                sleeper.interrupt();
                wait = REPEAT;
            }
        });
        let clock = clock.map_err(|error| Stop::Error(format!("cannot start an alarm: {error}")))?;
        Ok(Alarm { rang, clock: Some((dropped, clock)) })
    }

    /// Whether the time is over.
    pub fn rang(&self) -> bool {
        self.rang.load(Ordering::Acquire)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some((dropped, clock)) = self.clock.take() {
            drop(dropped);
            // It has nothing to tell: a panic over there is one of the standard library.
            let _ = clock.join();
        }
    }
}
