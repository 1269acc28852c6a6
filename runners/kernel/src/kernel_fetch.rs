//! Fetches a kernel that Debian has built, for which no compiler is needed, and keeps what a boot needs of it.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::build_cache::{build_alone, put};
use crate::build_tools;
use crate::command::Runner;
use crate::debian_package::{Apt, Content, Package, find_file};
use crate::error::{KernelError, cannot};
use crate::kernel::{CONFIG, IMAGE, Kernel, MODULES, RELEASE, SOURCE, cache_dir};

/// What to fetch.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct FetchRequest {
    /// A Debian suite to take it from, instead of the newest among several.
    pub suite: Option<String>,
    /// The package, instead of the newest.
    pub package: Option<String>,
}

/// A kernel that is ready to boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The kernel.
    pub kernel: Kernel,
    /// The package and its version.
    pub package: String,
    /// Whether it was fetched now, or had been before.
    pub is_new: bool,
}

/// Programs that this runs, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[("apt-get", "apt"), ("dpkg-deb", "dpkg")];

/// What is kept of thousands of modules, with what they depend on: KVM, and what a guest of QEMU talks over.
const KEPT: [&str; 5] = ["kvm", "kvm_amd", "kvm_intel", "virtio_pci", "virtio_console"];

/// Makes sure that the kernel of a package is in the cache, and returns it. What is in progress is told to
/// `on_progress` as a short line. `interrupt` ends it when it becomes readable or hangs up; whatever ends it
/// early, nothing half-unpacked stays in the cache.
///
/// # Errors
/// If there is no such package, it cannot be downloaded, or has no kernel with KVM in it.
pub fn fetch(
    request: &FetchRequest,
    interrupt: BorrowedFd<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<Fetched, KernelError> {
    build_tools::check(PROGRAMS, &[])?;
    let cache = cache_dir()?;
    build_alone(&cache, interrupt, on_progress, &mut |work, runner, on_progress| {
        on_progress("looking for the package");
        let apt = Apt::new(&cache, Content::Image, request.suite.as_deref())?;
        let package = apt.find(request.package.as_deref(), runner)?;
        let entry = cache.join(format!("{}_{}", package.name, package.version.replace(':', "%3a")));
        let is_new = Kernel::named(&entry.join(IMAGE), &entry.join(MODULES)).is_err();
        if is_new {
            on_progress(&format!("downloading {} {}", package.name, package.version));
            let finished = unpack(&apt, &package, work, runner)?;
            put(&finished, &entry, work)?;
        }
        let kernel = Kernel::named(&entry.join(IMAGE), &entry.join(MODULES))?;
        Ok(Fetched { kernel, package: format!("{} {}", package.name, package.version), is_new })
    })
}

/// Downloads the package and returns a directory that is complete but for its name.
fn unpack(apt: &Apt, package: &Package, work: &Path, runner: &mut Runner<'_>) -> Result<PathBuf, KernelError> {
    let contents = apt.download(package, work, runner)?;
    let finished = work.join("finished");
    fs::create_dir_all(finished.join(MODULES)).map_err(cannot("create", &finished))?;
    // Where a package keeps them changed over the years: image and configuration in /boot, or beside the modules.
    let lib = ["usr/lib/modules", "lib/modules"].map(|path| contents.join(path)).into_iter().find(|path| path.is_dir());
    let modules = find_file(&lib.unwrap_or_else(|| contents.join("lib/modules")), |_| true)?;
    let boot = Some(contents.join("boot")).filter(|boot| boot.is_dir()).unwrap_or_else(|| modules.clone());
    for (beginning, name) in [("vmlinuz", IMAGE), ("config", CONFIG)] {
        let file = find_file(&boot, |name| name.starts_with(beginning))?;
        fs::rename(&file, finished.join(name)).map_err(cannot("keep", &file))?;
    }
    let kernel = Kernel::named(&finished.join(IMAGE), &modules)?;
    for module in kernel.load_order_of_parts(&KEPT)? {
        let path = finished.join(MODULES).join(format!("{}.ko", module.name));
        fs::write(&path, module.read()?).map_err(cannot("write", &path))?;
    }
    for (name, text) in [(RELEASE, &kernel.release), (SOURCE, &format!("{} {}", package.name, package.version))] {
        let path = finished.join(name);
        fs::write(&path, format!("{text}\n")).map_err(cannot("write", &path))?;
    }
    Kernel::named(&finished.join(IMAGE), &finished.join(MODULES))?;
    Ok(finished)
}
