//! The image of a CD that boots a kernel: for machines that cannot be given one directly.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::RigError;
use crate::machine::{not_installed, path_of};

const PROGRAM: &str = "xorriso";

/// The boot loader, which finds its own files by name, and the package of each.
const LOADER: [(&str, &str, &str); 2] = [
    ("isolinux.bin", "/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    ("ldlinux.c32", "/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
];

/// A CD with this kernel, which gets this initramfs and this command line.
///
/// # Errors
/// If xorriso or isolinux is not installed, or xorriso fails.
pub(crate) fn bootable(kernel: &Path, initramfs: &File, command_line: &str) -> Result<File, RigError> {
    let cannot_make = |source| RigError::Io { what: format!("make a bootable CD with {PROGRAM}"), source };
    for (_, file, package) in LOADER {
        if !Path::new(file).exists() {
            return Err(not_installed(file, &format!("run `apt-get install {package}`")));
        }
    }
    // xorriso only takes files that have names; they go with the directory.
    let directory = tempfile::tempdir().map_err(cannot_make)?;
    let (config, initrd) = (directory.path().join("isolinux.cfg"), directory.path().join("initrd"));
    let text = format!("DEFAULT rig\nPROMPT 0\nLABEL rig\nKERNEL bzImage\nINITRD initrd\nAPPEND {command_line}\n");
    fs::write(&config, text).and_then(|()| fs::copy(path_of(initramfs), &initrd)).map_err(cannot_make)?;
    let image = tempfile::tempfile().map_err(cannot_make)?;

    let mut command = Command::new(PROGRAM);
    command.args(["-report_about", "WARNING", "-as", "mkisofs", "-quiet", "-graft-points"]);
    command.args(["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]);
    let mut graft = |name: &str, file: &Path| {
        let mut pair = OsString::from(format!("/{name}="));
        pair.push(file);
        command.arg(pair);
    };
    for (name, file, _) in LOADER {
        graft(name, Path::new(file));
    }
    graft("isolinux.cfg", &config);
    graft("bzImage", kernel);
    graft("initrd", &initrd);
    let output =
        command.stdin(Stdio::null()).stdout(image.try_clone().map_err(cannot_make)?).output().map_err(|source| {
            match source.kind() {
                std::io::ErrorKind::NotFound => not_installed(PROGRAM, "run `apt-get install xorriso`"),
                _ => cannot_make(source),
            }
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned();
        return Err(cannot_make(std::io::Error::other(format!("{}: {why}", output.status))));
    }
    Ok(image)
}
