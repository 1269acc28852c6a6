//! The machine with AMD's processors: QEMU with software emulation of nested SVM. Nothing else in the crate
//! knows QEMU.

use std::process::Command;

use crate::error::RigError;
use crate::machine::{Emulator, Parts, Prepared, path_of};
use crate::plan::{GuestPort, PORT_NAME};

/// QEMU.
pub(crate) static QEMU: Emulator = Emulator {
    program: PROGRAM,
    install: "run `apt-get install qemu-system-x86` (qemu-system-x86-core on Fedora)",
    cpus: 2,
    port: GuestPort::Virtio,
    // Its guests have the clock of the system that it runs on.
    slowness: 1,
    input: "",
    command,
    complaint: |stderr| stderr.lines().last(),
};

const PROGRAM: &str = "qemu-system-x86_64";

fn command(parts: &Parts<'_>) -> Result<Prepared, RigError> {
    let cannot_start = |source| RigError::Io { what: format!("start {PROGRAM}"), source };
    let mut command = Command::new(PROGRAM);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt"])
        .args(["-smp", &QEMU.cpus.to_string(), "-m", "2048"])
        .arg("-kernel")
        .arg(parts.kernel)
        .args(["-initrd", &path_of(parts.initramfs), "-append", parts.command_line])
        .args(["-serial", &format!("file:{}", path_of(parts.console))])
        // Its other half is standard input: at the end of that QEMU would unplug the port.
        .args(["-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci"])
        .args(["-device", &format!("virtserialport,chardev=port,name={PORT_NAME}")])
        .stdout(parts.port.try_clone().map_err(cannot_start)?);
    Ok(Prepared { command, files: Vec::new() })
}
