//! The machine with Intel's processors: Bochs, which emulates VMX with EPT. Nothing else in the crate knows
//! Bochs.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::RigError;
use crate::iso;
use crate::machine::{Emulator, Parts, Prepared, not_installed, path_of};
use crate::plan::GuestPort;

/// Bochs.
pub(crate) static BOCHS: Emulator = Emulator {
    program: PROGRAM,
    install: INSTALL,
    port: GuestPort::SecondSerial,
    drivers: &[],
    slowness: 6,
    has_our_clock: false,
    // Debian's Bochs stops in its debugger before the first instruction.
    input: "c\n",
    command,
    complaint,
};

const PROGRAM: &str = "bochs";

const INSTALL: &str = "run `apt-get install bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso`";

/// What a machine needs before it has a kernel.
const FIRMWARE: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VIDEO_FIRMWARE: &str = "/usr/share/vgabios/vgabios.bin";

/// How many instructions make a second of the guest's clock, which does not follow the system's: limits
/// inside of the guest are limits on what is executed, however long that takes. It is about what an idle
/// system executes of nested guests in a second.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// Beyond QEMU's: Linux does not find its way in this processor's XSAVE. A reset ends the machine, as a triple
/// fault may not reset it.
const COMMAND_LINE: &str = "noxsave reboot=triple";

fn command(parts: &Parts<'_>) -> Result<Prepared, RigError> {
    let cannot_start = |source| RigError::Io { what: format!("start {PROGRAM}"), source };
    for file in [FIRMWARE, VIDEO_FIRMWARE] {
        if !Path::new(file).exists() {
            return Err(not_installed(PROGRAM, INSTALL));
        }
    }
    let cd = iso::bootable(parts.kernel, parts.initramfs, &format!("{} {COMMAND_LINE}", parts.command_line))?;
    let mut config = tempfile::tempfile().map_err(cannot_start)?;
    config.write_all(configuration(parts, &cd).as_bytes()).map_err(cannot_start)?;
    let mut command = Command::new(PROGRAM);
    command.args(["-q", "-f", &path_of(&config)]);
    // Its screen and its debugger's talk: nobody looks.
    command.stdout(Stdio::null()).env("TERM", "dumb");
    Ok(Prepared { command, files: vec![cd, config] })
}

fn configuration(parts: &Parts<'_>, cd: &File) -> String {
    let (cd, console, port) = (path_of(cd), path_of(parts.console), parts.port.as_raw_fd());
    // A power-off and a triple fault are panics to it, which end it with status 1. Sound without a sound card
    // makes it crash.
    format!(
        "cpu: model=corei7_haswell_4770, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         clock: sync=none, time0=local\n\
         megs: 2048\n\
         romimage: file={FIRMWARE}\n\
         vgaromimage: file={VIDEO_FIRMWARE}\n\
         boot: cdrom\n\
         ata0-master: type=cdrom, path={cd}, status=inserted\n\
         com1: enabled=1, mode=file, dev={console}\n\
         com2: enabled=1, mode=file, dev=/proc/self/fd/{port}\n\
         display_library: term\n\
         sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n"
    )
}

/// The message of the panic that ended it; without one its last line.
fn complaint(stderr: &str) -> Option<&str> {
    let panic = stderr.lines().rev().find_map(|line| line.split_once(">>PANIC<< "));
    panic.map(|(_, message)| message).or_else(|| stderr.lines().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_complaint_is_the_panic_among_its_talk() {
        let talk = "00000000000i[      ] BXSHARE not set.\n";
        let panic = "04164387111p[ACPI  ] >>PANIC<< ACPI control: soft power off\n=====\nBochs is exiting\n";
        assert_eq!(complaint(&format!("{talk}{panic}")), Some("ACPI control: soft power off"));
        assert_eq!(complaint(talk), Some("00000000000i[      ] BXSHARE not set."));
        assert_eq!(complaint(""), None);
    }
}
