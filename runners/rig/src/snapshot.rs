//! Saved machines: each was booted once, and saved when its guest was ready for rows. They are kept in the cache, by
//! everything that makes them what they are.

use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use privet_kernel::build_cache::{build_alone, put};
use privet_sim::Extensions;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use xxhash_rust::xxh3::Xxh3;

use crate::boot::Boot;
use crate::error::{RigError, cannot};
use crate::machine::{Machine, command_line};
use crate::module_room::Layout;
use crate::plan::{SimOptions, Work};
use crate::share::{Common, Told};

/// The files of a snapshot.
const FACTS: &str = "facts.json";
const MACHINE: &str = "machine";
/// The page frames that its guest has set aside for modules, if it waits for them.
const FRAMES: &str = "frames.json";
/// The functions of its kernel, once somebody has asked for them.
const SYMBOLS: &str = "symbols";

/// How many snapshots stay: of more, those go that were not used for the longest time.
const KEPT: usize = 8;

/// What a snapshot is of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// The release of the kernel that is running in it.
    pub kernel: String,
    /// The parameters of its modules, as they were asked for: `kvm.mmio_caching=0`.
    pub module_params: Vec<String>,
    /// What the machine is like.
    pub options: SimOptions,
    /// What the kernel complained about before its guest was ready.
    pub trouble: Option<String>,
    /// Whether it waits for KVM's modules, and not for rows.
    #[serde(default)]
    pub without_modules: bool,
}

/// A snapshot that stays as long as this is there.
pub(crate) struct Snapshot {
    dir: PathBuf,
    /// What the kernel complained about before its guest was ready.
    pub(crate) trouble: Option<String>,
    _in_use: Flock<File>,
    /// What it goes with, if it is not kept.
    _not_kept: Option<TempDir>,
}

impl Snapshot {
    /// The snapshot for a plan. One that is not there yet is made, while `on_booting` is told how many machines boot.
    ///
    /// # Errors
    /// If the machine does not get ready, or the cache cannot be written.
    pub(crate) fn of(common: &Common<'_>, on_booting: &mut dyn FnMut(usize)) -> Result<Self, RigError> {
        Self::kept(common, &common.archive(Work::FromPort)?, on_booting)
    }

    /// The snapshot of a machine with this root file system.
    fn kept(common: &Common<'_>, archive: &[u8], on_booting: &mut dyn FnMut(usize)) -> Result<Self, RigError> {
        let cache = cache_dir()?;
        let dir = cache.join(key(common, archive)?);
        if let Some(snapshot) = Self::open(&dir) {
            return Ok(snapshot);
        }
        build_alone(&cache, common.interrupt, &mut |_| {}, &mut |work, _, _| {
            // Somebody else may have made it meanwhile.
            if Self::open(&dir).is_none() {
                on_booting(1);
                let made = boot(common, archive, work);
                on_booting(0);
                match made {
                    Ok(finished) => put(&finished, &dir, work)?,
                    Err(error) => return Ok(Err(error)),
                }
                drop_oldest(&cache, &dir);
            }
            Ok(Ok(()))
        })??;
        let gone = || RigError::Machine(format!("{} is gone already: run this again", dir.display()));
        Self::open(&dir).ok_or_else(gone)
    }

    /// The snapshot in this directory, if it is whole.
    fn open(dir: &Path) -> Option<Self> {
        let path = dir.join(FACTS);
        let facts: Facts = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let file = File::options().append(true).open(&path).ok()?;
        // When it was used last.
        let _ = file.set_modified(SystemTime::now());
        let in_use = Flock::lock(file, FlockArg::LockSharedNonblock).ok()?;
        Some(Self { dir: dir.to_owned(), trouble: facts.trouble, _in_use: in_use, _not_kept: None })
    }

    /// A snapshot for one run, which nobody else will want: its machine goes on from one without KVM's modules, which others
    /// may want, and which is made if it is not there yet.
    ///
    /// # Errors
    /// If the machine does not get ready, or there is no place for it.
    pub(crate) fn once(common: &Common<'_>, on_booting: &mut dyn FnMut(usize)) -> Result<Self, RigError> {
        let layout = common.layout();
        let before = Self::kept(common, &common.archive_without_modules(&layout)?, on_booting)?;
        let place = tempfile::tempdir().map_err(cannot("create a directory in", &std::env::temp_dir()))?;
        on_booting(1);
        let made = load_modules(common, &before, layout, place.path());
        on_booting(0);
        let made = made?;
        let gone = || RigError::Machine(format!("{} is gone already: run this again", made.display()));
        let snapshot = Self::open(&made).ok_or_else(gone)?;
        Ok(Self { _not_kept: Some(place), ..snapshot })
    }

    /// The saved machine.
    pub(crate) fn machine(&self) -> PathBuf {
        self.dir.join(MACHINE)
    }

    /// The functions of its kernel, if they were kept.
    pub(crate) fn symbols(&self) -> Option<String> {
        fs::read_to_string(self.dir.join(SYMBOLS)).ok()
    }

    /// Keeps them.
    ///
    /// # Errors
    /// Of `write(2)` and `rename(2)`.
    pub(crate) fn keep_symbols(&self, symbols: &str) -> Result<(), RigError> {
        let unfinished = tempfile::NamedTempFile::new_in(&self.dir).map_err(cannot("create a file in", &self.dir))?;
        let path = self.dir.join(SYMBOLS);
        fs::write(unfinished.path(), symbols).map_err(cannot("write", unfinished.path()))?;
        unfinished.persist(&path).map(drop).map_err(|error| cannot("write", &path)(error.error))
    }
}

/// Boots a machine and returns the directory that it was saved to, below `work`.
fn boot(common: &Common<'_>, archive: &[u8], work: &Path) -> Result<PathBuf, RigError> {
    let finished = create_in(work)?;
    let machine = common.switch_on(archive, Some(&finished.join(MACHINE)))?;
    finish(common, machine, finished)
}

/// Has a machine load KVM's modules that was saved before, and returns the directory that it was saved to, below `work`.
fn load_modules(common: &Common<'_>, before: &Snapshot, layout: Layout, work: &Path) -> Result<PathBuf, RigError> {
    let contents = work.join("modules");
    fs::write(&contents, &layout.contents).map_err(cannot("write", &contents))?;
    let finished = create_in(work)?;
    let before = (before.machine(), before.dir.join(FRAMES));
    let save_to = finished.join(MACHINE);
    let machine = Machine::copy_with_modules(common.plan, before, (contents, layout.modules), save_to)?;
    finish(common, machine, finished)
}

fn create_in(work: &Path) -> Result<PathBuf, RigError> {
    let finished = work.join("finished");
    fs::create_dir(&finished).map_err(cannot("create", &finished))?;
    Ok(finished)
}

/// Follows a machine until it has been saved, and writes down what it is.
fn finish(common: &Common<'_>, mut machine: Machine, finished: PathBuf) -> Result<PathBuf, RigError> {
    let plan = common.plan;
    let mut boot = Boot::new(&[], common.limits());
    let (mut ready, mut room) = (false, None);
    let outcome = common.follow(&mut machine, &mut boot, &[], &common.name_of_boot(), &mut |told| match told {
        Told::Booted => ready = true,
        Told::Room(frames) => room = Some(frames),
        _ => {}
    })?;
    if let Some(frames) = &room {
        let path = finished.join(FRAMES);
        fs::write(&path, serde_json::to_vec(frames).expect("numbers are data")).map_err(cannot("write", &path))?;
    }
    if !(ready || room.is_some()) || !finished.join(MACHINE).exists() {
        return Err(RigError::Machine(format!("{}, before its guest was ready", outcome.blame.reason)));
    }
    let facts = Facts {
        kernel: plan.kernel.release.clone(),
        module_params: plan.module_params.iter().map(ToString::to_string).collect(),
        options: plan.sim.clone(),
        trouble: outcome.unattributed,
        without_modules: room.is_some(),
    };
    let path = finished.join(FACTS);
    let text = serde_json::to_vec(&facts).expect("facts are data");
    fs::write(&path, text).map_err(cannot("write", &path))?;
    Ok(finished)
}

/// The name of the snapshot of a machine with this root file system: everything that decides what is in it, the
/// executable among it, which is machine and worker, and so the version of both; and what of this host's processor the
/// machine's have.
fn key(common: &Common<'_>, archive: &[u8]) -> Result<String, RigError> {
    let plan = common.plan;
    let kernel = fs::read(&plan.kernel.image).map_err(cannot("read", &plan.kernel.image))?;
    let worker = fs::read(&plan.worker).map_err(cannot("read", &plan.worker))?;
    // The hash only has to be the same in the same build of this program.
    let mut hasher = Xxh3::new();
    (env!("CARGO_PKG_VERSION"), command_line(plan), &plan.sim, Extensions::of_host(), kernel, worker, archive)
        .hash(&mut hasher);
    Ok(format!("{}-{:016x}", plan.kernel.release, hasher.finish()))
}

/// Where snapshots are: beside the kernels.
pub(crate) fn cache_dir() -> Result<PathBuf, RigError> {
    Ok(privet_kernel::cache_dir()?.with_file_name("snapshots"))
}

/// All snapshots with what they are of, the one that was used last first.
///
/// # Errors
/// If there is no cache directory.
pub fn snapshots() -> Result<Vec<(PathBuf, Facts)>, RigError> {
    let read = |dir: &PathBuf| serde_json::from_slice(&fs::read(dir.join(FACTS)).ok()?).ok();
    Ok(by_last_use(&cache_dir()?).into_iter().filter_map(|dir| read(&dir).map(|facts| (dir, facts))).collect())
}

/// Drops all snapshots that nobody is using, and returns how many.
///
/// # Errors
/// If there is no cache directory.
pub fn drop_snapshots() -> Result<usize, RigError> {
    Ok(by_last_use(&cache_dir()?).iter().filter(|dir| drop_unused(dir)).count())
}

/// Drops those that are too many, but not `new`.
fn drop_oldest(cache: &Path, new: &Path) {
    for dir in by_last_use(cache).iter().filter(|dir| *dir != new).skip(KEPT - 1) {
        drop_unused(dir);
    }
}

/// The directories of all snapshots in a cache, the one that was used last first.
fn by_last_use(cache: &Path) -> Vec<PathBuf> {
    let last_use = |dir: &PathBuf| dir.join(FACTS).metadata().and_then(|facts| facts.modified());
    let dirs = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut dirs: Vec<_> = dirs.filter_map(|dir| Some((last_use(&dir).ok()?, dir))).collect();
    dirs.sort();
    dirs.into_iter().rev().map(|(_, dir)| dir).collect()
}

/// Removes a snapshot, unless somebody is using it. Its facts go first: without them there is no snapshot.
fn drop_unused(dir: &Path) -> bool {
    let facts = dir.join(FACTS);
    let Ok(file) = File::open(&facts) else { return false };
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    lock.is_ok() && fs::remove_file(&facts).is_ok() && fs::remove_dir_all(dir).is_ok()
}
