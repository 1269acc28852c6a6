//! The runner: one worker process per job, several at a time, a report for each whatever becomes of it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::Signal;
use privet_report::kernel_log::{self, KernelLog};
use privet_report::{CaseReport, Verdict};

use crate::interrupt::Interrupt;
use crate::place::Context;
use crate::plan::Job;
use crate::process::{End, Ended, Started, Until};
use crate::slots::{NoSlot, Slots};
use crate::worker::Said;

/// What a worker may take beyond the limit of its row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overtime {
    /// Until it is killed: the row's own watchdog, which knows more, should win.
    pub margin: Duration,
    /// Until it must have gone after that. One that hangs inside the kernel does not go at all.
    pub grace: Duration,
}

impl Overtime {
    /// On a machine that may be busy with something else.
    pub const HERE: Self = Self { margin: Duration::from_secs(5), grace: Duration::from_secs(5) };
    /// In a rig, by its guest's clock: less than the second after which the rig ends the machine, which knows least.
    pub const IN_RIG: Self = Self { margin: Duration::from_millis(600), grace: Duration::from_millis(200) };
}

/// Runs jobs in worker processes.
pub struct Pool<'a> {
    /// Starts the worker of a job. It must report as [`crate::worker::run`] does.
    pub worker: &'a (dyn Fn(&Job) -> io::Result<Started> + Sync),
    /// When a worker has done its work.
    pub until: Until,
    /// How many workers run at a time; at least one.
    pub at_a_time: usize,
    /// The time that a worker has beyond the limit of its job.
    pub overtime: Overtime,
    /// Where the workers run.
    pub context: &'a Context,
    /// What the kernel's log means for a row.
    pub kernel_logs: KernelLogs,
    /// What rows take of the host that they run on; nothing where they have a machine for themselves.
    pub slots: Option<&'a Slots>,
    /// Ends the workers, and with them the run.
    pub interrupt: &'a Interrupt,
}

/// What the kernel's log means for a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelLogs {
    /// A warning of the kernel while a row runs fails the row.
    Judge,
    /// Someone else listens.
    Ignored,
}

/// What happens while jobs run, by the index of the job.
#[derive(Debug)]
pub enum Event {
    /// Its worker is about to be started.
    Started(usize),
    /// Its worker has ended.
    Finished(usize, Box<Finished>),
}

/// The end of a job.
#[derive(Debug)]
pub struct Finished {
    /// The report, without a command line that repeats it.
    pub report: CaseReport,
    /// What the worker printed, at most the last 256 KiB of each stream.
    pub stdout: Vec<u8>,
    /// What the worker printed as errors.
    pub stderr: Vec<u8>,
}

impl Pool<'_> {
    /// Runs `jobs` and tells what happens, in the order in which it does. A job whose worker was killed by
    /// the interrupt does not finish, and later jobs do not start.
    pub fn run(&self, jobs: &[Job], mut tell: impl FnMut(Event)) {
        let next = AtomicUsize::new(0);
        let (events, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.at_a_time.clamp(1, jobs.len().max(1)) {
                let (next, events) = (&next, events.clone());
                scope.spawn(move || self.work(jobs, next, &events));
            }
            drop(events);
            told.iter().for_each(&mut tell);
        });
    }

    /// Takes one job after the other.
    fn work(&self, jobs: &[Job], next: &AtomicUsize, events: &mpsc::Sender<Event>) {
        while self.interrupt.cause().is_none() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return };
            // The receiver lives until all workers are through.
            let _ = events.send(Event::Started(index));
            if let Some(finished) = self.job(job) {
                let _ = events.send(Event::Finished(index, Box::new(finished)));
            }
        }
    }

    /// Runs one job; `None` if it was interrupted.
    fn job(&self, job: &Job) -> Option<Finished> {
        let slot = match self.slots.map(|slots| slots.take(job, self.interrupt)).transpose() {
            Ok(slot) => slot,
            Err(NoSlot::Interrupted) => return None,
            Err(NoSlot::Lacks(lacks, reason)) => {
                let said = Said { lacks: Some(lacks), ..unsaid(job, Verdict::Skip, reason) };
                return Some(self.without_worker(job, said));
            }
            Err(NoSlot::Broken(error)) => {
                let reason = format!("the files of slots cannot be used: {error}");
                return Some(self.without_worker(job, unsaid(job, Verdict::Error, reason)));
            }
        };
        // Not every user may read the log; what cannot be read cannot judge.
        let log = (self.kernel_logs == KernelLogs::Judge).then(KernelLog::from_now).and_then(Result::ok);
        let end = |worker: Started| worker.end(self.until, self.limit(job), self.overtime.grace, self.interrupt);
        let ended = match (self.worker)(job).and_then(end) {
            Ok(ended) => ended,
            Err(error) => {
                let reason = format!("the worker of {} cannot be started: {error}", job.id);
                return Some(self.without_worker(job, unsaid(job, Verdict::Error, reason)));
            }
        };
        drop(slot);
        let said = self.verdict(job, &ended)?;
        let mut report = self.report(job, ended.duration, said);
        if let Some(lines) = log.and_then(|mut log| log.lines().ok()) {
            kernel_log::judge(&mut report, &lines);
        }
        Some(Finished { report, stdout: ended.stdout, stderr: ended.stderr })
    }

    /// The end of a job that had no worker.
    fn without_worker(&self, job: &Job, said: Said) -> Finished {
        let report = self.report(job, Duration::ZERO, said);
        Finished { report, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// When a worker is killed.
    fn limit(&self, job: &Job) -> Duration {
        job.limit + self.overtime.margin
    }

    /// What became of the job, from what is left of its worker.
    fn verdict(&self, job: &Job, ended: &Ended) -> Option<Said> {
        let mut said = match &ended.end {
            End::Interrupted => return None,
            End::OutOfTime => {
                let limit = self.limit(job).as_secs_f64();
                unsaid(job, Verdict::Timeout, format!("the worker did not end within {limit} s and was killed"))
            }
            End::Unkillable(pid) => unsaid(
                job,
                Verdict::Timeout,
                format!("the worker hangs inside the kernel: process {pid} outlived its SIGKILL"),
            ),
            End::Left => match understood(job, &ended.report) {
                Ok(said) => return Some(said),
                Err(garbage) => unsaid(job, Verdict::Error, garbage),
            },
            End::Exited(status) => match understood(job, &ended.report) {
                Ok(said) if status.success() => return Some(said),
                Ok(said) => {
                    let reason = format!("the worker said \"{}\" and then died: {}", said.verdict, how(*status));
                    Said { verdict: Verdict::Error, reason, ..said }
                }
                Err(_) if !status.success() => {
                    unsaid(job, Verdict::Error, format!("the worker died without a verdict: {}", how(*status)))
                }
                Err(garbage) => unsaid(job, Verdict::Error, garbage),
            },
        };
        said.details.extend(last_lines(&ended.stderr));
        Some(said)
    }

    fn report(&self, job: &Job, duration: Duration, said: Said) -> CaseReport {
        let Said { verdict, reason, lacks, exits, details, .. } = said;
        let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        CaseReport { duration_us, exits, details, lacks, ..self.context.report(job, verdict, reason) }
    }
}

/// What the runner says for a worker that said nothing of use.
fn unsaid(job: &Job, verdict: Verdict, reason: String) -> Said {
    Said { id: job.id.clone(), verdict, reason, lacks: None, exits: 0, details: Vec::new() }
}

/// The one line that a worker should say, about the row that it was started for.
fn understood(job: &Job, report: &[u8]) -> Result<Said, String> {
    if report.is_empty() {
        return Err("the worker ended without a verdict".to_owned());
    }
    let said: Said =
        serde_json::from_slice(report).map_err(|error| format!("the worker's report is garbage: {error}"))?;
    if said.id != job.id {
        return Err(format!("the worker reported on {} instead", said.id.escape_debug()));
    }
    Ok(said)
}

/// The end of a process in words, a signal by its name.
fn how(status: ExitStatus) -> String {
    match status.signal() {
        Some(number) => {
            let name = Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |s| s.to_string());
            let core = if status.core_dumped() { ", core dumped" } else { "" };
            format!("{name}{core}")
        }
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// The last lines of what a worker printed, as details.
fn last_lines(output: &[u8]) -> Vec<String> {
    const LINES: usize = 20;
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("stderr: {line}")).collect()
}
