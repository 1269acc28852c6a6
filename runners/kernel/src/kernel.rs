//! The kernel that a rig boots: an image and its modules, found in the cache or named by the caller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::KernelError;
use crate::module::{Missing, Module, load_order};

/// The name of the image in a cache entry.
pub(crate) const IMAGE: &str = "bzImage";
/// The name of the directory of modules in a cache entry.
pub(crate) const MODULES: &str = "modules";

/// The name of the image as an ELF file in a cache entry, or at the top of a build tree.
pub(crate) const VMLINUX: &str = "vmlinux";
/// The name of its configuration in a cache entry.
pub(crate) const CONFIG: &str = "config";
/// The name of the file in a cache entry that names the release.
pub(crate) const RELEASE: &str = "release";
/// The name of the file in a cache entry that says where the kernel came from.
pub(crate) const SOURCE: &str = "source";

/// A bootable kernel image and the modules that belong to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// The image, in the Linux/x86 boot protocol's form.
    pub image: PathBuf,
    /// The directory that is searched for modules.
    pub modules: PathBuf,
    /// The release, as `uname -r` prints it.
    pub release: String,
}

/// Where kernels are cached for this user: `$XDG_CACHE_HOME/privet/rig`, or the same under `~/.cache`.
///
/// # Errors
/// If neither variable names an absolute path.
pub fn cache_dir() -> Result<PathBuf, KernelError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| KernelError::Io {
        what: "find the cache directory".into(),
        source: std::io::Error::other("neither XDG_CACHE_HOME nor HOME is set to an absolute path"),
    })?;
    Ok(cache.join("privet/rig"))
}

impl Kernel {
    /// The newest cached kernel that has every VM type, or else the newest of all: the highest release, and of
    /// several builds of it the last one.
    ///
    /// # Errors
    /// [`KernelError::NoKernel`] if none is there, [`KernelError::BadKernel`] if the newest is damaged.
    pub fn cached() -> Result<Self, KernelError> {
        Self::newest_in(&cache_dir()?)
    }

    /// The newest kernel in this cache.
    fn newest_in(cache: &Path) -> Result<Self, KernelError> {
        let newest = fs::read_dir(cache)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let built = entry.path().join(IMAGE).metadata().ok()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let release = fs::read_to_string(entry.path().join(RELEASE)).ok()?;
                let has_all_types = fs::read_to_string(entry.path().join(CONFIG)).is_ok_and(|config| has_upm(&config));
                Some((has_all_types, release_order(&release), built, entry.path()))
            })
            .max()
            .ok_or_else(|| KernelError::NoKernel { cache: cache.to_owned() })?;
        let (.., entry) = newest;
        Self::named(&entry.join(IMAGE), &entry.join(MODULES))
    }

    /// The kernel in `image` with the modules in `modules`, which is searched with its subdirectories.
    ///
    /// # Errors
    /// [`KernelError::BadKernel`] if the image is no whole bzImage or the modules are missing or belong to
    /// another release.
    pub fn named(image: &Path, modules: &Path) -> Result<Self, KernelError> {
        let bytes = read_regular(image).map_err(|error| {
            bad(image, format!("{error}: name a bzImage with --kernel, or build one with `privet rig build`"))
        })?;
        let release = image_release(&bytes).map_err(|why| bad(image, why))?;
        let kernel = Self { image: image.to_owned(), modules: modules.to_owned(), release };
        kernel.load_order(&["kvm"])?;
        Ok(kernel)
    }

    /// The same kernel as an ELF file, with symbols and perhaps debug info, if it is there: beside the image, as
    /// `privet rig build` keeps it of a kernel with debug info, or at the top of the build tree that the image lies in.
    #[must_use]
    pub fn vmlinux(&self) -> Option<PathBuf> {
        // arch/x86/boot/bzImage
        let places = [self.image.parent(), self.image.ancestors().nth(4)];
        places.into_iter().flatten().map(|dir| dir.join(VMLINUX)).find(|path| path.is_file())
    }

    /// The modules that have to be loaded for `roots`, dependencies first.
    ///
    /// # Errors
    /// [`KernelError::BadKernel`] if one is missing, no module, or of another release.
    pub fn load_order(&self, roots: &[&str]) -> Result<Vec<Module>, KernelError> {
        load_order(self, roots, Missing::IsAnError)
    }

    /// The same for roots that this kernel may have built in.
    ///
    /// # Errors
    /// [`KernelError::BadKernel`] if one is no module or of another release.
    pub fn load_order_of_parts(&self, roots: &[&str]) -> Result<Vec<Module>, KernelError> {
        load_order(self, roots, Missing::IsBuiltIn)
    }
}

/// All of a file that has an end, which a device or a pipe may not have.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    fs::read(path)
}

pub(crate) fn bad(path: &Path, why: String) -> KernelError {
    KernelError::BadKernel { path: path.to_owned(), why }
}

/// Whether the kernel with this configuration has software-protected VMs, which no distribution's has.
fn has_upm(config: &str) -> bool {
    config.lines().any(|line| line == "CONFIG_KVM_SW_PROTECTED_VM=y")
}

/// Releases in the order of their numbers: 7.10 is newer than 7.9.
pub(crate) fn release_order(release: &str) -> (Vec<u64>, String) {
    let release = release.trim();
    let numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok()).collect();
    (numbers, release.to_owned())
}

/// The release of a bzImage (Documentation/arch/x86/boot.rst), which must be whole.
fn image_release(image: &[u8]) -> Result<String, String> {
    const NOT_ONE: &str =
        "is not a bzImage: name arch/x86/boot/bzImage of a kernel build, or build one with `privet rig build`";
    const TRUNCATED: &str = "is a truncated bzImage: copy it again, or build one with `privet rig build`";
    let u16_at = |offset: usize| Some(u16::from_le_bytes(image.get(offset..offset + 2)?.try_into().ok()?));
    let u32_at = |offset: usize| Some(u32::from_le_bytes(image.get(offset..offset + 4)?.try_into().ok()?));
    if image.get(0x202..0x206) != Some(b"HdrS") || u16_at(0x1fe) != Some(0xaa55) {
        return Err(if image.is_empty() {
            "is empty: copy it again, or build one with `privet rig build`"
        } else {
            NOT_ONE
        }
        .into());
    }
    // LOADED_HIGH is what makes an image a bzImage.
    if image.get(0x211).is_none_or(|flags| flags & 1 == 0) {
        return Err(NOT_ONE.into());
    }
    // 0 means 4, for the sake of very old loaders.
    let setup_sectors = image.get(0x1f1).map(|&n| if n == 0 { 4 } else { usize::from(n) }).ok_or(TRUNCATED)?;
    let protected_mode_bytes = u32_at(0x1f4).ok_or(TRUNCATED)? as usize * 16;
    if image.len() < (setup_sectors + 1) * 512 + protected_mode_bytes {
        return Err(TRUNCATED.into());
    }
    // "7.3.4 (user@host) #1 SMP ..."; the offset does not count the first sector.
    let start = usize::from(u16_at(0x20e).ok_or(TRUNCATED)?) + 0x200;
    let text = image.get(start..).and_then(|rest| rest.split(|byte| *byte == 0).next()).ok_or(TRUNCATED)?;
    let release =
        std::str::from_utf8(text).ok().and_then(|text| text.split(' ').next()).filter(|release| !release.is_empty());
    Ok(release.ok_or(NOT_ONE)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest thing that passes for a bzImage of Linux 7.3.4.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 64];
        image[0x1f1] = 4;
        image[0x1f4..0x1f8].copy_from_slice(&4u32.to_le_bytes());
        image[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
        image[0x211] = 1;
        image[0x400..0x400 + 11].copy_from_slice(b"7.3.4 (a@b)");
        image
    }

    #[test]
    fn a_whole_image_names_its_release() {
        assert_eq!(image_release(&image()), Ok("7.3.4".into()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let image = image();
        for length in 0..image.len() {
            let error = image_release(&image[..length]).unwrap_err();
            assert!(error.contains("privet rig build"), "{length}: {error}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let mut zimage = image();
        zimage[0x211] = 0;
        for bytes in [b"\x7fELF".repeat(1000), vec![0xff; 4096], zimage] {
            assert!(image_release(&bytes).unwrap_err().starts_with("is not a bzImage"));
        }
    }

    #[test]
    fn a_missing_image_says_what_to_do() {
        let error = Kernel::named(Path::new("/nonexistent/bzImage"), Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("privet rig build"), "{error}");
    }

    #[test]
    fn missing_or_damaged_modules_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IMAGE);
        fs::write(&path, image()).unwrap();
        let modules = dir.path().join("a/b");
        fs::create_dir_all(&modules).unwrap();
        let error = Kernel::named(&path, dir.path()).unwrap_err().to_string();
        assert!(error.contains("no kvm.ko of Linux 7.3.4 here"), "{error}");
        for (file, bytes, complaint) in [
            ("kvm.ko.gz", b"\x1f\x8b\x08\0\0\0".as_slice(), "compressed by other means than xz and zstd"),
            ("kvm.ko.xz", b"\xfd7zXZ\0\0\x01", "kvm.ko.xz: cannot be unpacked"),
            ("kvm.ko.zst", b"\x28\xb5\x2f\xfd\x24\x10", "kvm.ko.zst: cannot be unpacked"),
        ] {
            fs::write(modules.join(file), bytes).unwrap();
            let error = Kernel::named(&path, dir.path()).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
            fs::remove_file(modules.join(file)).unwrap();
        }
    }

    #[test]
    fn a_kernel_with_all_vm_types_is_taken_before_a_newer_one_without() {
        let cache = tempfile::tempdir().unwrap();
        for (release, config) in [("7.3.4", "CONFIG_KVM_SW_PROTECTED_VM=y\n"), ("7.3.5", "CONFIG_KVM=m\n")] {
            let entry = cache.path().join(release);
            fs::create_dir(&entry).unwrap();
            for (file, text) in [(IMAGE, ""), (RELEASE, release), (CONFIG, config)] {
                fs::write(entry.join(file), text).unwrap();
            }
        }
        let error = Kernel::newest_in(cache.path()).unwrap_err().to_string();
        assert!(error.contains("7.3.4/bzImage"), "{error}");
    }

    #[test]
    fn the_highest_release_is_taken_from_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        assert!(matches!(Kernel::newest_in(cache.path()), Err(KernelError::NoKernel { .. })));
        for release in ["7.9.1", "7.10.0", "6.12.3"] {
            let entry = cache.path().join(release);
            fs::create_dir(&entry).unwrap();
            fs::write(entry.join(IMAGE), b"").unwrap();
            fs::write(entry.join("release"), format!("{release}\n")).unwrap();
        }
        let error = Kernel::newest_in(cache.path()).unwrap_err().to_string();
        assert!(error.contains("7.10.0") && error.contains("is empty"), "{error}");
    }
}
