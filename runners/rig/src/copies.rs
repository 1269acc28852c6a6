//! Rows that run in copies of a machine that was saved when its guest was ready. A copy is put back to there before each
//! row, which is as good as another one, and faster.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use privet_report::{CaseReport, Verdict};

use crate::boot::{Boot, End, News};
use crate::error::RigError;
use crate::machine::Machine;
use crate::plan::{CaseRun, Event, Request};
use crate::share::{Common, Told};
use crate::snapshot::Snapshot;

impl Common<'_> {
    /// Runs rows that `next` has until there are no more; others may take from there, too. A copy that dies takes its row
    /// with it, and no other. Returns trouble that no row can be blamed for.
    ///
    /// # Errors
    /// If a machine cannot be started, or the caller's interrupt came.
    pub(crate) fn run_copies(
        &self,
        snapshot: &Snapshot,
        next: &Mutex<impl Iterator<Item = usize>>,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Option<String>, RigError> {
        let mut unattributed = None;
        let mut idle = None;
        loop {
            let Some(row) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else {
                return Ok(unattributed);
            };
            let case = &self.plan.cases[row];
            tell(Told::Row(Event::Started(row)));
            let mut schedules = case.schedules.iter().copied().map(Some).collect::<Vec<_>>();
            if schedules.is_empty() {
                schedules.push(None);
            }
            let mut duration_us = 0;
            let mut last = None;
            for schedule in schedules {
                let (report, trouble) = self.run_copy(snapshot, &mut idle, row, schedule, tell)?;
                unattributed = unattributed.or(trouble);
                duration_us += report.duration_us;
                let passed = report.verdict == Verdict::Pass;
                // What passes under every schedule names none.
                last = Some(CaseReport { schedule: schedule.filter(|_| !passed), duration_us, ..report });
                if !passed {
                    break;
                }
            }
            if let Some(report) = last {
                tell(Told::Row(Event::Finished(row, report.into())));
            }
        }
    }

    /// Runs a row in a copy, the idle one if there is one, whose processors take turns as this seed says, if it is one.
    /// Returns its report, and trouble that it cannot be blamed for.
    fn run_copy(
        &self,
        snapshot: &Snapshot,
        idle: &mut Option<Machine>,
        row: usize,
        schedule: Option<u64>,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(CaseReport, Option<String>), RigError> {
        let case = &self.plan.cases[row];
        let started = Instant::now();
        // Nothing that the guest gets tells how many schedules there are: each can be repeated alone.
        let alone = CaseRun { schedules: Vec::new(), ..case.clone() };
        let mut machine = match idle.take() {
            Some(machine) => machine,
            None => Machine::copy(self.plan, &snapshot.machine())?,
        };
        machine.ask(self.plan, Request::Rows(vec![alone]), schedule)?;
        let mut boot = Boot::resumed(std::slice::from_ref(case), self.limits(), machine.usable_time());
        let mut report = None;
        let outcome = self.follow(&mut machine, &mut boot, &[row], &case.label, &mut |told| match told {
            Told::Row(Event::Finished(_, finished)) => report = Some(*finished),
            Told::Recorded(..) => tell(told),
            _ => {}
        })?;
        *idle = outcome.is_done.then_some(machine);
        // One that did not get as far as the row can still be put down to nothing else.
        Ok((report.unwrap_or_else(|| outcome.blame.report(self.plan, case, started.elapsed())), outcome.unattributed))
    }

    /// The functions of the snapshot's kernel, in the format of /proc/kallsyms.
    ///
    /// # Errors
    /// If a machine cannot be started, or does not say it, or the caller's interrupt came.
    pub(crate) fn symbols(&self, snapshot: &Snapshot) -> Result<String, RigError> {
        if let Some(known) = snapshot.symbols() {
            return Ok(known);
        }
        let mut machine = Machine::copy(self.plan, &snapshot.machine())?;
        machine.ask(self.plan, Request::Symbols, None)?;
        let mut symbols = None;
        let end = Boot::resumed(&[], self.limits(), machine.usable_time()).watch(
            &mut machine,
            self.interrupt,
            &mut |news| {
                if let News::Symbols(text) = news {
                    symbols = Some(text);
                }
            },
        )?;
        match symbols {
            _ if end == End::Interrupted => Err(RigError::Interrupted),
            Some(symbols) => snapshot.keep_symbols(&symbols).map(|()| symbols),
            None => Err(RigError::Machine("it did not say what functions its kernel has".into())),
        }
    }
}
