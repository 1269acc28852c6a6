//! One boot: the messages of its guest, and which row is running when it ends.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use privet_report::{CaseReport, Verdict};

use crate::console::last_lines;
use crate::error::RigError;
use crate::machine::{Emulator, Machine};
use crate::plan::{CaseRun, Event, Message, Patience};

/// The longest message that a guest may send: a report with a long trace is far below.
const MESSAGE_MAX: usize = 16 << 20;

/// How a boot ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Init said that it ran all rows.
    Done,
    /// The machine ended before; the text says how.
    Closed(String),
    /// A row did not end long after its limit, or nothing came between rows.
    Hung,
    /// The machine itself says that it goes nowhere; the text says why.
    Stuck(String),
    /// Init said why it could not go on.
    Broken(String),
    /// What came was no message; the text is its beginning.
    Garbage(String),
    /// The caller's interrupt came.
    Interrupted,
}

/// What a boot tells before its end.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum News {
    /// The guest is about to run rows.
    Ready,
    /// Something happened to a row of the [`GuestPlan`].
    Row(Event),
}

/// How long to wait for an emulator.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    patience: Patience,
    slowness: u32,
}

impl Limits {
    pub(crate) fn new(patience: Patience, emulator: &Emulator) -> Self {
        Self { patience, slowness: emulator.slowness }
    }

    /// From power-on until the guest is ready.
    fn of_boot(self) -> Duration {
        self.patience.boot * self.slowness
    }

    /// Between rows.
    fn of_pause(self) -> Duration {
        self.patience.row * self.slowness
    }

    /// From the start of a row to its end.
    pub(crate) fn of_row(self, case: &CaseRun) -> Duration {
        (Duration::from_millis(case.limit_ms) + self.patience.row) * self.slowness
    }
}

/// The state of one boot, as its guest told it.
pub(crate) struct Boot<'a> {
    cases: &'a [CaseRun],
    limits: Limits,
    /// Whether the guest said that it is about to run rows.
    pub(crate) ready: bool,
    finished: Vec<bool>,
    /// The row that is running, and until when the guest should have ended it.
    running: Option<(usize, Instant)>,
    /// When the last message came.
    last: Instant,
    /// Trouble in the kernel's log that no row was running for.
    pub(crate) unattributed: Option<String>,
    /// The first thing that was asked of the machine and that it has not, since the last row ended.
    not_simulated: Option<String>,
}

impl<'a> Boot<'a> {
    /// A machine that has just been switched on, for these rows.
    pub(crate) fn new(cases: &'a [CaseRun], limits: Limits) -> Self {
        Self {
            cases,
            limits,
            ready: false,
            finished: vec![false; cases.len()],
            running: None,
            last: Instant::now(),
            unattributed: None,
            not_simulated: None,
        }
    }

    /// A machine whose guest has been ready for a long time.
    pub(crate) fn resumed(cases: &'a [CaseRun], limits: Limits) -> Self {
        Self { ready: true, ..Self::new(cases, limits) }
    }

    /// The row that had started and not finished: the end of the boot is put down to it.
    pub(crate) fn running(&self) -> Option<usize> {
        self.running.map(|(case, _)| case)
    }

    /// Follows the machine to its end, which it brings about where the machine does not.
    ///
    /// # Errors
    /// If the port cannot be read.
    pub(crate) fn watch(
        &mut self,
        machine: &mut Machine,
        interrupt: BorrowedFd<'_>,
        on_news: &mut dyn FnMut(News),
    ) -> Result<End, RigError> {
        let cannot_read = |source| RigError::Io { what: "read from the rig's port".into(), source };
        let mut pending = Vec::new();
        let mut end = None;
        loop {
            let deadline = self.deadline();
            let mut fds =
                [PollFd::new(machine.port.as_fd(), PollFlags::POLLIN), PollFd::new(interrupt, PollFlags::POLLIN)];
            match poll(&mut fds, until(deadline)) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(cannot_read(errno.into())),
            }
            let [port_ready, interrupted] = fds.map(|fd| fd.any() == Some(true));
            if interrupted {
                machine.stop();
                return Ok(End::Interrupted);
            }
            if port_ready {
                let mut buffer = [0; 64 * 1024];
                let length = machine.port.read(&mut buffer).map_err(cannot_read)?;
                if length == 0 {
                    let status = machine.wait();
                    return Ok(end.unwrap_or_else(|| End::Closed(how_it_ended(machine, status))));
                }
                pending.extend_from_slice(&buffer[..length]);
                while let Some(newline) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=newline).collect();
                    // After its last word a guest only has to switch itself off.
                    if end.is_none() {
                        end = self.take(&line[..newline], on_news);
                    }
                }
                if pending.len() > MESSAGE_MAX {
                    end = Some(garbage(&pending));
                }
                if let Some(end) = end.take_if(|end| is_to_be_stopped(end, machine)) {
                    machine.stop();
                    return Ok(end);
                }
            } else if Instant::now() >= deadline {
                machine.stop();
                return Ok(end.unwrap_or(End::Hung));
            }
        }
    }

    /// When the machine counts as hung.
    fn deadline(&self) -> Instant {
        if !self.ready {
            return self.last + self.limits.of_boot();
        }
        self.running.map_or(self.last + self.limits.of_pause(), |(_, deadline)| deadline)
    }

    /// Takes in one line; returns how the boot ends, if this line ends it.
    fn take(&mut self, line: &[u8], on_news: &mut dyn FnMut(News)) -> Option<End> {
        let Ok(message) = serde_json::from_slice::<Message>(line) else {
            return Some(garbage(line));
        };
        self.last = Instant::now();
        match message {
            Message::Ready if !self.ready => {
                self.ready = true;
                on_news(News::Ready);
            }
            Message::Ready => return Some(garbage(line)),
            Message::Event(Event::Started(case)) if self.may_start(case) => {
                self.running = Some((case, self.last + self.limits.of_row(&self.cases[case])));
                on_news(News::Row(Event::Started(case)));
            }
            Message::Event(Event::Finished(case, report)) if self.running() == Some(case) => {
                self.running = None;
                self.finished[case] = true;
                let report = self.doubted(*report);
                on_news(News::Row(Event::Finished(case, report.into())));
            }
            Message::Event(_) => return Some(garbage(line)),
            Message::Unattributed(trouble) => self.unattributed = Some(trouble),
            Message::NotSimulated(what) => {
                self.not_simulated.get_or_insert(what);
            }
            Message::Stuck(why) => return Some(End::Stuck(why)),
            Message::Broken(why) => return Some(End::Broken(why)),
            Message::Done => return Some(End::Done),
        }
        None
    }

    /// The report of a row that has ended. If the machine did something else than a real one meanwhile, it is no
    /// verdict, whatever it says.
    pub(crate) fn doubted(&mut self, report: CaseReport) -> CaseReport {
        let Some(what) = self.not_simulated.take() else { return report };
        let said = format!("it said {}: {}", report.verdict, report.reason);
        let details = std::iter::once(said).chain(report.details).collect();
        let reason = format!("the row met what the machine has not: {what}");
        CaseReport { verdict: Verdict::Error, reason, details, ..report }
    }

    fn may_start(&self, case: usize) -> bool {
        self.finished.get(case) == Some(&false) && self.running.is_none()
    }
}

/// Whether a machine is ended by us, once its guest's story has ended in this way. One that a snapshot was made of
/// has nothing to switch off.
fn is_to_be_stopped(end: &End, machine: &Machine) -> bool {
    match end {
        End::Garbage(_) | End::Hung | End::Stuck(_) => true,
        End::Done => machine.is_copy,
        End::Closed(_) | End::Broken(_) | End::Interrupted => false,
    }
}

fn garbage(line: &[u8]) -> End {
    const SHOWN: usize = 80;
    let text = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]);
    End::Garbage(text.escape_debug().to_string())
}

/// One line about a machine that closed its port before its guest was done.
fn how_it_ended(machine: &mut Machine, status: Option<std::process::ExitStatus>) -> String {
    let status = status.map_or("unknown status".to_owned(), |status| status.to_string());
    let last_word = machine.complaint().or_else(|| last_lines(&machine.console(), 1).pop());
    match last_word {
        Some(last_word) => format!("{status}; its last word was \"{last_word}\""),
        None => format!("{status}; it said nothing"),
    }
}

/// The time to wait until `deadline`, rounded up to a millisecond so that a poll does not spin.
fn until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
