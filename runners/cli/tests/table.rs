//! The table as tests of cargo: one trial per row, in a worker process of its own, on this machine's
//! /dev/kvm.
//!
//! A trial that this host cannot run is ignored at run time, which is the only way to give a reason. The
//! flag that marks it when listing carries none; it is set where a listing or a filter depends on it, so
//! that cargo-nextest knows.
//!
//! A row that fails by a bug which newer kernels do not have is ignored too, with what it saw: nobody can act
//! on it here but by a newer kernel. `privet run` calls it a failure.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use privet::interrupt::Interrupt;
use privet::known_bug;
use privet::place::Context;
use privet::plan::{self, Job};
use privet::pool::{Event, KernelLogs, MARGIN, Pool};
use privet::worker;
use privet_cases::Entry;
use privet_harness::found::Proven;
use privet_harness::host::Host;
use privet_report::{CaseReport, Place, Verdict};

const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let host = Host::open().map_err(|error| error.to_string());
    let context = Arc::new(Context::here(Place::Host));
    let flag_matters = args.list || args.ignored;
    let why_not = |row: &Entry| match &host {
        Ok(host) => row.unmet(host),
        Err(why) => Some(why.clone()),
    };
    let proven: Arc<[Proven]> = host.as_ref().map(Host::proven).unwrap_or_default().into();
    let trials = privet_cases::table().into_iter().map(|row| {
        let unmet = why_not(&row);
        let flag = flag_matters && unmet.is_some();
        let (context, proven) = (Arc::clone(&context), Arc::clone(&proven));
        Trial::ignorable_test(row.id.clone(), move || match unmet {
            Some(why) => Ok(ignored(&why)),
            None => run(&row, &context, &proven),
        })
        .with_ignored_flag(flag)
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn ignored(why: &str) -> Completion {
    Completion::ignored_with(format!("{why}; `privet run --on rig` runs it on a real kernel without hardware"))
}

fn run(row: &Entry, context: &Context, proven: &[Proven]) -> Result<Completion, Failed> {
    let job = plan::jobs(std::slice::from_ref(&row.id), 1, plan::fresh_seed(), LIMIT);
    let worker = |job: &Job| worker::command(Path::new(env!("CARGO_BIN_EXE_privet")), job, proven);
    let pool = Pool {
        worker: &worker,
        at_a_time: 1,
        margin: MARGIN,
        context,
        kernel_logs: KernelLogs::Judge,
        interrupt: &Interrupt::new()?,
    };
    let mut report = None;
    pool.run(&job, |event| {
        if let Event::Finished(_, finished) = event {
            report = Some(finished.report);
        }
    });
    let mut report = report.ok_or("the worker was interrupted")?;
    let is_known = row.known_bug(&report.kernel, &report.reason).is_some();
    known_bug::name(row, &mut report);
    match report.verdict {
        Verdict::Pass => Ok(Completion::Completed),
        Verdict::Skip => Ok(ignored(&report.reason)),
        Verdict::Fail if is_known => Ok(Completion::ignored_with(format!("fails: {}", report.reason))),
        Verdict::Fail | Verdict::Error | Verdict::Timeout => Err(story(&report).into()),
    }
}

fn story(report: &CaseReport) -> String {
    let details: String = report.details.iter().map(|line| format!("\n  | {line}")).collect();
    let repeat = format!("privet run --exact {} --on host --seed {}", report.id, report.seed);
    format!("{}: {}{details}\n  repeat: {repeat}", report.verdict, report.reason)
}
