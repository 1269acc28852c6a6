//! The root file system of the guest: the worker and other programs, their libraries, KVM's modules and the plan, as a cpio
//! archive that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cpio::NewcBuilder;
use cpio::newc::{ModeFileType, trailer};
use goblin::elf::Elf;

use crate::error::{RigError, cannot};
use crate::init;
use crate::libraries;
use crate::plan::{GuestModules, GuestPlan, Program};
use privet_kernel::Module;

/// Where the worker lies in the guest.
pub(crate) const WORKER: &str = "/privet";

/// What every boot of one run has in common. Only the plan differs.
pub(crate) struct Initramfs {
    files: Vec<(PathBuf, Vec<u8>)>,
    /// KVM's modules, which a guest may get otherwise.
    modules: Vec<(PathBuf, Vec<u8>)>,
}

impl Initramfs {
    /// The root file system with `worker` as init, and `programs`, `others`, which are files, `drivers` of the guest's
    /// port and KVM's `modules` in it.
    ///
    /// # Errors
    /// If the worker, a program, a file, a library or a module cannot be read.
    pub(crate) fn new(
        worker: &Path,
        programs: &[Program],
        others: &[PathBuf],
        (drivers, modules): (&[Module], &[Module]),
    ) -> Result<Self, RigError> {
        let read = |path: &Path| fs::read(path).map_err(cannot("read", path));
        let mut files = Vec::new();
        let mut needed = BTreeSet::new();
        for program in programs.iter().map(|program| program.path.as_path()).chain([worker]) {
            needed.extend(libraries::needed_by(program)?);
        }
        for library in needed {
            files.push((library.clone(), without_debug_info(read(&library)?)));
        }
        for program in programs {
            files.push((program.guest_path.clone(), without_debug_info(read(&program.path)?)));
        }
        for file in others {
            files.push((file.clone(), read(file)?));
        }
        let in_guest = |module: &Module| Ok::<_, RigError>((guest_path(module).into(), module.read()?));
        files.extend(drivers.iter().map(in_guest).collect::<Result<Vec<_>, _>>()?);
        files.push((WORKER.into(), without_debug_info(read(worker)?)));
        Ok(Self { files, modules: modules.iter().map(in_guest).collect::<Result<_, _>>()? })
    }

    /// KVM's modules in the order in which they were given.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &[u8]> {
        self.modules.iter().map(|(_, bytes)| bytes.as_slice())
    }

    /// Writes the archive for one boot: with KVM's modules, if the guest has them as files.
    ///
    /// # Errors
    /// Of `write(2)`.
    pub(crate) fn write(&self, plan: &GuestPlan, output: &mut impl Write) -> io::Result<()> {
        let modules: &[_] = match plan.modules {
            GuestModules::Files(_) => &self.modules,
            GuestModules::Memory(_) => &[],
        };
        let plan = serde_json::to_vec(plan)?;
        let plan = (Path::new(init::PLAN), plan.as_slice());
        let files = self.files.iter().chain(modules).map(|(path, bytes)| (path.as_path(), bytes.as_slice()));
        let files = files.chain([plan]);

        let mut archive = Archive { output, entries: 0, directories: BTreeSet::new() };
        for (path, bytes) in files {
            archive.file(path, bytes)?;
        }
        trailer(archive.output)?;
        Ok(())
    }
}

/// Where a module lies in the guest.
pub(crate) fn guest_path(module: &Module) -> String {
    format!("/modules/{}.ko", module.name)
}

struct Archive<'a, W: Write> {
    output: &'a mut W,
    entries: u32,
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<'_, W> {
    /// Adds a file and the directories above it.
    fn file(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let parents: Vec<_> = relative.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
        for directory in parents.into_iter().rev() {
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, ModeFileType::Directory, &[])?;
            }
        }
        self.entry(relative, ModeFileType::Regular, bytes)
    }

    fn entry(&mut self, name: &Path, kind: ModeFileType, bytes: &[u8]) -> io::Result<()> {
        let unusable = |why| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {why}", name.display()));
        let text = name.to_str().ok_or_else(|| unusable("its name is not UTF-8"))?;
        let size = u32::try_from(bytes.len()).map_err(|_| unusable("too large for a cpio archive"))?;
        self.entries += 1;
        let builder = NewcBuilder::new(text).ino(self.entries).mode(0o755).set_mode_file_type(kind);
        let mut writer = builder.write(&mut *self.output, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }
}

/// An ELF file as far as the loader reads it. Symbols and debug information lie behind that; they make up
/// most of a worker, and the guest would have to unpack them at each boot.
fn without_debug_info(mut bytes: Vec<u8>) -> Vec<u8> {
    // Offsets in the ELF header.
    const SECTION_TABLE: std::ops::Range<usize> = 40..48;
    const SECTION_COUNT_AND_NAMES: std::ops::Range<usize> = 60..64;
    let end = Elf::parse(&bytes).ok().and_then(|elf| {
        let ends = elf.program_headers.iter().map(|segment| segment.p_offset.saturating_add(segment.p_filesz));
        let table = elf.header.e_phoff + u64::from(elf.header.e_phnum) * u64::from(elf.header.e_phentsize);
        usize::try_from(ends.max()?.max(table)).ok()
    });
    if let Some(end) = end.filter(|end| *end < bytes.len()) {
        bytes.truncate(end);
        bytes[SECTION_TABLE].fill(0);
        bytes[SECTION_COUNT_AND_NAMES].fill(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{GuestPort, Work};
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    /// Names, modes and contents of an archive, in order.
    fn unpack(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            entries.push((name, mode, bytes));
            rest = reader.finish().unwrap();
        }
    }

    fn plan() -> GuestPlan {
        GuestPlan {
            work: Work::Rows(Vec::new()),
            drivers: Vec::new(),
            modules: GuestModules::Files(Vec::new()),
            port: GuestPort::Virtio,
        }
    }

    #[test]
    fn the_archive_has_everything_and_directories_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let module = Module { name: "kvm_amd".into(), path: dir.path().join("kvm-amd.ko"), params: Vec::new() };
        fs::write(&module.path, b"a module").unwrap();
        let worker = std::env::current_exe().unwrap();
        let program = Program { path: worker.clone(), guest_path: "/programs/x86/another".into() };
        let mut archive = Vec::new();
        Initramfs::new(&worker, &[program], &[], (&[], &[module])).unwrap().write(&plan(), &mut archive).unwrap();

        let entries = unpack(&archive);
        let mut seen = BTreeMap::new();
        for (name, mode, bytes) in entries {
            if let Some((parent, _)) = name.rsplit_once('/') {
                assert!(seen.contains_key(parent), "{parent} comes before {name}");
            }
            assert!(seen.insert(name.clone(), (mode, bytes)).is_none(), "{name} is there once");
        }
        assert_eq!(seen["modules"].0, 0o040755);
        assert_eq!(seen["modules/kvm_amd.ko"], (0o100755, b"a module".to_vec()));
        assert_eq!(serde_json::from_slice::<GuestPlan>(&seen["plan.json"].1).unwrap(), plan());
        assert!(seen["privet"].1.starts_with(b"\x7fELF"));
        assert_eq!(seen["programs/x86/another"], seen["privet"]);
        assert!(seen.keys().any(|name| name.ends_with("/libc.so.6")));
    }

    #[test]
    fn a_program_still_runs_without_its_debug_information() {
        let own = std::env::current_exe().unwrap();
        let whole = fs::read(&own).unwrap();
        let stripped = without_debug_info(whole.clone());
        assert!(stripped.len() < whole.len());
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, stripped).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let output = std::process::Command::new(&program).arg("--list").output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("a_program_still_runs"));
    }

    #[test]
    fn what_is_no_elf_file_stays_as_it_is() {
        assert_eq!(without_debug_info(b"text".to_vec()), b"text");
    }
}
