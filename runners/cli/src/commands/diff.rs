//! `privet run --diff`: the same rows in two places, and where their verdicts differ or are bad in both.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use privet_harness::outcome::LackOf;
use privet_report::{CaseReport, Place, Verdict, one_line, place};

use super::run_on::run_on;
use super::show::show;
use crate::args::{On, Run};
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::plan::Job;
use crate::report::Report;
use crate::report::pretty::{Pretty, rows};
use crate::report::seen::Seen;

/// Runs the jobs in both places and prints the differences, and what is red in both: `Failed` if there are any,
/// `NothingRan` if no row ran in both.
///
/// # Errors
/// If a place cannot be had as the command line wants it, or the run is interrupted.
pub fn diff(args: &Run, places: [On; 2], jobs: &[Job], interrupt: &Interrupt) -> Result<Status, Early> {
    let mut seen = Vec::new();
    let mut signal = None;
    for on in places {
        let kept = Rc::new(RefCell::new(BTreeMap::new()));
        let reports: Vec<Box<dyn Report>> = vec![Box::new(Seen::into(&kept)), Box::new(Pretty::bar_only())];
        let (summary, _) = run_on(args, on, jobs, interrupt, reports)?;
        seen.push(kept.take());
        signal = summary.signal;
        if signal.is_some() {
            break;
        }
        if let Some(trouble) = summary.trouble {
            return Err(Early { status: Status::Failed, message: trouble });
        }
    }
    let [here, there] = [0, 1].map(|place| seen.get(place));
    let pair = |job: &Job| Some((here?.get(&job.label)?, there?.get(&job.label)?));
    let pairs = jobs.iter().filter_map(pair).collect::<Vec<_>>();
    let (text, status) = compared(&pairs);
    show(&text, io::stdout().lock())?;
    match signal {
        None => Ok(status),
        Some(signal) => {
            let left = jobs.len() - pairs.len();
            let message = format!("interrupted: {} not compared", rows(left));
            Err(Early { status: Status::Interrupted(signal), message })
        }
    }
}

/// What there is to say about the reports of each row in the two places, and the exit status that goes with it.
fn compared(pairs: &[(&CaseReport, &CaseReport)]) -> (String, Status) {
    let (elsewhere, pairs): (Vec<_>, Vec<_>) = pairs.iter().copied().partition(can_run_in_one_only);
    let (differing, same): (Vec<_>, Vec<_>) = pairs.iter().partition(|(here, there)| here.verdict != there.verdict);
    let red: Vec<_> = same.into_iter().filter(|(here, _)| here.verdict.is_red()).collect();
    let ran = |(here, there): &&(&CaseReport, &CaseReport)| [here, there].iter().all(|r| r.verdict != Verdict::Skip);
    let ran = pairs.iter().filter(ran).count();
    let mut text: String = differing.iter().chain(&red).map(|(here, there)| side_by_side(here, there)).collect();
    text += &format!("{}: {} differ, {ran} ran in both places", rows(pairs.len()), differing.len());
    if !red.is_empty() {
        text += &format!(", {} red in both", red.len());
    }
    if !elsewhere.is_empty() {
        text += &format!(", {} pass in one place and need what the other has not", elsewhere.len());
    }
    text.push('\n');
    if let Some((here, there)) = pairs.first() {
        text += &format!("between {} and {}\n", place(here), place(there));
    }
    let status = match (differing.len() + red.len(), ran) {
        (1.., _) => Status::Failed,
        (0, 0) => Status::NothingRan,
        (0, _) => Status::Passed,
    };
    (text, status)
}

/// Whether the row passes in one of the two places and is skipped in the other for want of what cannot be had there: its
/// processor is another, its memory is used up, or it is the model, which does not have everything. A skip for any other
/// reason is a difference, and so is a pass that is none.
fn can_run_in_one_only((here, there): &(&CaseReport, &CaseReport)) -> bool {
    let skip = match (here.verdict, there.verdict) {
        (Verdict::Skip, Verdict::Pass) => here,
        (Verdict::Pass, Verdict::Skip) => there,
        _ => return false,
    };
    match skip.lacks {
        Some(LackOf::Cpu | LackOf::Resource) => true,
        Some(LackOf::VmType | LackOf::Feature) => skip.on == Place::Model,
        _ => false,
    }
}

fn side_by_side(here: &CaseReport, there: &CaseReport) -> String {
    let side = |report: &CaseReport| {
        let text = format!("    {:<5} {:<7} {}", report.on, report.verdict, one_line(&report.reason));
        format!("{}\n          repeat: {}\n", text.trim_end(), report.repro)
    };
    format!("{}\n{}{}", here.id, side(here), side(there))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::place::Context;
    use crate::plan;

    fn report(on: Place, verdict: Verdict) -> CaseReport {
        let jobs = plan::jobs(&["upm.slots.a".to_owned()], 1, 7, Duration::ZERO);
        Context::nowhere(on).report(&jobs[0], verdict, "why".to_owned())
    }

    #[test]
    fn only_a_pass_beside_a_place_that_cannot_is_no_difference() {
        use Verdict::{Fail, Pass, Skip};
        for (on, lacks, elsewhere, status) in [
            (Place::Model, LackOf::Cpu, Pass, Status::NothingRan),
            (Place::Rig, LackOf::Cpu, Pass, Status::NothingRan),
            (Place::Rig, LackOf::Resource, Pass, Status::NothingRan),
            (Place::Model, LackOf::Cpu, Fail, Status::Failed),
            (Place::Model, LackOf::Feature, Pass, Status::NothingRan),
            (Place::Rig, LackOf::Feature, Pass, Status::Failed),
            (Place::Rig, LackOf::VmType, Pass, Status::Failed),
            (Place::Rig, LackOf::Place, Pass, Status::Failed),
            (Place::Model, LackOf::Place, Pass, Status::Failed),
            (Place::Model, LackOf::Kernel, Pass, Status::Failed),
            (Place::Model, LackOf::Setting, Pass, Status::Failed),
        ] {
            let skip = CaseReport { lacks: Some(lacks), ..report(on, Skip) };
            let other = report(Place::Host, elsewhere);
            assert_eq!(compared(&[(&skip, &other)]).1, status, "{lacks:?}");
            assert_eq!(compared(&[(&other, &skip)]).1, status, "{lacks:?}");
        }
    }

    #[test]
    fn only_rows_that_are_alike_and_not_red_are_a_success() {
        use Verdict::{Error, Fail, Pass, Skip, Timeout};
        for (model, rig, said, status) in [
            (Pass, Pass, "1 row: 0 differ, 1 ran in both places\n", Status::Passed),
            (Skip, Skip, "1 row: 0 differ, 0 ran in both places\n", Status::NothingRan),
            (Pass, Skip, "1 row: 1 differ, 0 ran in both places\n", Status::Failed),
            (Fail, Pass, "1 row: 1 differ, 1 ran in both places\n", Status::Failed),
            (Fail, Fail, "1 row: 0 differ, 1 ran in both places, 1 red in both\n", Status::Failed),
            (Error, Error, "1 row: 0 differ, 1 ran in both places, 1 red in both\n", Status::Failed),
            (Timeout, Fail, "1 row: 1 differ, 1 ran in both places\n", Status::Failed),
        ] {
            let (model, rig) = (report(Place::Model, model), report(Place::Rig, rig));
            let (text, is) = compared(&[(&model, &rig)]);
            assert_eq!(is, status, "{text}");
            assert!(text.contains(said), "{text}");
            assert_eq!(text.starts_with("upm.slots.a\n"), status == Status::Failed, "{text}");
        }
    }
}
