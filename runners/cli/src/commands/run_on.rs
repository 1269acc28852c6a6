//! One run of jobs in one place: who judges them, and who is told.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use privet_cases::Entry;
use privet_report::{CaseReport, Ending};

use crate::args::{On, Run};
use crate::artifacts::{Artifacts, RunFacts};
use crate::dispatch::Dispatch;
use crate::exit::Early;
use crate::follow::{Followers, Policy};
use crate::interrupt::Interrupt;
use crate::known_bug;
use crate::place::{Assigned, chosen};
use crate::plan::Job;
use crate::quarantine::Quarantine;
use crate::report::{Format, Report};
use crate::repro::Repro;
use crate::require;
use crate::summary::Summary;

/// Runs the jobs, tells `reports`, and gives the count and the first reason of a skip.
pub(super) fn run_on<'a>(
    args: &'a Run,
    on: On,
    jobs: &'a [Job],
    interrupt: &'a Interrupt,
    reports: Vec<Box<dyn Report + 'a>>,
) -> Result<(Summary, Option<String>), Early> {
    let table = privet_cases::table();
    let by_id: BTreeMap<&str, &Entry> = table.iter().map(|row| (row.id.as_str(), row)).collect();
    let row_of = |job: &Job| by_id[job.id.as_str()];
    let quarantine = args.quarantine.as_deref().map(|path| Quarantine::read(path, &table)).transpose()?;
    let dispatch = Dispatch::new(args, on)?;
    let artifacts = args.artifacts.as_deref().map(|dir| {
        let facts = RunFacts {
            version: env!("CARGO_PKG_VERSION"),
            command: std::env::args().collect(),
            seed: jobs.first().map_or(0, |job| job.seed),
            host: dispatch.here(),
            jobs: jobs.iter().map(|job| job.label.as_str()).collect(),
        };
        Artifacts::create(dir, &facts)
    });
    let artifacts = artifacts.transpose()?;

    let start = Instant::now();
    let mut assigned: BTreeMap<&str, Assigned> = BTreeMap::new();
    for job in jobs {
        assigned.entry(&job.id).or_insert_with(|| dispatch.assign(row_of(job)));
    }
    let (vendor_on_model, defect) = (args.vendor.is_some(), args.defect);
    let repro = Repro { rig: &args.rig, timeout: args.timeout, vendor_on_model, defect };
    let hold_to = |job: &Job, report: &mut CaseReport| {
        known_bug::name(row_of(job), report);
        require::hold_to(&args.require, row_of(job), report);
    };
    let excuse = |job: &Job, ending: &mut Ending| {
        quarantine.iter().for_each(|quarantine| quarantine.judge(row_of(job), ending));
    };
    let policy = Policy {
        hold_to: Some(&hold_to),
        excuse: Some(&excuse),
        retries: args.retries,
        max_fail: args.most_failures(),
    };
    let mut followers = Followers::begin(jobs, reports, artifacts, repro, policy, interrupt);
    if let Some(words) = placed(args.on, on, jobs.iter().map(|job| &assigned[job.id.as_str()])) {
        followers.placed(&words);
        // Machines read what is on standard output then, and people do not.
        if args.output.is_none() && !matches!(args.format, Format::Pretty) {
            eprintln!("privet: {words}");
        }
    }
    let mut due: Vec<usize> = (0..jobs.len()).collect();
    while !due.is_empty() && interrupt.cause().is_none() {
        dispatch.run(jobs, &assigned, &due, interrupt, &mut followers);
        due = followers.due();
    }
    dispatch.tell_recorded()?;

    let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    followers.end(duration_us).map_err(cannot_write)
}

/// Where the rows run and why, if `auto` had the choice.
fn placed<'a>(asked: On, on: On, assigned: impl Iterator<Item = &'a Assigned> + Clone) -> Option<String> {
    match (asked, on) {
        (On::Auto, On::Auto) => Some(chosen(assigned)),
        (On::Auto, On::Model) => Some("auto: on the model, which is no hardware: --defect is a bug of it".to_owned()),
        (On::Auto, _) => {
            let why = "--kernel, --machine, --cpu-profile, --module-param or --vendor describes one";
            Some(format!("auto: in the rig: {why}"))
        }
        _ => None,
    }
}

/// The error for a report that cannot be written.
pub(super) fn cannot_write(error: io::Error) -> Early {
    Early::usage(format!("cannot write the report: {error}"))
}
