//! A worker: the process that runs one row and says one thing about it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use privet_cases::Entry;
use privet_harness::found::Proven;
use privet_harness::host::Host;
use privet_harness::outcome::{Lack, LackOf, Stop};
use privet_harness::probe;
use privet_report::Verdict;
use serde::{Deserialize, Serialize};

use crate::args::Worker;
use crate::plan::Job;
use crate::process::REPORT_FD;

/// What a worker says about its row: one line of JSON. The runner, which knows where the worker ran and
/// for how long, makes a report of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// The id of the row that ran.
    pub id: String,
    /// How it ended.
    pub verdict: Verdict,
    /// One line that says why; empty for a pass.
    pub reason: String,
    /// What the place lacks, for a skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<LackOf>,
    /// How often KVM_RUN returned.
    pub exits: u64,
    /// What helps to understand a verdict other than pass, one line each.
    pub details: Vec<String>,
}

/// The command that starts the worker of a job, in a place where `proven` need not be tried again.
pub fn command(program: &Path, job: &Job, proven: &[Proven]) -> Command {
    let mut command = Command::new(program);
    command.args(["worker", &job.id, "--seed", &job.seed.to_string()]);
    command.args(["--limit-ms", &job.limit.as_millis().to_string()]);
    if job.keep {
        command.arg("--keep");
    }
    command.args(proven.iter().map(|proven| match proven {
        Proven::Ring0 => "--ring0-works",
        Proven::Hypercall => "--hypercalls-work",
    }));
    command
}

/// Runs a row in this process and says how it ended: to the descriptor that the runner names, or to
/// standard output where a person started the worker.
///
/// # Errors
/// If the report cannot be written.
pub fn run(args: &Worker) -> io::Result<()> {
    report(&say(args, &privet_cases::table()))
}

/// The command of a worker that gets ready for a row before it is told which: see [`told`].
pub fn ready_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("ready-worker");
    command
}

/// What a worker that is ready has to be told.
pub fn told(job: &Job, proven: &[Proven]) -> Vec<u8> {
    let args = Worker {
        id: job.id.clone(),
        seed: job.seed,
        limit_ms: u64::try_from(job.limit.as_millis()).unwrap_or(u64::MAX),
        keep: job.keep,
        ring0_works: proven.contains(&Proven::Ring0),
        hypercalls_work: proven.contains(&Proven::Hypercall),
    };
    let mut line = serde_json::to_vec(&args).expect("arguments are data");
    line.push(b'\n');
    line
}

/// Does what every row needs, says so with a newline, and runs the row that standard input then tells. Where many
/// rows begin with the same process, that was done once for all. Where nobody tells a row, there is none. It ends when
/// its standard input does.
///
/// # Errors
/// If what is told is no row, or the report cannot be written.
pub fn run_told() -> io::Result<()> {
    // Not freed: that would take longer than many a row does.
    let table = privet_cases::table().leak();
    // A rehearsal: the row has a host of its own, but this process has been through it all by then.
    if let Ok(host) = Host::open() {
        let _ = (probe::ring0(&host), probe::hypercall(&host), host.supported_cpuid(), host.modules());
    }
    write_report(b"\n")?;
    let mut line = String::new();
    if io::stdin().read_line(&mut line)? == 0 {
        return Ok(());
    }
    report(&say(&serde_json::from_str(&line)?, table))?;
    // Whoever wants to see how it ends says so by ending what there is to read; taking it down is work, too.
    io::stdin().read_line(&mut line).map(drop)
}

/// Says it where the runner listens.
///
/// # Errors
/// If it cannot be written.
pub fn report(said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    write_report(&line)
}

fn write_report(line: &[u8]) -> io::Result<()> {
    match std::env::var(REPORT_FD) {
        Ok(fd) => File::options().write(true).open(format!("/proc/self/fd/{fd}"))?.write_all(line),
        Err(_) => io::stdout().write_all(line),
    }
}

fn say(args: &Worker, table: &[Entry]) -> Said {
    let id = &args.id;
    let said = |verdict, reason| Said { id: id.clone(), verdict, reason, lacks: None, exits: 0, details: Vec::new() };
    let Some(row) = table.iter().find(|row| row.id == *id) else {
        return said(Verdict::Error, format!("this worker has no row {id}: it is another build than its runner"));
    };
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => return Said { lacks: Some(LackOf::Place), ..said(Verdict::Skip, error.to_string()) },
    };
    let proven = [(args.ring0_works, Proven::Ring0), (args.hypercalls_work, Proven::Hypercall)];
    host.trust(&proven.into_iter().filter(|(works, _)| *works).map(|(_, proven)| proven).collect::<Vec<_>>());
    let ran = row.run(Arc::new(host), args.seed, Duration::from_millis(args.limit_ms));
    let exits = ran.exits();
    let details = if ran.outcome.is_err() || args.keep { ran.details() } else { Vec::new() };
    let (verdict, reason, lacks) = match ran.outcome {
        Ok(()) => (Verdict::Pass, String::new(), None),
        Err(Stop::Skip(Lack { of, reason })) => (Verdict::Skip, reason, Some(of)),
        Err(stop) => (Verdict::from(&stop), stop.to_string(), None),
    };
    Said { exits, details, lacks, ..said(verdict, reason) }
}
