//! Runs a plan in several machines side by side.

use std::fs;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, mpsc};

use crate::error::{RigError, cannot};
use crate::long_rows::LongRows;
use crate::machine_kind::MachineKind;
use crate::plan::{Event, Plan, Progress};
use crate::share::{Common, Told};
use crate::snapshot::{Snapshot, cache_dir};

/// Runs every row of the plan in the rig and hands over what happens to each, as it happens. The numbers
/// of the events are indices into `plan.cases`; every row gets exactly one report.
///
/// A row that brings its machine down gets a report from here, with an empty `repro`; the rows that did
/// not run yet run in a new boot. `interrupt` ends the run when it becomes readable or hangs up.
///
/// # Errors
/// If a machine cannot be started, breaks without a row to blame, or complains while no row is running. The
/// rows of other machines have their reports all the same.
pub fn run(plan: &Plan, interrupt: BorrowedFd<'_>, on_progress: &mut dyn FnMut(Progress)) -> Result<(), RigError> {
    if let Some(directory) = &plan.artifacts {
        fs::create_dir_all(directory).map_err(cannot("create", directory))?;
    }
    let common = Common::new(plan, interrupt)?;
    let machines = plan.machines.max(1);
    if plan.machine != MachineKind::Sim {
        let shares = shares(plan.cases.len(), machines);
        return side_by_side(shares, |cases, tell| common.run_share(cases, tell), on_progress);
    }
    let mut on_booting = |machines| on_progress(Progress::Booting(machines));
    let snapshot = if plan.keeps_snapshot {
        Snapshot::of(&common, &mut on_booting)
    } else {
        Snapshot::once(&common, &mut on_booting)
    }?;
    if plan.records {
        on_progress(Progress::Symbols(common.symbols(&snapshot)?));
    }
    let mut long = LongRows::kept_in(&cache_dir()?);
    // One machine has nobody to wait for: it keeps the order of the plan.
    let order = if machines > 1 { long.first(&plan.cases) } else { (0..plan.cases.len()).collect() };
    let next = Mutex::new(order.into_iter());
    let hands = vec![(); machines.min(plan.cases.len())];
    let mut on_progress = |progress| {
        if let Progress::Row(Event::Finished(row, report)) = &progress {
            long.ended(&plan.cases[*row], report.duration_us);
        }
        on_progress(progress);
    };
    let ran = side_by_side(hands, |(), tell| common.run_copies(&snapshot, &next, tell), &mut on_progress);
    long.keep();
    ran?;
    snapshot.trouble.map_or(Ok(()), |trouble| Err(RigError::Unattributed(trouble)))
}

/// Does each of the shares in a thread of its own, and tells what happens in all of them.
fn side_by_side<T: Send>(
    shares: Vec<T>,
    run: impl Fn(T, &mut dyn FnMut(Told)) -> Result<Option<String>, RigError> + Sync,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(), RigError> {
    let (teller, told) = mpsc::channel();
    let ended = std::thread::scope(|scope| {
        let shares: Vec<_> = shares
            .into_iter()
            .map(|share| {
                let (run, teller) = (&run, teller.clone());
                // The receiver outlives all shares.
                scope.spawn(move || run(share, &mut |told| drop(teller.send(told))))
            })
            .collect();
        drop(teller);
        let mut booting = 0;
        for told in told {
            match told {
                Told::Booting => booting += 1,
                Told::Booted => booting -= 1,
                Told::Console(line) => {
                    on_progress(Progress::Console(line));
                    continue;
                }
                Told::Row(event) => {
                    on_progress(Progress::Row(event));
                    continue;
                }
                Told::Recorded(row, record) => {
                    on_progress(Progress::Recorded(row, record));
                    continue;
                }
                // Only a machine that is saved then has one.
                Told::Room(_) => continue,
            }
            on_progress(Progress::Booting(booting));
        }
        shares.into_iter().map(|share| share.join().expect("a share does not panic")).collect::<Vec<_>>()
    });
    outcome(ended)
}

/// Deals rows out to machines, at most so many. Neighbours in the plan, which take about as long, go to different
/// ones.
fn shares(cases: usize, machines: usize) -> Vec<Vec<usize>> {
    let machines = machines.min(cases);
    (0..machines).map(|machine| (machine..cases).step_by(machines).collect()).collect()
}

/// What came of all shares: an interrupt ends all of them, any other error only one.
fn outcome(ended: Vec<Result<Option<String>, RigError>>) -> Result<(), RigError> {
    let mut trouble = None;
    let mut errors = Vec::new();
    for end in ended {
        match end {
            Ok(unattributed) => trouble = trouble.or(unattributed),
            Err(error) => errors.push(error),
        }
    }
    let interrupted = errors.iter().position(|error| matches!(error, RigError::Interrupted));
    match errors.into_iter().nth(interrupted.unwrap_or(0)) {
        Some(error) => Err(error),
        None => trouble.map_or(Ok(()), |trouble| Err(RigError::Unattributed(trouble))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_goes_to_one_machine_and_no_machine_is_idle() {
        for (cases, machines) in [(10, 1), (10, 2), (10, 4), (3, 8), (1, 1), (0, 4)] {
            let shares = shares(cases, machines);
            let mut dealt: Vec<_> = shares.concat();
            dealt.sort();
            assert_eq!(dealt, (0..cases).collect::<Vec<_>>());
            assert_eq!(shares.len(), machines.min(cases));
            assert!(shares.iter().all(|share| !share.is_empty()));
        }
    }
}
