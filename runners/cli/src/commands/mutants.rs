//! `privet mutants`: do rows notice when KVM is wrong? Each defect of the model is tried against them.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use privet_harness::vendor::Vendor;
use privet_machine::Defect;
use privet_report::{CaseReport, Verdict, one_line};
use privet_rig::ModuleParam;

use crate::args::Mutants;
use crate::descriptors;
use crate::dispatch::cores;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::model::{Model, Ready};
use crate::plan::{self, Job};
use crate::pool::Event;
use crate::report::pretty::rows;
use crate::selection::select;

/// Runs the rows without a defect and then with each, and writes to `out` what was caught: `Failed` if the first
/// run fails or a defect survives.
///
/// # Errors
/// If the command line cannot be followed, there is no model, or the run is interrupted.
pub fn mutants(args: &Mutants, mut out: impl Write) -> Result<Status, Early> {
    let selected = select(&privet_cases::table(), &args.selection)?;
    let seed = args.seed.unwrap_or_else(plan::fresh_seed);
    let jobs = plan::jobs(&selected, 1, seed, args.timeout);
    let program =
        std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find this program: {error}")))?;
    let interrupt =
        Interrupt::on_signals().map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
    let at_a_time = args.jobs.map_or_else(cores, usize::from);
    descriptors::check(at_a_time)?;
    let reports = |machine: &Machine, defect, jobs: &[Job]| {
        let model = machine.with(defect)?.ready(&program).map_err(Early::nothing_ran)?;
        run(&model, jobs, at_a_time, &interrupt)
    };
    let mut tell = |text: String| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error: io::Error| Early::usage(format!("cannot write to standard output: {error}")))
    };

    // Only a row that is green without a defect says something by being red.
    let (mut left, mut green, mut wrong) = (jobs, Vec::new(), 0);
    for machine in machines() {
        let clean = reports(&machine, None, &left)?;
        for report in clean.iter().filter(|report| report.verdict.is_red()) {
            wrong += 1;
            let (verdict, id, reason) = (report.verdict, &report.id, one_line(&report.reason));
            tell(format!("{verdict:<9} {id}, without any defect: {reason}\n"))?;
        }
        let ended = |job: &Job, verdict| clean.iter().find(|report| report.id == job.id && report.verdict == verdict);
        let passed = left.iter().filter_map(|job| ended(job, Verdict::Pass).map(|report| with_a_defect(job, report)));
        green.push((machine, passed.collect::<Vec<_>>()));
        left.retain(|job| ended(job, Verdict::Skip).is_some());
    }
    let rows: usize = green.iter().map(|(_, jobs)| jobs.len()).sum();
    if rows == 0 {
        return Err(Early {
            status: Status::Failed,
            message: "no row passes on the model without a defect".to_owned(),
        });
    }

    let defects = if args.defect.is_empty() { Defect::ALL } else { &args.defect };
    let mut survivors = 0;
    let mut useful: BTreeSet<String> = BTreeSet::new();
    for &defect in defects {
        let mut caught: Vec<String> = Vec::new();
        for (machine, jobs) in green.iter().filter(|(_, jobs)| !jobs.is_empty()) {
            let red = reports(machine, Some(defect), jobs)?.into_iter().filter(|report| report.verdict.is_red());
            caught.extend(red.map(|report| report.id));
        }
        if caught.is_empty() {
            survivors += 1;
            tell(format!("survived  {}: {}\n", defect.name(), defect.summary()))?;
        } else {
            tell(format!("caught    {} by {}\n", defect.name(), some_of(&caught)))?;
        }
        useful.extend(caught);
    }
    for job in green.iter().flat_map(|(_, jobs)| jobs).filter(|job| !useful.contains(&job.id)) {
        tell(format!("never     {} caught none of them\n", job.id))?;
    }
    let tried = defects.len();
    tell(format!(
        "on the model, which is no hardware: {tried} defects, {} caught, {survivors} survived; {rows} rows, {} caught \
         something, {} do not pass without a defect; seed {seed}\n",
        tried - survivors,
        useful.len(),
        wrong,
    ))?;
    Ok(if wrong == 0 && survivors == 0 { Status::Passed } else { Status::Failed })
}

/// How many rows there are, and the first of them.
fn some_of(ids: &[String]) -> String {
    const NAMED: usize = 4;
    let more = if ids.len() > NAMED { " ..." } else { "" };
    format!("{}: {}{more}", rows(ids.len()), ids[..ids.len().min(NAMED)].join(" "))
}

/// The job of a row that passed without a defect. A defect may make it wait for what never comes, and nobody wants to wait
/// with it for longer than it takes to be sure of that.
pub(super) fn with_a_defect(job: &Job, passed: &CaseReport) -> Job {
    Job { limit: limit_with_a_defect(job.limit, passed.duration_us, Duration::from_secs(3)), ..job.clone() }
}

/// How long a row may take with a defect: ten times as long as without, but this at least, and not beyond its own limit.
pub(super) fn limit_with_a_defect(limit: Duration, passed_us: u64, least: Duration) -> Duration {
    Duration::from_micros(passed_us * 10).max(least).min(limit)
}

/// A machine without defects.
struct Machine {
    vendor: Option<Vendor>,
    module_params: Vec<ModuleParam>,
}

impl Machine {
    fn with(&self, defect: Option<Defect>) -> Result<Model, Early> {
        Model::described(self.vendor, &self.module_params, defect)
    }
}

/// The machines that rows can need. A row runs on the first that does not skip it.
fn machines() -> [Machine; 3] {
    let uncached = ModuleParam { module: "kvm".to_owned(), setting: "mmio_caching=N".to_owned() };
    [(None, vec![]), (None, vec![uncached]), (Some(Vendor::Intel), vec![])]
        .map(|(vendor, module_params)| Machine { vendor, module_params })
}

/// The reports of all jobs, in their order.
fn run(model: &Ready, jobs: &[Job], at_a_time: usize, interrupt: &Interrupt) -> Result<Vec<CaseReport>, Early> {
    let mut reports: Vec<Option<CaseReport>> = vec![None; jobs.len()];
    model.run(jobs, at_a_time, interrupt, |event| {
        if let Event::Finished(index, done) = event {
            reports[index] = Some(done.report);
        }
    });
    match interrupt.signal() {
        Some(signal) => Err(Early { status: Status::Interrupted(signal), message: "interrupted".to_owned() }),
        None => Ok(reports.into_iter().flatten().collect()),
    }
}
