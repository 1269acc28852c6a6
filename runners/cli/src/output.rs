//! A report file that is there as a whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::exit::Early;

/// Where `--output` or `--save` goes.
#[derive(Debug)]
pub enum Output {
    /// A file beside the wanted one, which takes its place at the end.
    Beside(NamedTempFile, PathBuf),
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
            Early::usage(format!(
                "cannot write {}: {error}; give {option} a file in a directory that you can write",
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
        beside(&target).map(|file| Self::Beside(file, target)).map_err(early)
    }

    /// Puts the finished report in its place.
    ///
    /// # Errors
    /// Of `fsync(2)` and `rename(2)`.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::Beside(file, target) => put(file, &target),
            Self::Stream(mut file) => file.flush(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            // Not through the wrapper, whose errors name the file that nobody asked for.
            Self::Beside(file, _) => file.as_file_mut().write(bytes),
            Self::Stream(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Beside(file, _) => file.as_file_mut().flush(),
            Self::Stream(file) => file.flush(),
        }
    }
}

/// Writes a whole file, or none.
///
/// # Errors
/// Of the file system.
pub fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = beside(path)?;
    file.write_all(contents)?;
    file.persist(path)?;
    Ok(())
}

/// A temporary file in the directory of `target`, as readable as any new file. It removes itself unless it
/// is put in place.
fn beside(target: &Path) -> io::Result<NamedTempFile> {
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    tempfile::Builder::new().prefix(".privet-").permissions(Permissions::from_mode(0o666)).tempfile_in(directory)
}

fn put(file: NamedTempFile, target: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(target)?;
    Ok(())
}
