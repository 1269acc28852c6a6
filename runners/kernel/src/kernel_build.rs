//! Builds the rig's kernel once and keeps what a boot needs of it: image, modules, configuration.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::build_cache::{build_alone, put};
use crate::build_tools;
use crate::build_tree::{COMPLETE, OBJECTS, trees_beside};
use crate::command::Runner;
use crate::error::{KernelError, cannot};
use crate::kernel::{CONFIG, IMAGE, Kernel, MODULES, RELEASE, SOURCE, VMLINUX, cache_dir};
use crate::kernel_config::{FRAGMENT, not_taken};
use crate::kernel_make::{BUILT_IMAGE, Make};
use crate::kernel_source::KernelSource;
use crate::module::strip_debug_info;

/// What to build.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BuildRequest {
    /// A Debian suite to take the source from, instead of the newest among several.
    pub suite: Option<String>,
    /// A source tree or archive, instead of a Debian package.
    pub source: Option<PathBuf>,
    /// A file with options that are added to the rig's own, or replace them.
    pub config: Option<PathBuf>,
}

/// A kernel that is ready to boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Built {
    /// The kernel.
    pub kernel: Kernel,
    /// Where its source came from: a package and its version, or a path.
    pub source: String,
    /// Whether it was built now, or had been before.
    pub is_new: bool,
    /// The options that this source did not take, because it does not have them or something that they
    /// depend on is off.
    pub not_taken: Vec<String>,
}

/// Makes sure that a kernel is in the cache, and returns it. What is in progress is told to `on_progress`
/// as a short line, often. `interrupt` ends the build when it becomes readable or hangs up; whatever ends
/// it early, nothing half-built stays in the cache.
///
/// # Errors
/// If tools are missing, the source cannot be had or does not build, or the cache cannot be written.
pub fn build(
    request: &BuildRequest,
    interrupt: BorrowedFd<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<Built, KernelError> {
    build_in(&cache_dir()?, request, interrupt, on_progress)
}

fn build_in(
    cache: &Path,
    request: &BuildRequest,
    interrupt: BorrowedFd<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<Built, KernelError> {
    build_tools::check(build_tools::KERNEL_PROGRAMS, build_tools::KERNEL_HEADERS)?;
    let fragment = fragment(request.config.as_deref())?;
    build_alone(cache, interrupt, on_progress, &mut |work, runner, on_progress| {
        Build { cache, request, fragment: &fragment, work, runner, on_progress }.run()
    })
}

/// The rig's fragment with the caller's after it, where it counts more.
pub(crate) fn fragment(extra: Option<&Path>) -> Result<String, KernelError> {
    let extra = extra.map(|path| fs::read_to_string(path).map_err(cannot("read", path))).transpose()?;
    Ok(match extra {
        Some(extra) => format!("{FRAGMENT}\n{extra}"),
        None => FRAGMENT.to_owned(),
    })
}

/// One build on its way.
struct Build<'a, 'b> {
    cache: &'a Path,
    request: &'a BuildRequest,
    fragment: &'a str,
    /// An unfinished entry of the cache, for everything that is in the way afterwards.
    work: &'a Path,
    runner: &'a mut Runner<'b>,
    on_progress: &'a mut dyn FnMut(&str),
}

impl Build<'_, '_> {
    fn run(mut self) -> Result<Built, KernelError> {
        let source = KernelSource::find(
            self.cache,
            self.request.source.as_deref(),
            self.request.suite.as_deref(),
            self.runner,
            self.on_progress,
        )?;
        let entry = self.cache.join(source.key(self.fragment));
        let is_new =
            matches!(source, KernelSource::Tree(_)) || Kernel::named(&entry.join(IMAGE), &entry.join(MODULES)).is_err();
        if is_new {
            let objects = match self.kept_objects(&source) {
                Some(objects) => objects,
                None => self.compile(&source)?,
            };
            let finished = self.finish(&objects, &source)?;
            put(&finished, &entry, self.work)?;
        }
        let config = entry.join(CONFIG);
        let config = fs::read_to_string(&config).map_err(cannot("read", &config))?;
        Ok(Built {
            kernel: Kernel::named(&entry.join(IMAGE), &entry.join(MODULES))?,
            source: source.name(),
            is_new,
            not_taken: not_taken(self.fragment, &config),
        })
    }

    /// What was compiled of the same source with the same options for a [`BuildTree`](crate::BuildTree), if it is there.
    fn kept_objects(&self, source: &KernelSource) -> Option<PathBuf> {
        let entry = trees_beside(self.cache).join(source.key(self.fragment));
        // Nobody but make knows whether a caller's tree is as it was.
        let is_kept = !matches!(source, KernelSource::Tree(_)) && entry.join(COMPLETE).exists();
        is_kept.then(|| entry.join(OBJECTS))
    }

    /// Compiles the source and returns where.
    fn compile(&mut self, source: &KernelSource) -> Result<PathBuf, KernelError> {
        let tree = source.unpack(self.work, self.runner, self.on_progress)?;
        let objects = self.work.join(OBJECTS);
        fs::create_dir(&objects).map_err(cannot("create", &objects))?;
        let make = Make { tree: &tree, objects: &objects, fragment: self.fragment, module_flags: "" };
        make.run(self.runner, self.on_progress)?;
        Ok(objects)
    }

    /// Takes what a boot needs out of the objects, into a directory that is complete but for its name.
    fn finish(&mut self, objects: &Path, source: &KernelSource) -> Result<PathBuf, KernelError> {
        let finished = self.work.join("finished");
        for directory in [&finished, &finished.join(MODULES)] {
            fs::create_dir(directory).map_err(cannot("create", directory))?;
        }
        copy(&objects.join(BUILT_IMAGE), &finished.join(IMAGE))?;
        copy(&objects.join(".config"), &finished.join(CONFIG))?;
        let config = finished.join(CONFIG);
        let with_debug_info =
            fs::read_to_string(&config).map_err(cannot("read", &config))?.contains("\nCONFIG_DEBUG_INFO=y\n");
        if with_debug_info {
            copy(&objects.join(VMLINUX), &finished.join(VMLINUX))?;
        }
        copy(&objects.join("include/config/kernel.release"), &finished.join(RELEASE))?;
        // The modules of a tree have line tables whatever the options say.
        let copy_module = if with_debug_info { copy } else { strip_debug_info };
        copy_modules(objects, &finished.join(MODULES), copy_module)?;
        let name = finished.join(SOURCE);
        fs::write(&name, format!("{}\n", source.name())).map_err(cannot("write", &name))?;
        Kernel::named(&finished.join(IMAGE), &finished.join(MODULES))?;
        Ok(finished)
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), KernelError> {
    fs::copy(from, to).map(|_| ()).map_err(cannot("copy", from))
}

/// Copies every module below `objects` into one directory.
fn copy_modules(
    objects: &Path,
    modules: &Path,
    copy_module: fn(&Path, &Path) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    for entry in fs::read_dir(objects).map_err(cannot("read", objects))?.flatten() {
        let path = entry.path();
        // Not followed: `source` leads back to the tree.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            copy_modules(&path, modules, copy_module)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            copy_module(&path, &modules.join(entry.file_name()))?;
        }
    }
    Ok(())
}
