//! The source of a kernel: a tree, an archive, or the newest Debian package.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use crate::command::Runner;
use crate::debian_package::{Apt, Content, Package, find_file};
use crate::error::{KernelError, cannot};

/// Where the source is before it is unpacked.
pub enum KernelSource {
    /// A package that apt can download.
    Debian(Apt, Package),
    /// An archive that tar can read.
    Archive(PathBuf),
    /// A directory. It is only read.
    Tree(PathBuf),
}

impl KernelSource {
    /// The source at `path`, or else the newest Debian package, in `suite` or in any suite within reach. Apt's
    /// state is kept below `cache`.
    ///
    /// # Errors
    /// If there is nothing at `path`, or no package.
    pub fn find(
        cache: &Path,
        path: Option<&Path>,
        suite: Option<&str>,
        runner: &mut Runner<'_>,
        on_progress: &mut dyn FnMut(&str),
    ) -> Result<Self, KernelError> {
        if let Some(path) = path {
            let path = path.canonicalize().map_err(cannot("find", path))?;
            return Ok(if path.is_dir() { Self::Tree(path) } else { Self::Archive(path) });
        }
        on_progress("looking for the newest kernel source");
        let apt = Apt::new(cache, Content::Source, suite)?;
        let package = apt.find(None, runner)?;
        Ok(Self::Debian(apt, package))
    }

    /// What tells this source from others. A tree can change without telling.
    pub fn name(&self) -> String {
        match self {
            Self::Debian(_, package) => format!("{} {}", package.name, package.version),
            Self::Archive(path) | Self::Tree(path) => path.display().to_string(),
        }
    }

    /// The name of a cache entry for what is built from this source with these options.
    pub fn key(&self, options: &str) -> String {
        let version = match self {
            Self::Debian(_, package) => package.version.clone(),
            Self::Archive(path) | Self::Tree(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.chars().map(|c| if c.is_ascii_alphanumeric() || ".-+_".contains(c) { c } else { '_' }).collect()
            }
        };
        // The hash only has to be the same in the same build of this program: in another one a kernel may
        // be built once more.
        let mut hasher = DefaultHasher::new();
        (self.name(), options).hash(&mut hasher);
        if let Self::Archive(path) = self
            && let Ok(file) = path.metadata()
        {
            let modified = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            (file.len(), modified).hash(&mut hasher);
        }
        format!("{version}-{:016x}", hasher.finish())
    }

    /// The directory of the source, unpacked below `work` where necessary.
    ///
    /// # Errors
    /// If it cannot be downloaded or unpacked, or is no source of Linux.
    pub fn unpack(
        &self,
        work: &Path,
        runner: &mut Runner<'_>,
        on_progress: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, KernelError> {
        let archive = match self {
            Self::Tree(path) => return is_linux(path),
            Self::Archive(path) => path.clone(),
            Self::Debian(apt, package) => {
                on_progress(&format!("downloading {}", self.name()));
                let contents = apt.download(package, work, runner)?;
                find_file(&contents.join("usr/src"), |name| {
                    name.starts_with("linux-source-") && name.contains(".tar.")
                })?
            }
        };
        on_progress(&format!("unpacking {}", self.name()));
        let tree = work.join("source");
        fs::create_dir(&tree).map_err(cannot("create", &tree))?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&archive).arg("-C").arg(&tree).arg("--strip-components=1");
        let unpacked = runner.run("tar", &mut tar, &mut |_| {});
        match (self, unpacked) {
            // tar's own words do not name the file, and end in advice about nothing.
            (Self::Archive(path), Err(KernelError::Command { .. })) => Err(KernelError::Source(format!(
                "{} is no archive that tar can unpack, or is truncated: {WANTED}",
                path.display()
            ))),
            (_, Err(error)) => Err(error),
            // Not the directory into which it was unpacked, which is gone afterwards.
            (Self::Archive(path), Ok(())) => is_linux(&tree).map_err(|_| no_linux(path)),
            (_, Ok(())) => is_linux(&tree),
        }
    }
}

/// What to do about a source that is none.
const WANTED: &str = "name a tree or archive of the Linux kernel with --source";

/// The directory itself, if it has the source of Linux in it.
fn is_linux(tree: &Path) -> Result<PathBuf, KernelError> {
    if tree.join("virt/kvm/kvm_main.c").is_file() && tree.join("Makefile").is_file() {
        return Ok(tree.to_owned());
    }
    Err(no_linux(tree))
}

fn no_linux(source: &Path) -> KernelError {
    KernelError::Source(format!("{} has no virt/kvm/kvm_main.c: {WANTED}", source.display()))
}
