//! The trial of one mutant: the module is made, the kernel boots with it, and rows run until one is red.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use privet_kernel::{BuildTree, Kernel, strip_debug_info};
use privet_mutation::{Compiled, Fate, Killers, Linked, Recipe, RecipeError, Rooms, Trial};
use privet_report::one_line;
use privet_rig::{Event, Plan, Progress, RigError};

use super::candidates::Candidate;
use super::clean::{Clean, Row};
use super::half::Half;
use super::stop::Stop;
use super::watchers::Watchers;
use super::{cannot, failed, has_to_notice};
use crate::commands::mutants::limit_with_a_defect;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::plan::Job;

/// How long any row may take, by the clock of its guest, which no other work on this machine makes slower.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// What all trials share.
pub(super) struct Bench<'a> {
    tree: &'a BuildTree,
    half: Half,
    watchers: &'a Watchers,
    program: &'a Path,
    clean: &'a Clean,
    jobs: &'a [Job],
    judge: &'a str,
    killers: &'a RwLock<Killers>,
    /// How many rows run on one mutant at most.
    most_rows: usize,
    /// The modules that a boot needs, without debug info.
    modules: tempfile::TempDir,
    /// Where images are linked.
    rooms: Rooms<'a>,
    interrupt: &'a Interrupt,
}

impl<'a> Bench<'a> {
    /// A bench with the unchanged modules on it.
    ///
    /// # Errors
    /// If they cannot be read, or there is no place for them.
    pub(super) fn new(
        (tree, half): (&'a BuildTree, Half),
        (watchers, program, jobs): (&'a Watchers, &'a Path, &'a [Job]),
        clean: &'a Clean,
        judge: &'a str,
        killers: &'a RwLock<Killers>,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Early> {
        let modules = tempfile::tempdir().map_err(cannot("create a directory in", &std::env::temp_dir()))?;
        for module in tree.kernel.load_order_of_parts(&half.modules()).map_err(|error| failed(error.to_string()))? {
            let name = module.path.file_name().unwrap_or_default();
            strip_debug_info(&module.path, &modules.path().join(name)).map_err(|error| failed(error.to_string()))?;
        }
        let (rooms, most_rows) = (Rooms::of(tree, interrupt.as_fd()), usize::MAX);
        Ok(Self { tree, half, watchers, program, clean, jobs, judge, killers, most_rows, modules, rooms, interrupt })
    }

    /// The same, where no more rows run on a mutant.
    pub(super) fn with_most_rows(self, most_rows: usize) -> Self {
        Self { most_rows, ..self }
    }

    /// Tries a mutant.
    ///
    /// # Errors
    /// If it cannot be made for a reason that is not its own, or the run is interrupted.
    pub(super) fn try_out(&self, candidate: &Candidate) -> Result<Trial, Early> {
        let start = Instant::now();
        let ran = AtomicUsize::new(0);
        let fate = self.fate(candidate, &ran)?;
        Ok(Trial {
            name: candidate.point.name(),
            content: candidate.content.clone(),
            judge: self.judge.to_owned(),
            fate,
            rows: ran.into_inner(),
            milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn fate(&self, candidate: &Candidate, ran: &AtomicUsize) -> Result<Fate, Early> {
        let mut rows = self.clean.reaching(&candidate.point, &candidate.callers).rows;
        // Each of them was named because it notices it, and another one that does proves nothing.
        let mut named = BTreeSet::new();
        if let Some(edit) = &candidate.named {
            let its_name = |id| has_to_notice(id, edit, self.half);
            rows.retain(|row| its_name(&row.id).is_some());
            let is_blind = |id: &str| self.clean.blind.iter().any(|blind| blind.id == id);
            let jobs = self.jobs.iter().filter(|job| !is_blind(&job.id));
            named = jobs.filter_map(|job| its_name(&job.id)).map(str::to_owned).collect();
        }
        let killers = self.killers.read().unwrap_or_else(PoisonError::into_inner);
        killers.sort(&candidate.point.name(), &mut rows, |row| (&row.id, row.duration_us));
        drop(killers);
        rows.truncate(self.most_rows);
        let work = tempfile::tempdir().map_err(cannot("create a directory in", &std::env::temp_dir()))?;
        let point = &candidate.point;
        let recipe = Recipe::of(self.tree, &point.file).map_err(|error| failed(error.to_string()))?;
        let early = |error: RecipeError| self.interrupted().unwrap_or_else(|| failed(error.to_string()));
        let object = match recipe.compile(&point.applied_to(&candidate.text), work.path()).map_err(early)? {
            Compiled::Same => return Ok(Fate::Same),
            Compiled::Rejected(complaint) => return Ok(Fate::Rejected { complaint }),
            // What no row executes may still be nothing to the compiler.
            Compiled::Object(_) if rows.is_empty() => return Ok(Fate::Unreached),
            Compiled::Object(object) => object,
        };
        let (image, modules) = match recipe.link(&object, work.path(), &self.rooms).map_err(early)? {
            Linked::Rejected(complaint) => return Ok(Fate::Rejected { complaint }),
            Linked::Module(module) => (self.tree.kernel.image.clone(), self.modules_with(&module, work.path())?),
            Linked::Image(image) => (image, self.modules.path().to_owned()),
        };
        let kernel = Kernel::named(&image, &modules).map_err(|error| failed(error.to_string()))?;
        let jobs: Vec<Job> = rows.iter().filter_map(|row| self.job(row)).collect();
        self.noticed(&kernel, &jobs, named, ran)
    }

    /// What ends everything once the whole run is interrupted.
    fn interrupted(&self) -> Option<Early> {
        self.interrupt.signal().map(|signal| Early {
            status: Status::Interrupted(signal),
            message: "interrupted: what was tried is kept".to_owned(),
        })
    }

    /// The job of a row, which waits no longer for what never comes than it takes to be sure of that.
    fn job(&self, row: &Row) -> Option<Job> {
        let job = self.jobs.iter().find(|job| job.id == row.id)?;
        Some(Job { limit: limit_with_a_defect(job.limit, row.duration_us, LEAST_PATIENCE), ..job.clone() })
    }

    /// A directory with all modules, one of them changed.
    fn modules_with(&self, changed: &Path, work: &Path) -> Result<PathBuf, Early> {
        let modules = work.join("modules");
        fs::create_dir(&modules).map_err(cannot("create", &modules))?;
        let name = changed.file_name().unwrap_or_default();
        strip_debug_info(changed, &modules.join(name)).map_err(|error| failed(error.to_string()))?;
        for entry in fs::read_dir(self.modules.path()).map_err(cannot("read", self.modules.path()))?.flatten() {
            if entry.file_name() != name {
                symlink(entry.path(), modules.join(entry.file_name())).map_err(cannot("write", &modules))?;
            }
        }
        Ok(modules)
    }

    /// Runs the rows in their order until one is red, and each that is `named` was for one of its types.
    fn noticed(
        &self,
        kernel: &Kernel,
        jobs: &[Job],
        mut named: BTreeSet<String>,
        ran: &AtomicUsize,
    ) -> Result<Fate, Early> {
        let stop = Stop::beside(self.interrupt)
            .map_err(|error| failed(format!("cannot watch for the end of a run: {error}")))?;
        let plan = self.watchers.plan(kernel.clone(), self.program, self.half, jobs);
        let plan = Plan { keeps_snapshot: false, ..plan };
        let mut red: Option<(String, String)> = None;
        let ended = privet_rig::run(&plan, stop.as_fd(), &mut |progress| {
            // What the unchanged kernel does, too, though not in its clean run, is no sign of the change.
            if let Progress::Row(Event::Finished(_, report)) = progress
                && !self.watchers.is_known(&report)
            {
                ran.fetch_add(1, Ordering::Relaxed);
                let (said, reason) = self.watchers.said(&report);
                let before = self.clean.rows.iter().find(|row| row.id == report.id);
                // One that passes elsewhere and skips here has noticed, too: the kernel offers less than it did.
                if let Some(reason) = before.and_then(|before| said.differs_from(&before.said, &reason)) {
                    named.retain(|name| report.id.split_once('.').is_none_or(|(_, row)| row != name));
                    red.get_or_insert((report.id, reason));
                    if named.is_empty() {
                        stop.now();
                    }
                }
            }
        });
        if let Some(early) = self.interrupted() {
            return Err(early);
        }
        Ok(match (red, ended) {
            (Some(_), _) if !named.is_empty() => Fate::Overlooked { by: named.into_iter().collect() },
            (Some((by, reason)), _) => Fate::Killed { by, reason },
            (None, Ok(())) => Fate::Survived,
            // The kernel says so itself, or does not get that far.
            (None, Err(error @ (RigError::Machine(_) | RigError::Unattributed(_)))) => {
                Fate::KilledAtBoot { reason: one_line(&error.to_string()) }
            }
            (None, Err(error)) => return Err(failed(error.to_string())),
        })
    }
}
