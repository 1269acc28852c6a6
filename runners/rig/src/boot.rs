//! One boot: the messages of its guest, and which row is running when it ends.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use privet_report::{CaseReport, Verdict};
use privet_sim::Record;

use crate::console::last_lines;
use crate::error::RigError;
use crate::machine::{Emulator, Machine};
use crate::plan::{CaseRun, Event, Message, Patience, Stream, to_bytes};

/// The longest message that may come: a report with a long trace, and a record of a long program, are far below.
const MESSAGE_MAX: usize = 64 << 20;

/// How a boot ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Init said that it ran all rows.
    Done,
    /// The machine ended before; the text says how.
    Closed(String),
    /// A row did not end after its limit, or nothing came between rows.
    Hung,
    /// Nothing came from the console of a machine that had not got ready, for this long by its guest's clock.
    Silent(Duration),
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
    /// This is what came last from the console, before the guest is ready.
    Console(String),
    /// The guest has set these page frames aside for modules.
    Room(Vec<u64>),
    /// The guest is about to run rows.
    Ready,
    /// A row ended because its time was over, but the machine could not use so much of it: the guest's clock went on
    /// while the system was busy with something else. The number tells how many times as much it needs to be given.
    Starved(usize, Box<CaseReport>, u64),
    /// Something happened to a row of its plan.
    Row(Event),
    /// Its program has printed something.
    Printed(Stream, Vec<u8>),
    /// Its program has ended with this status.
    Exited(i32),
    /// What was executed while this row ran, if it was a row.
    Recorded(Option<usize>, Record),
    /// The functions of the kernel, in the format of /proc/kallsyms.
    Symbols(String),
    /// This came over the console of a machine that shows its log.
    Logged(Vec<u8>),
}

/// How long to wait for an emulator.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    patience: Patience,
    slowness: u32,
    has_our_clock: bool,
}

impl Limits {
    pub(crate) fn new(patience: Patience, emulator: &Emulator) -> Self {
        Self { patience, slowness: emulator.slowness, has_our_clock: emulator.has_our_clock }
    }

    /// From power-on until the guest is ready.
    fn of_boot(self) -> Duration {
        self.patience.boot * self.slowness
    }

    /// Without a word on the console, until the guest is ready.
    fn of_silence(self) -> Duration {
        self.patience.silence * self.slowness
    }

    /// Between rows.
    fn of_pause(self) -> Duration {
        self.patience.pause * self.slowness
    }

    /// From the start of a row to its end.
    pub(crate) fn of_row(self, case: &CaseRun) -> Duration {
        (Duration::from_millis(case.limit_ms) + self.patience.row) * self.slowness
    }
}

/// How often a machine is looked at that says nothing.
const TICK: Duration = Duration::from_millis(500);

/// A row that is running.
#[derive(Clone, Copy)]
struct Running {
    case: usize,
    /// When it started, in the machine's usable time and by the clock.
    since: Duration,
    started: Instant,
}

/// The state of one boot, as its guest told it. Times are those that the machine could use since it was switched on.
pub(crate) struct Boot<'a> {
    cases: &'a [CaseRun],
    limits: Limits,
    /// Whether the guest said that it is about to run rows.
    pub(crate) ready: bool,
    finished: Vec<bool>,
    running: Option<Running>,
    /// When the last message came.
    last: Duration,
    /// When something came from the console last, and how much there is.
    heard: (Duration, u64),
    /// Trouble in the kernel's log that no row was running for.
    pub(crate) unattributed: Option<String>,
    /// The first thing that was asked of the machine and that it has not, since the last row ended.
    pub(crate) not_simulated: Option<String>,
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
            last: Duration::ZERO,
            heard: (Duration::ZERO, 0),
            unattributed: None,
            not_simulated: None,
        }
    }

    /// A machine whose guest has been ready for a long time, and that goes on when it could use so much time.
    pub(crate) fn resumed(cases: &'a [CaseRun], limits: Limits, now: Duration) -> Self {
        Self { ready: true, last: now, ..Self::new(cases, limits) }
    }

    /// The row that had started and not finished: the end of the boot is put down to it.
    pub(crate) fn running(&self) -> Option<usize> {
        self.running.map(|running| running.case)
    }

    /// For how long it has been running.
    pub(crate) fn running_for(&self) -> Duration {
        self.running.map_or(Duration::ZERO, |running| running.started.elapsed())
    }

    /// Follows the machine to its end, which it brings about where the machine does not. A copy that has done what it was
    /// asked goes on to wait.
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
            let left = self.deadline().saturating_sub(machine.usable_time());
            let mut fds =
                [PollFd::new(machine.port.as_fd(), PollFlags::POLLIN), PollFd::new(interrupt, PollFlags::POLLIN)];
            match poll(&mut fds, timeout(left.min(TICK))) {
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
                        end = self.take(&line[..newline], machine.usable_time(), on_news);
                    }
                }
                if pending.len() > MESSAGE_MAX {
                    end = Some(garbage(&pending));
                }
                if let Some(end) = end.take_if(|end| is_to_be_stopped(end)) {
                    machine.stop();
                    return Ok(end);
                }
                if machine.is_copy && end == Some(End::Done) {
                    return Ok(End::Done);
                }
                continue;
            }
            if !self.ready {
                self.listen(machine, on_news);
            }
            if machine.usable_time() >= self.deadline() {
                machine.stop();
                return Ok(end.unwrap_or_else(|| self.hung()));
            }
        }
    }

    /// Looks at the console for signs of life.
    fn listen(&mut self, machine: &mut Machine, on_news: &mut dyn FnMut(News)) {
        let length = machine.console_length();
        if length != self.heard.1 {
            self.heard = (machine.usable_time(), length);
            if let Some(line) = last_lines(&machine.console(), 1).pop() {
                on_news(News::Console(line));
            }
        }
    }

    /// How a machine ends whose time is over.
    fn hung(&self) -> End {
        let is_silent = !self.ready && self.heard.0 + self.limits.of_silence() < self.limits.of_boot();
        if is_silent { End::Silent(self.limits.patience.silence) } else { End::Hung }
    }

    /// When the machine counts as hung.
    fn deadline(&self) -> Duration {
        if !self.ready {
            return self.limits.of_boot().min(self.heard.0 + self.limits.of_silence());
        }
        match self.running {
            Some(running) => running.since + self.limits.of_row(&self.cases[running.case]),
            None => self.last + self.limits.of_pause(),
        }
    }

    /// Takes in one line; returns how the boot ends, if this line ends it.
    fn take(&mut self, line: &[u8], now: Duration, on_news: &mut dyn FnMut(News)) -> Option<End> {
        let Ok(message) = serde_json::from_slice::<Message>(line) else {
            return Some(garbage(line));
        };
        self.last = now;
        match message {
            Message::Room(frames) if !self.ready => on_news(News::Room(frames)),
            Message::Ready if !self.ready => {
                self.ready = true;
                on_news(News::Ready);
            }
            Message::Ready | Message::Room(_) => return Some(garbage(line)),
            Message::Event(Event::Started(case)) if self.may_start(case) => {
                self.running = Some(Running { case, since: now, started: Instant::now() });
                on_news(News::Row(Event::Started(case)));
            }
            Message::Event(Event::Finished(case, report)) if self.running() == Some(case) => {
                let starved = self.starved(&report, now);
                self.running = None;
                self.finished[case] = true;
                let report = self.doubted(*report);
                on_news(match starved {
                    Some(times) => News::Starved(case, report.into(), times),
                    None => News::Row(Event::Finished(case, report.into())),
                });
            }
            Message::Event(_) => return Some(garbage(line)),
            Message::Unattributed(trouble) => self.unattributed = Some(trouble),
            Message::NotSimulated(what) => {
                self.not_simulated.get_or_insert(what);
            }
            Message::Stuck(why) => return Some(End::Stuck(why)),
            Message::Recorded(record) => on_news(News::Recorded(self.running(), record)),
            Message::Symbols(text) => on_news(News::Symbols(text)),
            Message::Logged(text) => on_news(News::Logged(to_bytes(&text))),
            // The machine has answered.
            Message::WantsInput => {}
            Message::Printed(stream, text) => on_news(News::Printed(stream, to_bytes(&text))),
            Message::Exited(status) => on_news(News::Exited(status)),
            Message::Broken(why) => return Some(End::Broken(why)),
            Message::Done => return Some(End::Done),
        }
        None
    }

    /// How many times as long as it took by the guest's clock the row that has ended needs, if it is a timeout of a row
    /// that could not use its time.
    fn starved(&self, report: &CaseReport, now: Duration) -> Option<u64> {
        let running = self.running.filter(|_| report.verdict == Verdict::Timeout && self.limits.has_our_clock)?;
        let (used, passed) = (now.saturating_sub(running.since), running.started.elapsed());
        let times = passed.as_millis() / used.as_millis().max(1);
        (used < passed * 9 / 10).then(|| u64::try_from(times).unwrap_or(u64::MAX).saturating_add(1))
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

/// Whether a machine is ended by us, once its guest's story has ended in this way.
fn is_to_be_stopped(end: &End) -> bool {
    match end {
        End::Garbage(_) | End::Hung | End::Silent(_) | End::Stuck(_) => true,
        End::Done | End::Closed(_) | End::Broken(_) | End::Interrupted => false,
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

/// This time, rounded up to a millisecond so that a poll does not spin.
fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use privet_report::Place;

    use super::*;
    use crate::bochs::BOCHS;
    use crate::qemu::QEMU;

    /// What comes of a row that ended with `verdict` after a minute, of which the machine could use `used` seconds.
    fn starved(emulator: &Emulator, verdict: &str, used: u64) -> Option<u64> {
        let case = CaseRun {
            id: "plain.test.0".into(),
            label: "plain.test.0".into(),
            seed: 1,
            limit_ms: 60_000,
            keep: false,
            schedules: Vec::new(),
        };
        let report = serde_json::json!({
            "id": "plain.test.0", "on": Place::Rig, "kernel": "7.3.4", "vm": "plain", "verdict": verdict, "reason": "",
            "duration_us": 1, "exits": 1, "seed": 1, "repro": "",
        });
        let cases = [case];
        let mut boot = Boot::resumed(&cases, Limits::new(Patience::default(), emulator), Duration::ZERO);
        let started = Instant::now().checked_sub(Duration::from_secs(60)).expect("the system is up for so long");
        boot.running = Some(Running { case: 0, since: Duration::from_secs(7), started });
        boot.starved(&serde_json::from_value(report).unwrap(), Duration::from_secs(7 + used))
    }

    #[test]
    fn a_timeout_counts_if_the_machine_could_use_the_time() {
        assert_eq!(starved(&QEMU, "timeout", 60), None);
        assert_eq!(starved(&QEMU, "timeout", 10), Some(7));
        assert!(starved(&QEMU, "timeout", 0) > Some(1000));
        assert_eq!(starved(&QEMU, "fail", 10), None);
        // Its guest's clock counts instructions.
        assert_eq!(starved(&BOCHS, "timeout", 10), None);
    }
}
