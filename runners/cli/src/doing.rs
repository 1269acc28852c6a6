//! What a long command is doing: on a terminal one line that changes, in a log a line every few seconds.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

/// How often a log gets a line.
const EVERY: Duration = Duration::from_secs(5);

/// Shows on standard error what is being done, until it is dropped.
pub struct Doing {
    bar: ProgressBar,
    log: Option<(Sender<String>, JoinHandle<()>)>,
}

impl Doing {
    /// Starts to show it.
    pub fn on_stderr() -> Self {
        if io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            return Self { bar, log: None };
        }
        let (teller, told) = channel::<String>();
        let write = move || {
            let start = Instant::now();
            let (mut doing, mut next) = (String::from("starting"), start + EVERY);
            loop {
                match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(now) => doing = now,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("privet: {} s: {doing}", start.elapsed().as_secs());
                        next += EVERY;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        // Without a thread the log stays silent, which is no reason not to do the work.
        let writer = thread::Builder::new().name("log".into()).spawn(write).ok();
        Self { bar: ProgressBar::hidden(), log: writer.map(|writer| (teller, writer)) }
    }

    /// This is being done now.
    pub fn tell(&self, doing: &str) {
        self.bar.set_message(doing.to_owned());
        if let Some((teller, _)) = &self.log {
            // The writer lives until this is dropped.
            let _ = teller.send(doing.to_owned());
        }
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if let Some((teller, writer)) = self.log.take() {
            drop(teller);
            let _ = writer.join();
        }
    }
}
