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
    port: GuestPort::Virtio,
    drivers: &["virtio_pci", "virtio_console"],
    // Its guests have the clock of the system that it runs on.
    slowness: 1,
    has_our_clock: true,
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
        // With a thread for each processor QEMU (7.2 and 10.0) now and then takes the host's state of a nested SVM
        // processor for its guest's: VMs shut down, with a RIP behind VMRUN, or the kernel panics with the guest's
        // GS base. One thread takes turns with two processors, so that there still is another one to be told of a
        // flush. Machines side by side use the other cores.
        .args(["-accel", "tcg,thread=single", "-cpu", "max,+svm,+npt"])
        .args(["-smp", "2", "-m", "2048"])
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
