//! A directory in which things are built once: one build at a time, nothing half-built, the log of the last
//! failure.

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, poll};

use crate::command::Runner;
use crate::error::{KernelError, cannot};

/// The prefix of unfinished entries.
const UNFINISHED: &str = "unfinished-";

/// One build, with a directory of its own for all that is in the way afterwards.
pub type BuildStep<'a, T> = &'a mut dyn FnMut(&Path, &mut Runner<'_>, &mut dyn FnMut(&str)) -> Result<T, KernelError>;

/// Runs `build` while no other build in `cache` runs. The directory that it works in is removed afterwards,
/// however it ends; the output of a program that fails is kept in `failed-build.log`. What is in progress is
/// told to `on_progress`; `interrupt` ends the build when it becomes readable or hangs up.
///
/// # Errors
/// Those of `build`, and if the cache cannot be written.
pub fn build_alone<T>(
    cache: &Path,
    interrupt: BorrowedFd<'_>,
    on_progress: &mut dyn FnMut(&str),
    build: BuildStep<'_, T>,
) -> Result<T, KernelError> {
    fs::create_dir_all(cache).map_err(cannot("create", cache))?;
    let _only_build = lock(cache, interrupt, on_progress)?;
    remove_unfinished(cache, on_progress)?;

    let work = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(cache)
        .map_err(cannot("create a directory in", cache))?;
    let log_path = work.path().join("log");
    let log = File::create(&log_path).map_err(cannot("create", &log_path))?;
    let kept_log = cache.join("failed-build.log");
    let mut runner = Runner { interrupt, log, log_path: kept_log.clone() };
    let built = build(work.path(), &mut runner, on_progress);
    match &built {
        Err(KernelError::Command { .. }) => fs::rename(&log_path, &kept_log).map_err(cannot("write", &kept_log))?,
        Ok(_) if kept_log.exists() => fs::remove_file(&kept_log).map_err(cannot("remove", &kept_log))?,
        _ => {}
    }
    built
}

/// Puts the directory `finished` in its place in the cache. What was there goes with `work`.
///
/// # Errors
/// Of `rename(2)`.
pub fn put(finished: &Path, entry: &Path, work: &Path) -> Result<(), KernelError> {
    if entry.exists() {
        fs::rename(entry, work.join("replaced")).map_err(cannot("replace", entry))?;
    }
    fs::rename(finished, entry).map_err(cannot("write", entry))
}

/// Holds the cache until it is dropped: only one build at a time.
fn lock(
    cache: &Path,
    interrupt: BorrowedFd<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<Flock<File>, KernelError> {
    const RETRY_MS: u16 = 200;
    let path = cache.join("lock");
    let mut file = File::create(&path).map_err(cannot("create", &path))?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(cannot("lock", &path)(errno)),
        };
        on_progress("waiting for another build to end");
        let mut fds = [PollFd::new(interrupt, PollFlags::POLLIN)];
        if poll(&mut fds, RETRY_MS).is_ok_and(|ready| ready > 0) {
            return Err(KernelError::Interrupted);
        }
    }
}

/// Removes what a build left behind that was killed. The caller holds the lock.
fn remove_unfinished(cache: &Path, on_progress: &mut dyn FnMut(&str)) -> Result<(), KernelError> {
    for entry in fs::read_dir(cache).map_err(cannot("read", cache))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            on_progress("removing what a build left behind that was killed");
            fs::remove_dir_all(entry.path()).map_err(cannot("remove", &entry.path()))?;
        }
    }
    Ok(())
}
