//! `/dev/sev`: the way to the secure processor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use crate::outcome::{Lack, LackOf, Outcome, Stop};

const PATH: &str = "/dev/sev";

/// An open `/dev/sev`.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// `Stop::Skip` with what is missing.
    pub fn open() -> Outcome<Device> {
        match OpenOptions::new().read(true).write(true).open(PATH) {
            Ok(file) => Ok(Device { file }),
            Err(error) => Err(Stop::Skip(Lack { of: LackOf::Resource, reason: why_not(&error) })),
        }
    }

    /// Why it cannot be opened, if it cannot.
    pub fn missing() -> Option<String> {
        OpenOptions::new().read(true).write(true).open(PATH).err().map(|error| why_not(&error))
    }

    /// The descriptor's number, as commands want it.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.fd()
    }
}

fn why_not(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => {
            format!(
                "{PATH} does not exist: load the driver of the secure processor (modprobe ccp) and see dmesg, `ccp`"
            )
        }
        Some(Errno::EACCES | Errno::EPERM) => format!("no permission to open {PATH}: run as root"),
        Some(errno) => format!("cannot open {PATH}: {errno:?}"),
        None => format!("cannot open {PATH}: {error}"),
    }
}
