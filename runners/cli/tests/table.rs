//! The table as tests of cargo: one trial per row, where `PRIVET_ON` says. `host`, the default, is this machine's
//! /dev/kvm, with a worker process for each row; `rig` is a real kernel in the rig, with a machine for each row;
//! `auto` takes the rig for what the host cannot run.
//!
//! A trial that cannot run is ignored at run time, which is the only way to give a reason. The flag that marks it
//! when listing carries none; it is set where a listing or a filter depends on it, so that cargo-nextest knows.
//!
//! A row that fails by a bug which newer kernels do not have is ignored too, with what it saw: nobody can act
//! on it here but by a newer kernel. `privet run` calls it a failure.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use privet::interrupt::Interrupt;
use privet::known_bug;
use privet::place::Context;
use privet::plan::{self, Job};
use privet::pool::{Event, KernelLogs, Overtime, Pool};
use privet::process::{Started, Until};
use privet::slots::Slots;
use privet::worker;
use privet_cases::Entry;
use privet_harness::found::Proven;
use privet_harness::host::Host;
use privet_report::{CaseReport, Place, Verdict};

const LIMIT: Duration = Duration::from_secs(60);

/// Names the place.
const PRIVET_ON: &str = "PRIVET_ON";

/// Where rows run.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    Host,
    Rig,
    Auto,
}

impl Where {
    fn of_environment() -> Result<Self, String> {
        match std::env::var(PRIVET_ON).as_deref() {
            Err(_) | Ok("" | "host") => Ok(Self::Host),
            Ok("rig") => Ok(Self::Rig),
            Ok("auto") => Ok(Self::Auto),
            Ok(other) => Err(format!("{PRIVET_ON}={other} is no place: it can be host, rig or auto")),
        }
    }
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let place = match Where::of_environment() {
        Ok(place) => place,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let host = Host::open().map_err(|error| error.to_string());
    let context = Arc::new(Context::here(Place::Host));
    let flag_matters = args.list || args.ignored;
    let why_not = |row: &Entry| match &host {
        Ok(host) => row.unmet(host).map(|lack| lack.reason),
        Err(why) => Some(why.clone()),
    };
    let proven: Arc<[Proven]> = host.as_ref().map(Host::proven).unwrap_or_default().into();
    let trials = privet_cases::table().into_iter().map(|row| {
        let unmet = if place == Where::Rig { None } else { why_not(&row) };
        let flag = flag_matters && place == Where::Host && unmet.is_some();
        let (context, proven) = (Arc::clone(&context), Arc::clone(&proven));
        Trial::ignorable_test(row.id.clone(), move || match (place, unmet) {
            (Where::Rig, _) | (Where::Auto, Some(_)) => judge(&row, in_rig(&row)?),
            (Where::Host, Some(why)) => Ok(ignored(&why)),
            (Where::Host | Where::Auto, None) => judge(&row, on_host(&row, &context, &proven)?),
        })
        .with_ignored_flag(flag)
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn ignored(why: &str) -> Completion {
    Completion::ignored_with(format!("{why}; {PRIVET_ON}=rig runs it on a real kernel without hardware"))
}

/// Runs a row on this machine.
fn on_host(row: &Entry, context: &Context, proven: &[Proven]) -> Result<CaseReport, Failed> {
    let job = plan::jobs(std::slice::from_ref(&row.id), 1, plan::fresh_seed(), LIMIT);
    let worker = |job: &Job| Started::new(worker::command(Path::new(env!("CARGO_BIN_EXE_privet")), job, proven));
    // nextest runs each test in a process of its own, side by side with others.
    let slots = Slots::of_this_host(std::slice::from_ref(row)).ok();
    let pool = Pool {
        worker: &worker,
        at_a_time: 1,
        until: Until::End,
        overtime: Overtime::HERE,
        context,
        kernel_logs: KernelLogs::Judge,
        slots: slots.as_ref(),
        interrupt: &Interrupt::new()?,
    };
    let mut report = None;
    pool.run(&job, |event| {
        if let Event::Finished(_, finished) = event {
            report = Some(finished.report);
        }
    });
    Ok(report.ok_or("the worker was interrupted")?)
}

/// Runs a row in the rig, as a user would.
fn in_rig(row: &Entry) -> Result<CaseReport, Failed> {
    let mut privet = Command::new(env!("CARGO_BIN_EXE_privet"));
    let output = privet.args(["run", "--exact", &row.id, "--on", "rig", "--format", "json"]).output()?;
    // What is to run, and then the row.
    let first = output.stdout.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
    serde_json::from_slice(first).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned().into())
}

fn judge(row: &Entry, mut report: CaseReport) -> Result<Completion, Failed> {
    let is_known = row.known_bug(&report.kernel, &report.reason).is_some();
    known_bug::name(row, &mut report);
    match report.verdict {
        Verdict::Pass => Ok(Completion::Completed),
        Verdict::Skip if report.on == Place::Host => Ok(ignored(&report.reason)),
        Verdict::Skip => Ok(Completion::ignored_with(report.reason)),
        Verdict::Fail if is_known => Ok(Completion::ignored_with(format!("fails: {}", report.reason))),
        Verdict::Fail | Verdict::Error | Verdict::Timeout => Err(story(&report).into()),
    }
}

fn story(report: &CaseReport) -> String {
    let details: String = report.details.iter().map(|line| format!("\n  | {line}")).collect();
    let repeat = match report.repro.as_str() {
        "" => format!("privet run --exact {} --on host --seed {}", report.id, report.seed),
        repro => repro.to_owned(),
    };
    format!("{}: {}{details}\n  repeat: {repeat}", report.verdict, report.reason)
}
