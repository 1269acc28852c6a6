//! A worker for one of the kernel's own selftests: runs the program and says what it saw. What that means is
//! read outside, where the comparison is made.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use privet_harness::vendor::Vendor;
use privet_kselftest::reading::{self, End, Observation, Reading};
use privet_report::{CaseReport, Verdict};

use crate::args::KselftestWorker;
use crate::interrupt::Interrupt;
use crate::plan::Job;
use crate::pool::Overtime;
use crate::process::{self, Started, Until};
use crate::worker::{self, Said};

/// What tells the job of a selftest from that of a row, whose id has no colon.
const PREFIX: &str = "kselftest:";

/// The job that runs this test.
pub fn job(test: &str, limit: Duration) -> Job {
    let id = format!("{PREFIX}{test}");
    Job { label: id.clone(), id, seed: 0, limit, keep: false, vendor: Vendor::Amd, schedules: Vec::new() }
}

/// The test that a job runs, if it is the job of a selftest.
pub fn test_of(job: &Job) -> Option<&str> {
    job.id.strip_prefix(PREFIX)
}

/// The command that starts the worker of a test whose program is in `dir`.
pub fn command(program: &Path, test: &str, dir: &Path, limit: Duration) -> Command {
    let mut command = Command::new(program);
    command.args(["kselftests", "worker", test, "--limit-ms", &limit.as_millis().to_string(), "--dir"]).arg(dir);
    command
}

/// Runs the test and says what it did.
///
/// # Errors
/// If that cannot be reported.
pub fn run(args: &KselftestWorker) -> io::Result<()> {
    let observation = serde_json::to_string(&observe(args)?)?;
    worker::report(&Said {
        lacks: None,
        id: format!("{PREFIX}{}", args.test),
        verdict: Verdict::Pass,
        reason: String::new(),
        exits: 0,
        details: vec![observation],
    })
}

fn observe(args: &KselftestWorker) -> io::Result<Observation> {
    let program = args.dir.join(&args.test);
    let mut command = Command::new(&program);
    // Where upstream's runner starts it.
    command.current_dir(program.parent().unwrap_or(Path::new("/")));
    let limit = Duration::from_millis(args.limit_ms);
    let interrupt = Interrupt::new()?;
    Ok(
        match Started::new(command).and_then(|program| program.end(Until::End, limit, Overtime::HERE.grace, &interrupt))
        {
            Err(error) => Observation { end: End::NotRun(error.to_string()), output: String::new() },
            Ok(ended) => {
                let end = match ended.end {
                    process::End::Exited(status) => match (status.code(), status.signal()) {
                        (Some(code), _) => End::Exited(code),
                        (None, signal) => End::Signaled(signal.unwrap_or_default()),
                    },
                    process::End::Left => unreachable!("its end was waited for"),
                    process::End::OutOfTime => End::OutOfTime(args.limit_ms),
                    process::End::Unkillable(pid) => {
                        End::NotRun(format!("it hangs inside the kernel: process {pid} outlived its SIGKILL"))
                    }
                    process::End::Interrupted => End::NotRun("interrupted".to_owned()),
                };
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                Observation { end, output: format!("{}\n{}", text(&ended.stdout), text(&ended.stderr)) }
            }
        },
    )
}

/// What a test said, with what the kernel said meanwhile, from the report that the runner of its worker made. A test that
/// brought its worker or the machine down has said nothing.
pub fn reading(report: &CaseReport) -> Reading {
    let seen = report.details.first().and_then(|line| serde_json::from_str::<Observation>(line).ok());
    match seen {
        Some(observation) => {
            let mut reading = observation.read();
            if report.verdict != Verdict::Pass {
                let meanwhile = &report.reason;
                reading.reason =
                    format!("{}{}{meanwhile}", reading.reason, if reading.reason.is_empty() { "" } else { "; " });
            }
            reading
        }
        None => {
            let verdict = match report.verdict {
                Verdict::Fail => reading::Verdict::Fail,
                Verdict::Timeout => reading::Verdict::Timeout,
                Verdict::Skip => reading::Verdict::Skip,
                Verdict::Pass | Verdict::Error => reading::Verdict::Error,
            };
            Reading { verdict, reason: report.reason.clone(), subtests: Vec::new() }
        }
    }
}
