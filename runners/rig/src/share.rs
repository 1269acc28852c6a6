//! A share of a plan: rows that run in one machine after the other, of which one is enough unless rows bring it
//! down.

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use privet_report::{CaseReport, Place, Verdict};

use crate::blame::Blame;
use crate::boot::{Boot, End, Limits, News};
use crate::error::{RigError, cannot};
use crate::initramfs::Initramfs;
use crate::machine::{Emulator, Machine};
use crate::plan::{Event, GuestPlan, ModuleLoad, Plan};

/// How many boots in a row may end before any row has a verdict.
const FRUITLESS_BOOTS: usize = 2;

/// What all shares of a plan have in common.
pub(crate) struct Common<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) emulator: &'static Emulator,
    pub(crate) initramfs: Initramfs,
    /// What the guest's port needs.
    pub(crate) drivers: Vec<ModuleLoad>,
    /// KVM.
    pub(crate) modules: Vec<ModuleLoad>,
    /// The boots so far.
    pub(crate) boots: AtomicUsize,
    pub(crate) interrupt: BorrowedFd<'a>,
}

/// What a share tells.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Told {
    /// One more machine is booting.
    Booting,
    /// One less is.
    Booted,
    /// Something happened to a row of the [`Plan`].
    Row(Event),
}

impl Common<'_> {
    /// Runs the rows with the indices in `left`, one after the other: what becomes of the machine is then put down
    /// to the right row. Returns trouble that no row can be blamed for.
    ///
    /// # Errors
    /// If the machine cannot be started or breaks without a row to blame.
    pub(crate) fn run_share(
        &self,
        mut left: Vec<usize>,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Option<String>, RigError> {
        let plan = self.plan;
        let limits = Limits::new(plan.patience, self.emulator);
        let mut fruitless = 0;
        let mut unattributed = None;
        while !left.is_empty() {
            let number = self.boots.fetch_add(1, Ordering::Relaxed) + 1;
            let cases = left.iter().map(|&index| plan.cases[index].clone()).collect();
            let guest_plan = GuestPlan {
                cases,
                drivers: self.drivers.clone(),
                modules: self.modules.clone(),
                port: self.emulator.port,
            };
            let mut machine = self.start(&guest_plan)?;
            tell(Told::Booting);

            let before = left.len();
            let mut finished = vec![false; left.len()];
            let mut boot = Boot::new(&guest_plan, limits);
            let end = boot.watch(&mut machine, self.interrupt, &mut |news| match news {
                News::Ready => tell(Told::Booted),
                News::Row(Event::Started(case)) => tell(Told::Row(Event::Started(left[case]))),
                News::Row(Event::Finished(case, report)) => {
                    finished[case] = true;
                    let report = CaseReport { on: Place::Rig, ..*report };
                    tell(Told::Row(Event::Finished(left[case], report.into())));
                }
            })?;
            if !boot.ready {
                tell(Told::Booted);
            }
            let console = machine.console();
            if let Some(directory) = &plan.artifacts {
                let path = directory.join(format!("{}-boot-{number}.log", plan.vendor));
                fs::write(&path, &console).map_err(cannot("write", &path))?;
            }
            if end == End::Interrupted {
                return Err(RigError::Interrupted);
            }
            let running = boot.running();
            let blame = Blame::new(&end, &console, running.map(|case| &guest_plan.cases[case]));
            match running {
                Some(case) => {
                    finished[case] = true;
                    let report = blame.report(plan, limits, &guest_plan.cases[case]);
                    tell(Told::Row(Event::Finished(left[case], report.into())));
                }
                None if blame.verdict == Verdict::Fail => {
                    unattributed = unattributed.or(Some(blame.reason.clone()));
                }
                None => {}
            }
            let logged = boot.unattributed.take().map(|line| format!("the rig's kernel logged \"{line}\""));
            unattributed = unattributed.or(logged);

            let mut finished = finished.into_iter();
            left.retain(|_| finished.next() == Some(false));
            fruitless = if left.len() < before { 0 } else { fruitless + 1 };
            if fruitless == FRUITLESS_BOOTS {
                return Err(RigError::Machine(format!(
                    "{} in {FRUITLESS_BOOTS} boots in a row, before any row had a verdict",
                    blame.reason
                )));
            }
        }
        Ok(unattributed)
    }

    fn start(&self, guest_plan: &GuestPlan) -> Result<Machine, RigError> {
        let cannot_pack = |source| RigError::Io { what: "write the initramfs".into(), source };
        let mut archive: File = tempfile::tempfile().map_err(cannot_pack)?;
        self.initramfs.write(guest_plan, &mut archive).map_err(cannot_pack)?;
        Machine::start(self.emulator, &self.plan.kernel.image, archive)
    }
}
