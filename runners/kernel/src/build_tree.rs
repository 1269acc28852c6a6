//! A kernel with its source and all that was compiled of it, kept so that one file can be compiled again.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::build_cache::{build_alone, put};
use crate::build_tools;
use crate::error::{KernelError, cannot};
use crate::kernel::{Kernel, cache_dir};
use crate::kernel_build::{BuildRequest, fragment};
use crate::kernel_make::{BUILT_IMAGE, Make};
use crate::kernel_source::KernelSource;

/// In an entry of the cache: what was compiled, and that it is all of it.
pub(crate) const OBJECTS: &str = "objects";
pub(crate) const COMPLETE: &str = "complete";

/// The cache of trees, beside that of kernels.
pub(crate) fn trees_beside(kernels: &Path) -> PathBuf {
    kernels.with_file_name("trees")
}

/// Line tables, and no more of debug info.
pub(crate) const LINES_ONLY: &str = "-g1";

/// A built tree. Its modules can be told apart by line: they have line tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuildTree {
    /// The source.
    pub source: PathBuf,
    /// What was compiled of it, with the commands (`.name.o.cmd`).
    pub objects: PathBuf,
    /// What it is the source of: a package and its version, or a path.
    pub name: String,
    /// The kernel that was built.
    pub kernel: Kernel,
}

impl BuildTree {
    /// The tree of what is asked for, unpacked and compiled where that was not done before, in the cache beside the
    /// kernels. A tree of the caller's is compiled again as far as it has changed, and never written to. What was
    /// interrupted goes on where it was.
    ///
    /// # Errors
    /// If tools are missing, the source cannot be had or does not build, or the cache cannot be written.
    pub fn open(
        request: &BuildRequest,
        interrupt: BorrowedFd<'_>,
        on_progress: &mut dyn FnMut(&str),
    ) -> Result<Self, KernelError> {
        build_tools::check(build_tools::KERNEL_PROGRAMS, build_tools::KERNEL_HEADERS)?;
        let options = fragment(request.config.as_deref())?;
        let cache = trees_beside(&cache_dir()?);
        build_alone(&cache, interrupt, on_progress, &mut |work, runner, on_progress| {
            let (path, suite) = (request.source.as_deref(), request.suite.as_deref());
            let found = KernelSource::find(&cache, path, suite, runner, on_progress)?;
            let entry = cache.join(found.key(&options));
            let objects = entry.join(OBJECTS);
            fs::create_dir_all(&objects).map_err(cannot("create", &objects))?;
            let source = match &found {
                KernelSource::Tree(_) => found.unpack(work, runner, on_progress)?,
                _ if entry.join("source").exists() => entry.join("source"),
                _ => {
                    let unpacked = found.unpack(work, runner, on_progress)?;
                    put(&unpacked, &entry.join("source"), work)?;
                    entry.join("source")
                }
            };
            let make = Make { tree: &source, objects: &objects, fragment: &options, module_flags: LINES_ONLY };
            // Of a caller's tree, make knows best what has changed.
            let complete = entry.join(COMPLETE);
            if matches!(found, KernelSource::Tree(_)) || !complete.exists() {
                make.run(runner, on_progress)?;
                fs::write(&complete, "").map_err(cannot("write", &complete))?;
            }
            let kernel = Kernel::named(&objects.join(BUILT_IMAGE), &objects)?;
            Ok(Self { source, objects, name: found.name(), kernel })
        })
    }
}
