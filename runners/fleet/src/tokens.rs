//! Tokens for what a host has little of: key ids, memory, the host itself. All processes on a machine share them, so that
//! rows that run side by side, whoever started them, never take more than there is.
//!
//! A token is a file; who has locked it (flock(2)) has it, and the kernel takes it back from whoever dies. Whoever wants
//! tokens of a kind first takes the lock of its queue and keeps that until it has all of them: one after the other
//! collects, so that none starves, and since whoever has tokens wants no more, all of them get theirs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is tried again.
const AGAIN: Duration = Duration::from_millis(5);

/// The tokens of a machine.
#[derive(Clone, Debug)]
pub struct Tokens {
    dir: PathBuf,
}

/// Some tokens of one kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Wanted {
    /// The kind, which is a part of file names.
    pub kind: String,
    /// How many are wanted.
    pub count: usize,
    /// How many there are.
    pub of: usize,
}

/// Tokens that somebody has. They are given back when this is dropped.
#[derive(Debug)]
#[must_use = "tokens are given back at once if nobody holds them"]
pub struct Held {
    _files: Vec<File>,
}

/// Why there are no tokens.
#[derive(Debug)]
pub enum NoTokens {
    /// There are not so many of this kind at all.
    TooFew(Wanted),
    /// Somebody said stop before there were.
    Stopped,
    /// The files cannot be used.
    Io(io::Error),
}

impl Tokens {
    /// The tokens of this machine.
    ///
    /// # Errors
    /// If no directory for them can be made.
    pub fn of_this_machine() -> io::Result<Self> {
        Self::within(Path::new("/run/lock")).or_else(|_| Self::within(&std::env::temp_dir()))
    }

    /// The tokens whose files are in a directory below this one, which all users share.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn within(parent: &Path) -> io::Result<Self> {
        let dir = parent.join("privet-tokens");
        if !dir.is_dir() {
            fs::create_dir(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777))?;
        }
        let tokens = Self { dir };
        tokens.file("alone").map(|_| tokens)
    }

    /// Takes all of these, and the host itself: for itself if it is to be `alone`, and together with others if not.
    /// Waits until they are there, or until `stop` says so.
    ///
    /// # Errors
    /// If there are never so many, or it was stopped, or the files cannot be used.
    pub fn take(&self, alone: bool, wanted: &[Wanted], stop: &dyn Fn() -> bool) -> Result<Held, NoTokens> {
        if let Some(too_few) = wanted.iter().find(|wanted| wanted.count > wanted.of) {
            return Err(NoTokens::TooFew(too_few.clone()));
        }
        let mut files = Vec::new();
        let queue = self.locked("alone.queue", stop, File::try_lock)?;
        let how = if alone { File::try_lock } else { File::try_lock_shared };
        files.push(self.locked("alone", stop, how)?);
        drop(queue);
        // Everybody takes kinds in the same order.
        let mut wanted: Vec<&Wanted> = wanted.iter().collect();
        wanted.sort();
        for Wanted { kind, count, of } in wanted {
            let _queue = self.locked(&format!("{kind}.queue"), stop, File::try_lock)?;
            let mut missing = *count;
            let mut free: Vec<File> = Vec::new();
            for number in 0..*of {
                free.push(self.file(&format!("{kind}.{number}")).map_err(NoTokens::Io)?);
            }
            while missing > 0 {
                let (got, left): (Vec<File>, Vec<File>) = {
                    let mut got = Vec::new();
                    let mut left = Vec::new();
                    for file in free {
                        let is_mine = got.len() < missing && is_locked(file.try_lock())?;
                        if is_mine { got.push(file) } else { left.push(file) }
                    }
                    (got, left)
                };
                missing -= got.len();
                files.extend(got);
                free = left;
                if missing > 0 {
                    wait(stop)?;
                }
            }
        }
        Ok(Held { _files: files })
    }

    /// The lock of a file, once it is to be had.
    fn locked(
        &self,
        name: &str,
        stop: &dyn Fn() -> bool,
        how: fn(&File) -> Result<(), TryLockError>,
    ) -> Result<File, NoTokens> {
        let file = self.file(name).map_err(NoTokens::Io)?;
        while !is_locked(how(&file))? {
            wait(stop)?;
        }
        Ok(file)
    }

    fn file(&self, name: &str) -> io::Result<File> {
        let path = self.dir.join(name);
        // Opened for reading only where it is another user's: that is enough for a lock.
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o666).open(&path);
        open.or_else(|_| File::open(&path))
    }
}

fn is_locked(tried: Result<(), TryLockError>) -> Result<bool, NoTokens> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(NoTokens::Io(error)),
    }
}

fn wait(stop: &dyn Fn() -> bool) -> Result<(), NoTokens> {
    if stop() {
        return Err(NoTokens::Stopped);
    }
    std::thread::sleep(AGAIN);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn wanted(count: usize) -> Wanted {
        Wanted { kind: "sev_es".into(), count, of: 3 }
    }

    #[test]
    fn there_are_never_more_in_use_than_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::within(dir.path()).unwrap();
        let (in_use, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (tokens, in_use, most, done) = (&tokens, &in_use, &most, &done);
                scope.spawn(move || {
                    for _ in 0..10 {
                        let count = 1 + thread % 3;
                        let held = tokens.take(false, &[wanted(count)], &|| false).unwrap();
                        let now = in_use.fetch_add(count, Ordering::SeqCst) + count;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        in_use.fetch_sub(count, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 80);
        let most = most.into_inner();
        assert!((2..=3).contains(&most), "{most}");
    }

    #[test]
    fn who_is_alone_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::within(dir.path()).unwrap();
        let together = [tokens.take(false, &[], &|| false).unwrap(), tokens.take(false, &[], &|| false).unwrap()];
        assert!(matches!(tokens.take(true, &[], &|| true), Err(NoTokens::Stopped)));
        drop(together);
        let alone = tokens.take(true, &[], &|| false).unwrap();
        assert!(matches!(tokens.take(false, &[], &|| true), Err(NoTokens::Stopped)));
        drop(alone);
        let _ = tokens.take(false, &[], &|| false).unwrap();
    }

    #[test]
    fn tokens_of_another_process_count_until_it_dies() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::within(dir.path()).unwrap();
        drop(tokens.take(false, &[wanted(3)], &|| false).unwrap());
        let file = dir.path().join("privet-tokens/sev_es.0");
        let mut other = Command::new("flock")
            .arg(&file)
            .args(["-c", "echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0];
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert!(matches!(tokens.take(false, &[wanted(3)], &|| true), Err(NoTokens::Stopped)));
        let two = tokens.take(false, &[wanted(2)], &|| false).unwrap();
        // Its shell reads the end of the pipe, and ends.
        drop(other.stdin.take());
        other.wait().unwrap();
        drop(two);
        let _ = tokens.take(false, &[wanted(3)], &|| false).unwrap();
    }

    #[test]
    fn what_there_never_is_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::within(dir.path()).unwrap();
        assert!(matches!(tokens.take(false, &[wanted(4)], &|| false), Err(NoTokens::TooFew(_))));
    }
}
