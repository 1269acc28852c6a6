//! A report file that grows as `FILE.partial` and gets its own name when it is whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::exit::Early;

/// What is appended to the name of a file that is not whole yet.
const PARTIAL: &str = ".partial";

/// Where `--output` or `--save` goes.
#[derive(Debug)]
pub enum Output {
    /// A file beside the wanted one, which takes its place at the end.
    Beside(Partial),
    /// A device or a pipe, which cannot be replaced.
    Stream(File),
}

impl Output {
    /// Makes sure that `path`, which `option` named, can be written, and leaves what is there untouched for now.
    ///
    /// # Errors
    /// One line that names the path and says why it cannot be written.
    pub fn create(path: &Path, option: &str) -> Result<Self, Early> {
        let early = |error: io::Error| {
            let why = match error.kind() {
                io::ErrorKind::WouldBlock => "another run is writing it".to_owned(),
                _ => error.to_string(),
            };
            Early::usage(format!(
                "cannot write {}: {why}; give {option} a file in a directory that you can write",
                path.display()
            ))
        };
        // What a symbolic link points to is replaced, not the link.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match target.metadata() {
            Ok(there) if there.is_dir() => return Err(early(io::ErrorKind::IsADirectory.into())),
            Ok(there) if !there.is_file() => {
                return File::options().write(true).open(&target).map(Self::Stream).map_err(early);
            }
            _ => {}
        }
        Partial::beside(&target).map(Self::Beside).map_err(early)
    }

    /// Whether [`Output::replace`] can be called.
    pub fn is_replaceable(&self) -> bool {
        matches!(self, Self::Beside(_))
    }

    /// Puts this text in the place of all that was written before.
    ///
    /// # Errors
    /// Of the file system, and for a stream, where that cannot be done.
    pub fn replace(&mut self, whole: &[u8]) -> io::Result<()> {
        match self {
            Self::Beside(partial) => partial.replace(whole),
            Self::Stream(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Puts the finished report in its place.
    ///
    /// # Errors
    /// Of `fsync(2)` and `rename(2)`.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::Beside(partial) => partial.finish(),
            Self::Stream(mut file) => file.flush(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Beside(partial) => partial.file.write(bytes),
            Self::Stream(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Beside(partial) => partial.file.flush(),
            Self::Stream(file) => file.flush(),
        }
    }
}

/// A file that is not whole yet. If this process is killed, it stays under its name, with what is known until then;
/// if it ends in any other way before the file is whole, the file goes.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    /// Starts the file that becomes `target`, in place of what a killed run has left of it.
    fn beside(target: &Path) -> io::Result<Self> {
        let mut path = target.to_owned().into_os_string();
        path.push(PARTIAL);
        let path = PathBuf::from(path);
        let file = File::options().write(true).create(true).truncate(false).open(&path)?;
        file.try_lock()?;
        let partial = Self { file, path, target: target.to_owned() };
        partial.file.set_len(0)?;
        Ok(partial)
    }

    fn replace(&mut self, whole: &[u8]) -> io::Result<()> {
        // A document grows: whoever is killed between the two leaves the new one.
        self.file.write_all_at(whole, 0)?;
        self.file.set_len(whole.len() as u64)
    }

    /// Gives it its name, so that it survives a crash of the system, too.
    fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        self.put()
    }

    fn put(mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.target)?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes a whole file, or none.
///
/// # Errors
/// Of the file system.
pub fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut partial = Partial::beside(path)?;
    partial.file.write_all(contents)?;
    partial.put()
}
