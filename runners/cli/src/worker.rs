//! A worker: the process that runs one row and says one thing about it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use privet_harness::found::Proven;
use privet_harness::host::Host;
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
    report(&say(args))
}

/// Says it where the runner listens.
///
/// # Errors
/// If it cannot be written.
pub fn report(said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    match std::env::var(REPORT_FD) {
        Ok(fd) => File::options().write(true).open(format!("/proc/self/fd/{fd}"))?.write_all(&line),
        Err(_) => io::stdout().write_all(&line),
    }
}

fn say(args: &Worker) -> Said {
    let id = &args.id;
    let said = |verdict, reason| Said { id: id.clone(), verdict, reason, exits: 0, details: Vec::new() };
    let Some(row) = privet_cases::table().into_iter().find(|row| row.id == *id) else {
        return said(Verdict::Error, format!("this worker has no row {id}: it is another build than its runner"));
    };
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => return said(Verdict::Skip, error.to_string()),
    };
    let proven = [(args.ring0_works, Proven::Ring0), (args.hypercalls_work, Proven::Hypercall)];
    host.trust(&proven.into_iter().filter(|(works, _)| *works).map(|(_, proven)| proven).collect::<Vec<_>>());
    let ran = row.run(Arc::new(host), args.seed, Duration::from_millis(args.limit_ms));
    let is_told = ran.outcome.is_err() || args.keep;
    let details = if is_told { ran.details } else { Vec::new() };
    let (verdict, reason) = match ran.outcome {
        Ok(()) => (Verdict::Pass, String::new()),
        Err(stop) => (Verdict::from(&stop), stop.to_string()),
    };
    Said { exits: ran.exits, details, ..said(verdict, reason) }
}
