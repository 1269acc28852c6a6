//! Builds upstream's selftests of KVM once per user: those of the catalogue, and of the others what builds.

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use privet_kernel::KernelError;
use privet_kernel::build_cache::{build_alone, put};
use privet_kernel::build_tools;
use privet_kernel::command::Runner;
use privet_kernel::kernel_source::KernelSource;

use crate::catalogue::TESTS;
use crate::directory::{Kselftests, SOURCE};

/// What to build.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BuildRequest {
    /// A kernel source tree or archive, instead of the package that the rig's kernel is built from. It is only
    /// read.
    pub source: Option<PathBuf>,
    /// Whether the programs shall need no libraries where they run.
    pub is_static: bool,
}

/// Selftests that are ready to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Built {
    /// They.
    pub kselftests: Kselftests,
    /// Where their source came from: a package and its version, or a path.
    pub source: String,
    /// Whether they were built now, or had been before.
    pub is_new: bool,
    /// How many of the catalogue's tests this source has.
    pub tests: usize,
}

/// Programs that the build runs, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] =
    &[("gcc", "gcc"), ("ld", "binutils"), ("make", "make"), ("tar", "tar"), ("xz", "xz-utils")];

/// Headers, likewise. All of KVM's selftests are linked with the library of the vfio tests, which wants this.
const HEADERS: &[(&str, &str)] = &[("uuid/uuid.h", "uuid-dev"), ("stdio.h", "libc6-dev")];

/// What of a source the selftests and the kernel's headers are built from, where the source has it. Some of
/// the vfio library are links to headers of drivers.
const PARTS: &[&str] = &[
    "Makefile",
    "Kbuild",
    "Kconfig",
    "scripts",
    "include",
    "arch/x86",
    "usr",
    "drivers/dma/idxd",
    "drivers/dma/ioat",
    "drivers/net/ethernet/intel/igb",
    "tools/include",
    "tools/arch",
    "tools/build",
    "tools/lib",
    "tools/scripts",
    KUNIT,
    "tools/testing/selftests",
];

/// The directory of KVM's selftests in a kernel source.
const SELFTESTS: &str = "tools/testing/selftests/kvm";

/// The directory of kunit.py, in a kernel source and in what is built: it only runs from where its path ends so.
const KUNIT: &str = "tools/testing/kunit";

/// What is kept beside the programs: where from, where to, and which files. The kernel's own reader of KTAP,
/// with which ours can be checked, and the source of the tests, with which the catalogue can be.
const KEPT: &[(&str, &str, &str)] =
    &[(KUNIT, KUNIT, "py"), (SELFTESTS, "", "c"), ("tools/testing/selftests/kvm/x86", "x86", "c")];

/// Where the selftests of this user are kept: `kselftests` beside the rig's kernels.
///
/// # Errors
/// If there is no cache directory.
pub fn cache_dir() -> Result<PathBuf, KernelError> {
    Ok(privet_kernel::cache_dir()?.with_file_name("kselftests"))
}

/// Makes sure that selftests are in the cache, and returns them. What is in progress is told to `on_progress`
/// as a short line. `interrupt` ends the build when it becomes readable or hangs up; whatever ends it early,
/// nothing half-built stays in the cache.
///
/// # Errors
/// If tools are missing, the source cannot be had or does not build, or the cache cannot be written.
pub fn build(
    request: &BuildRequest,
    interrupt: BorrowedFd<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<Built, KernelError> {
    build_tools::check(PROGRAMS, HEADERS)?;
    let cache = cache_dir()?;
    // Apt's lists are the rig's: both take the same package.
    let lists = privet_kernel::cache_dir()?;
    build_alone(&cache, interrupt, on_progress, &mut |work, runner, on_progress| {
        let source = KernelSource::find(&lists, request.source.as_deref(), None, runner, on_progress)?;
        let how = if request.is_static { "static" } else { "dynamic" };
        let entry = cache.join(source.key(&format!("all, {how}, with {KEPT:?}")));
        let is_new = matches!(source, KernelSource::Tree(_)) || Kselftests::named(&entry).is_err();
        if is_new {
            let finished = compile(&source, request.is_static, work, runner, on_progress)?;
            put(&finished, &entry, work)?;
        }
        // What was asked for last is what is taken where no directory is named.
        touch(&entry.join(SOURCE))?;
        let kselftests = Kselftests::named(&entry).map_err(|error| KernelError::Source(error.to_string()))?;
        let tests = TESTS.iter().filter(|test| kselftests.program(test.name).is_some()).count();
        Ok(Built { kselftests, source: source.name(), is_new, tests })
    })
}

/// Compiles the source and returns a directory that is complete but for its name.
fn compile(
    source: &KernelSource,
    is_static: bool,
    work: &Path,
    runner: &mut Runner<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, KernelError> {
    let original = source.unpack(work, runner, on_progress)?;
    let has = |test: &str| original.join(SELFTESTS).join(format!("{test}.c")).is_file();
    let tests: Vec<&str> = TESTS.iter().map(|test| test.name).filter(|test| has(test)).collect();
    if tests.is_empty() {
        return Err(KernelError::Source(format!(
            "{} has none of the tests of KVM that privet knows: name a newer kernel with --source",
            source.name()
        )));
    }

    // A copy without what an earlier build left: the caller's tree is only read.
    on_progress("copying");
    let tree = work.join("copy");
    create(&tree)?;
    let parts = work.join("parts.tar");
    let mut pack = Command::new("tar");
    pack.args(["--exclude=*.o", "--exclude=*.a", "--exclude=*.d", "--exclude=*.cmd", "--exclude=.git", "-cf"]);
    pack.arg(&parts).arg("-C").arg(&original).args(PARTS.iter().filter(|part| original.join(part).exists()));
    runner.run("tar", &mut pack, &mut |_| {})?;
    runner.run("tar", Command::new("tar").arg("-xf").arg(&parts).arg("-C").arg(&tree), &mut |_| {})?;

    on_progress("installing the kernel's headers");
    let jobs = format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from));
    let make = |dir: &Path| {
        let mut make = Command::new("make");
        make.arg("-C").arg(dir).arg("ARCH=x86").arg(&jobs);
        make
    };
    runner.run("make headers", make(&tree).arg("headers"), &mut |_| {})?;

    let (objects, finished) = (work.join("objects"), work.join("finished"));
    for dir in [&objects, &finished, &finished.join("x86")] {
        create(dir)?;
    }
    let known: Vec<_> = tests.iter().map(|test| objects.join(test).into_os_string()).collect();
    // Some of the others want libraries that few have: nobody here depends on them.
    let others = vec!["--ignore-errors".into()];
    let mut files = 0;
    for targets in [known, others] {
        let mut make = make(&tree.join(SELFTESTS));
        make.arg(format!("OUTPUT={}", objects.display()));
        make.arg(format!("KHDR_INCLUDES=-isystem {}", tree.join("usr/include").display()));
        make.args(targets);
        // From the environment the makefile adds to it; from the command line it would replace what it adds.
        make.env("LDFLAGS", if is_static { "-static" } else { "" });
        runner.run("make", &mut make, &mut |line| {
            if line.starts_with("gcc") {
                files += 1;
                on_progress(&format!("compiling: {files} files"));
            }
        })?;
    }

    for dir in ["", "x86"] {
        keep(&objects.join(dir), &finished.join(dir), &is_program)?;
    }
    for (from, to, extension) in KEPT {
        let is_kept = |file: &Path| file.extension().is_some_and(|found| found == *extension);
        keep(&tree.join(from), &finished.join(to), &is_kept)?;
    }
    let name = finished.join(SOURCE);
    fs::write(&name, format!("{}\n", source.name())).map_err(cannot("write", &name))?;
    Ok(finished)
}

/// Whether make has linked it: objects and lists of dependencies have an ending.
fn is_program(file: &Path) -> bool {
    file.is_file() && file.extension().is_none()
}

/// Copies those files of one directory.
fn keep(from: &Path, to: &Path, is_kept: &dyn Fn(&Path) -> bool) -> Result<(), KernelError> {
    fs::create_dir_all(to).map_err(cannot("create", to))?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        if is_kept(&entry.path()) {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn touch(file: &Path) -> Result<(), KernelError> {
    let touched = File::options().append(true).open(file).and_then(|file| file.set_modified(SystemTime::now()));
    touched.map_err(cannot("write", file))
}

fn create(dir: &Path) -> Result<(), KernelError> {
    fs::create_dir(dir).map_err(cannot("create", dir))
}

fn copy(from: &Path, to: &Path) -> Result<(), KernelError> {
    fs::copy(from, to).map(|_| ()).map_err(cannot("copy", from))
}

fn cannot(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> KernelError {
    let what = format!("{verb} {}", path.display());
    move |source| KernelError::Io { what, source }
}
