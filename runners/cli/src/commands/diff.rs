//! `privet run --diff`: the same rows in two places, and where their verdicts differ.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use privet_harness::verdict::{CaseReport, Verdict};

use super::list::show;
use super::run::run_on;
use crate::args::{On, Run};
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::plan::Job;
use crate::report::pretty::{Pretty, rows};
use crate::report::seen::Seen;
use crate::report::{Report, one_line, place};

/// Runs the jobs in both places and prints the differences: `Failed` if there are any, `NothingRan` if no row
/// ran in either.
///
/// # Errors
/// If a place cannot be had as the command line wants it, or the run is interrupted.
pub fn diff(args: &Run, places: [On; 2], jobs: &[Job], interrupt: &Interrupt) -> Result<Status, Early> {
    let mut seen = Vec::new();
    for on in places {
        let kept = Rc::new(RefCell::new(BTreeMap::new()));
        let reports: Vec<Box<dyn Report>> = vec![Box::new(Seen::into(&kept)), Box::new(Pretty::with_bar(io::sink()))];
        let (summary, _) = run_on(args, on, jobs, interrupt, reports)?;
        if let Some(signal) = summary.signal {
            let message = "interrupted: nothing is compared".to_owned();
            return Err(Early { status: Status::Interrupted(signal), message });
        }
        if let Some(trouble) = summary.trouble {
            return Err(Early { status: Status::Failed, message: trouble });
        }
        seen.push(kept.take());
    }
    let pairs = || jobs.iter().filter_map(|job| Some((job, seen[0].get(&job.label)?, seen[1].get(&job.label)?)));
    let differing: Vec<_> = pairs().filter(|(_, here, there)| here.verdict != there.verdict).collect();
    let mut text: String = differing.iter().map(|(job, here, there)| difference(job, here, there)).collect();
    let ran = pairs().filter(|(_, here, there)| here.verdict != Verdict::Skip && there.verdict != Verdict::Skip);
    let ran = ran.count();
    text += &format!("{}: {} differ, {ran} ran in both places\n", rows(pairs().count()), differing.len());
    if let Some((_, here, there)) = pairs().next() {
        text += &format!("between {} and {}\n", place(here), place(there));
    }
    show(&text, io::stdout().lock())?;
    Ok(match (differing.len(), ran) {
        (1.., _) => Status::Failed,
        (0, 0) => Status::NothingRan,
        (0, _) => Status::Passed,
    })
}

fn difference(job: &Job, here: &CaseReport, there: &CaseReport) -> String {
    let side = |report: &CaseReport| {
        let text = format!("    {:<5} {:<7} {}", report.on, report.verdict, one_line(&report.reason));
        format!("{}\n          repeat: {}\n", text.trim_end(), report.repro)
    };
    format!("{}\n{}{}", job.label, side(here), side(there))
}
