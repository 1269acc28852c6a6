//! A share of a plan: rows that run in one machine after the other, of which one is enough unless rows bring it
//! down.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use privet_report::{CaseReport, Place, Verdict};
use privet_sim::Record;

use crate::blame::Blame;
use crate::boot::{Boot, End, Limits, News};
use crate::error::{RigError, cannot};
use crate::initramfs::Initramfs;
use crate::machine::{Boots, Emulator, Machine, emulator};
use crate::module_room::Layout;
use crate::modules::{check_module_params, module_loads, modules};
use crate::plan::{CaseRun, Event, GuestModules, GuestPlan, ModuleLoad, Plan, Work};

/// How many boots in a row may end before any row has a verdict.
const FRUITLESS_BOOTS: usize = 2;

/// How many more attempts a row gets that reached its time limit because the system was busy.
const STARVED_ATTEMPTS: u32 = 3;

/// A row that could not use its time. By the clock of its guest, which goes on while that waits for a core, it gets a
/// multiple of its limit; we hold it to the limit itself, by the time that the machine could use.
struct Stretched {
    attempts: u32,
    factor: u64,
}

impl Default for Stretched {
    fn default() -> Self {
        Self { attempts: 0, factor: 1 }
    }
}

/// What all machines of a plan have in common.
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
    /// One of them wrote this to its console.
    Console(String),
    /// One has set these page frames aside for modules.
    Room(Vec<u64>),
    /// One less is.
    Booted,
    /// Something happened to a row of the [`Plan`].
    Row(Event),
    /// What was executed while this row of the [`Plan`] ran.
    Recorded(usize, Record),
}

/// What became of a machine.
pub(crate) struct Outcome {
    /// Why it ended.
    pub(crate) blame: Blame,
    /// Of its rows, those that have a report now.
    pub(crate) finished: Vec<bool>,
    /// Those that need more time, which they did not get because the system was busy, with what they said, and how
    /// many times as much.
    pub(crate) starved: Vec<(usize, Box<CaseReport>, u64)>,
    /// Trouble that no row can be blamed for.
    pub(crate) unattributed: Option<String>,
    /// Whether the guest did all that it was asked.
    pub(crate) is_done: bool,
}

impl<'a> Common<'a> {
    /// What the machines of this plan have in common.
    ///
    /// # Errors
    /// If a module parameter has no effect, or the kernel's modules or the worker cannot be used.
    pub(crate) fn new(plan: &'a Plan, interrupt: BorrowedFd<'a>) -> Result<Self, RigError> {
        let emulator = emulator(plan.machine);
        let vendor = plan.vendor();
        check_module_params(&plan.kernel, vendor, &plan.module_params)?;
        let modules = modules(&plan.kernel, vendor)?;
        let drivers = plan.kernel.load_order_of_parts(emulator.drivers)?;
        let initramfs = Initramfs::new(&plan.worker, &plan.programs, &plan.files, (&drivers, &modules))?;
        let (drivers, modules) = (module_loads(plan, &drivers), module_loads(plan, &modules));
        Ok(Self { plan, emulator, initramfs, drivers, modules, boots: AtomicUsize::new(0), interrupt })
    }

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
        let mut fruitless = 0;
        let mut stretched: BTreeMap<usize, Stretched> = BTreeMap::new();
        let mut unattributed = None;
        while !left.is_empty() {
            let cases: Vec<CaseRun> = left.iter().map(|&index| self.plan.cases[index].clone()).collect();
            let mut in_guest = cases.clone();
            for (case, index) in in_guest.iter_mut().zip(&left) {
                case.limit_ms = case.limit_ms.saturating_mul(stretched.get(index).map_or(1, |row| row.factor));
            }
            let mut machine = self.switch_on(&self.archive(Work::Rows(in_guest))?, None)?;
            tell(Told::Booting);
            let mut boot = Boot::new(&cases, self.limits());
            let outcome = self.follow(&mut machine, &mut boot, &left, &self.name_of_boot(), tell)?;
            if !boot.ready {
                tell(Told::Booted);
            }
            unattributed = unattributed.or(outcome.unattributed);

            let mut finished = outcome.finished;
            let is_fruitless = !finished.contains(&true) && outcome.starved.is_empty();
            for (case, report, times) in outcome.starved {
                let row = stretched.entry(left[case]).or_default();
                if row.attempts == STARVED_ATTEMPTS {
                    finished[case] = true;
                    tell(Told::Row(Event::Finished(left[case], report)));
                }
                row.attempts += 1;
                row.factor = row.factor.saturating_mul(times);
            }
            let mut finished = finished.into_iter();
            left.retain(|_| finished.next() == Some(false));
            fruitless = if is_fruitless { fruitless + 1 } else { 0 };
            if fruitless == FRUITLESS_BOOTS {
                return Err(RigError::Machine(format!(
                    "{} in {FRUITLESS_BOOTS} boots in a row, before any row had a verdict",
                    outcome.blame.reason
                )));
            }
        }
        Ok(unattributed)
    }

    /// A guest's report, with where it is from.
    fn placed(&self, report: CaseReport) -> Box<CaseReport> {
        CaseReport { on: Place::Rig, machine: Some(self.plan.machine.to_string()), ..report }.into()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits::new(self.plan.patience, self.emulator)
    }

    /// What the next boot is called.
    pub(crate) fn name_of_boot(&self) -> String {
        format!("boot-{}", self.boots.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Follows a machine to its end and gives every row of it that started a report. `rows` are the indices of its
    /// rows in the plan; its console is kept under `name`.
    ///
    /// # Errors
    /// If the machine cannot be read from, or the caller's interrupt came.
    pub(crate) fn follow(
        &self,
        machine: &mut Machine,
        boot: &mut Boot<'_>,
        rows: &[usize],
        name: &str,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Outcome, RigError> {
        let plan = self.plan;
        let mut finished = vec![false; rows.len()];
        let mut starved = Vec::new();
        let end = boot.watch(machine, self.interrupt, &mut |news| match news {
            News::Console(line) => tell(Told::Console(line)),
            News::Room(frames) => tell(Told::Room(frames)),
            News::Ready => tell(Told::Booted),
            News::Starved(case, report, times) => starved.push((case, self.placed(*report), times)),
            News::Row(Event::Started(case)) => tell(Told::Row(Event::Started(rows[case]))),
            News::Row(Event::Finished(case, report)) => {
                finished[case] = true;
                tell(Told::Row(Event::Finished(rows[case], self.placed(*report))));
            }
            News::Recorded(Some(case), record) => tell(Told::Recorded(rows[case], record)),
            // A machine for rows has no program.
            News::Recorded(None, _) | News::Printed(..) | News::Exited(_) | News::Symbols(_) | News::Logged(_) => {}
        })?;
        let console = machine.console();
        if let Some(directory) = &plan.artifacts {
            let path = directory.join(format!("{}-{name}.log", plan.vendor()));
            fs::write(&path, &console).map_err(cannot("write", &path))?;
        }
        if end == End::Interrupted {
            return Err(RigError::Interrupted);
        }
        let running = boot.running().map(|case| (case, plan.cases[rows[case]].clone()));
        let blame = Blame::new(&end, &console, running.as_ref().map(|(_, case)| case), self.limits());
        let logged = boot.unattributed.take().map(|line| format!("the rig's kernel logged \"{line}\""));
        let panicked = (running.is_none() && blame.verdict == Verdict::Fail).then(|| blame.reason.clone());
        if let Some((case, run)) = running {
            finished[case] = true;
            let report = boot.doubted(blame.report(plan, &run, boot.running_for()));
            tell(Told::Row(Event::Finished(rows[case], report.into())));
        }
        Ok(Outcome { blame, finished, starved, unattributed: panicked.or(logged), is_done: end == End::Done })
    }

    /// The root file system of a machine that does this.
    ///
    /// # Errors
    /// If it cannot be packed.
    pub(crate) fn archive(&self, work: Work) -> Result<Vec<u8>, RigError> {
        self.archive_with(work, GuestModules::Files(self.modules.clone()))
    }

    /// The root file system of a machine that waits for rows once it has got KVM's modules, which are laid out like this.
    ///
    /// # Errors
    /// If it cannot be packed.
    pub(crate) fn archive_without_modules(&self, layout: &Layout) -> Result<Vec<u8>, RigError> {
        self.archive_with(Work::FromPort, GuestModules::Memory(layout.room()))
    }

    /// KVM's modules for a machine that gets them once it was booted.
    pub(crate) fn layout(&self) -> Layout {
        Layout::of(self.modules.iter().zip(self.initramfs.modules()))
    }

    fn archive_with(&self, work: Work, modules: GuestModules) -> Result<Vec<u8>, RigError> {
        let plan = GuestPlan { work, drivers: self.drivers.clone(), modules, port: self.emulator.port };
        let mut archive = Vec::new();
        self.initramfs.write(&plan, &mut archive).map_err(cannot_pack)?;
        Ok(archive)
    }

    /// Switches a machine on that has this root file system. Ours is saved to `save_to` once its guest is ready.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn switch_on(&self, archive: &[u8], save_to: Option<&Path>) -> Result<Machine, RigError> {
        self.start(archive, save_to, false)
    }

    /// The same; what comes over the console of ours is told, too.
    pub(crate) fn switch_on_and_listen(&self, archive: &[u8]) -> Result<Machine, RigError> {
        self.start(archive, None, true)
    }

    fn start(&self, archive: &[u8], save_to: Option<&Path>, shows_log: bool) -> Result<Machine, RigError> {
        let mut initramfs = tempfile::tempfile().map_err(cannot_pack)?;
        initramfs.write_all(archive).map_err(cannot_pack)?;
        Machine::start(Boots { plan: self.plan, initramfs, save_to, shows_log })
    }
}

fn cannot_pack(source: io::Error) -> RigError {
    RigError::Io { what: "write the initramfs".into(), source }
}
