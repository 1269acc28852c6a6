//! Modules of a kernel: found below a directory, unpacked where they are compressed, in the order in which they
//! have to be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

use crate::error::{KernelError, cannot};
use crate::kernel::{Kernel, bad, read_regular};

/// A module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its name with `_` for `-`, as in `/sys/module`.
    pub name: String,
    /// The file, which may be compressed.
    pub path: PathBuf,
    /// The names of its parameters.
    pub params: Vec<String>,
}

impl Module {
    /// The module as the kernel takes it: an ELF file.
    ///
    /// # Errors
    /// [`KernelError::BadKernel`] if it cannot be read or unpacked.
    pub fn read(&self) -> Result<Vec<u8>, KernelError> {
        read(&self.path)
    }
}

/// Copies the module at `from` to `to` without its debug info, which no kernel reads.
///
/// # Errors
/// [`KernelError::Io`] if there is no objcopy, [`KernelError::BadKernel`] with what it says.
pub fn strip_debug_info(from: &Path, to: &Path) -> Result<(), KernelError> {
    let ended = Command::new("objcopy").arg("--strip-debug").arg(from).arg(to).output();
    let ended = ended.map_err(cannot("run objcopy, of the package binutils, on", from))?;
    if ended.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&ended.stderr);
    Err(bad(from, format!("objcopy cannot copy it: {}", complaint.lines().next().unwrap_or("it says nothing"))))
}

/// What it means that a root of a load order has no file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    IsAnError,
    IsBuiltIn,
}

/// The modules of `kernel` that have to be loaded for `roots`, dependencies first.
///
/// # Errors
/// [`KernelError::BadKernel`] if one is missing, no module, or of another release.
pub(crate) fn load_order(kernel: &Kernel, roots: &[&str], missing: Missing) -> Result<Vec<Module>, KernelError> {
    let mut files = BTreeMap::new();
    find_modules(&kernel.modules, &mut files);
    let mut order = LoadOrder { kernel, files, modules: Vec::new() };
    for root in roots {
        if missing == Missing::IsAnError || order.files.contains_key(*root) {
            order.add_with_dependencies(root, 0)?;
        }
    }
    Ok(order.modules)
}

struct LoadOrder<'a> {
    kernel: &'a Kernel,
    /// All files of modules, by the names of the modules.
    files: BTreeMap<String, PathBuf>,
    modules: Vec<Module>,
}

impl LoadOrder<'_> {
    fn add_with_dependencies(&mut self, name: &str, depth: usize) -> Result<(), KernelError> {
        const DEPTH_MAX: usize = 16;
        if self.modules.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let kernel = self.kernel;
        let path = self.files.get(name).cloned().ok_or_else(|| {
            bad(&kernel.modules, format!("no {name}.ko of Linux {} here: give the directory of the kernel's own modules with --modules, or build a kernel with `privet rig build`", kernel.release))
        })?;
        let info = ModuleInfo::read(&read(&path)?).map_err(|why| bad(&path, why))?;
        if let Some(other) = info.name.filter(|own| own != name) {
            let why =
                format!("is the module {other} under another name: give the directory of the kernel's own modules");
            return Err(bad(&path, why));
        }
        if info.release != kernel.release {
            return Err(bad(
                &path,
                format!(
                    "belongs to Linux {}, but {} is Linux {}: give the image and the modules of one build",
                    info.release,
                    kernel.image.display(),
                    kernel.release
                ),
            ));
        }
        if depth == DEPTH_MAX {
            return Err(bad(&path, "its dependencies form a circle: build the modules again".into()));
        }
        for dependency in &info.depends {
            self.add_with_dependencies(dependency, depth + 1)?;
        }
        self.modules.push(Module { name: name.to_owned(), path, params: info.params });
        Ok(())
    }
}

/// The files of all modules below `dir`, by the names of the modules; file names may have `-` where those have
/// `_`.
fn find_modules(dir: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Not followed: `build` and `source` in /lib/modules lead away.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_modules(&path, found);
        } else if let Some((stem, rest)) = entry.file_name().to_str().and_then(|name| name.split_once(".ko"))
            && (rest.is_empty() || rest.starts_with('.'))
        {
            found.insert(stem.replace('-', "_"), path);
        }
    }
}

/// The contents of a module's file, unpacked.
fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    let bytes = read_regular(path).map_err(cannot("read", path))?;
    unpacked(bytes).map_err(|why| bad(path, format!("cannot be unpacked: {why}: copy the module again")))
}

/// What the kernel's build may have compressed (CONFIG_MODULE_COMPRESS), by what it begins with.
fn unpacked(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    if bytes.starts_with(b"\xfd7zXZ\0") {
        XzReader::new(bytes.as_slice(), true).read_to_end(&mut unpacked)?;
    } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        StreamingDecoder::new(bytes.as_slice()).map_err(io::Error::other)?.read_to_end(&mut unpacked)?;
    } else {
        return Ok(bytes);
    }
    Ok(unpacked)
}

/// What a module says about itself.
struct ModuleInfo {
    /// Its name with `_` for `-`; modules of old kernels do not say it.
    name: Option<String>,
    release: String,
    depends: Vec<String>,
    params: Vec<String>,
}

impl ModuleInfo {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err("is no kernel module, or compressed by other means than xz and zstd: unpack it, or build a kernel with `privet rig build`".into());
        }
        let damaged = || "is damaged: build the modules again".to_owned();
        let elf = Elf::parse(bytes).map_err(|_| damaged())?;
        let section =
            elf.section_headers.iter().find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".modinfo"));
        let range = section.and_then(|section| section.file_range()).ok_or_else(damaged)?;
        let info = bytes.get(range).ok_or_else(damaged)?;
        let entries: Vec<&str> =
            info.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()).collect();
        let values = |key: &'static str| entries.iter().filter_map(move |entry| entry.strip_prefix(key));
        // "7.3.4 SMP preempt mod_unload"
        let release = values("vermagic=").next().and_then(|magic| magic.split(' ').next()).ok_or_else(damaged)?;
        let depends = values("depends=").flat_map(|names| names.split(',')).filter(|name| !name.is_empty());
        // "mmio_caching:bool"
        let params = values("parmtype=").filter_map(|param| param.split(':').next());
        Ok(Self {
            name: values("name=").next().map(|name| name.replace('-', "_")),
            release: release.to_owned(),
            depends: depends.map(|name| name.replace('-', "_")).collect(),
            params: params.map(str::to_owned).collect(),
        })
    }
}
