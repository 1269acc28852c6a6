//! Doorbells that KVM answers itself: a store to their address rings, and does not exit.

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use nix::errno::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::errno;
use crate::outcome::{Outcome, Stop};
use crate::units::Gpa;
use crate::vm::Vm;

/// An eventfd that KVM rings for a guest.
#[derive(Debug)]
pub struct IoEventFd {
    rings: EventFd,
}

impl IoEventFd {
    /// How often it was rung since it was asked last.
    ///
    /// # Errors
    /// `Stop::Error` if the eventfd cannot be read.
    pub fn rings(&self) -> Outcome<u64> {
        match self.rings.read() {
            Ok(rings) => Ok(rings),
            Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => Ok(0),
            Err(error) => Err(Stop::Error(format!("reading an eventfd: {error}"))),
        }
    }
}

impl Vm {
    /// `KVM_IOEVENTFD` at `gpa`, for stores of every length to exactly there.
    ///
    /// # Errors
    /// `Stop::Error` without an eventfd, `Stop::Fail` if KVM refuses it.
    pub fn add_ioeventfd(&self, gpa: Gpa) -> Outcome<IoEventFd> {
        self.add(IoEventAddress::Mmio(gpa.0), NoDatamatch)
    }

    /// `KVM_IOEVENTFD` at `gpa`, for stores of 8 bytes with this value.
    ///
    /// # Errors
    /// As above.
    pub fn add_ioeventfd_for(&self, gpa: Gpa, value: u64) -> Outcome<IoEventFd> {
        self.add(IoEventAddress::Mmio(gpa.0), value)
    }

    /// `KVM_IOEVENTFD` at an I/O port, for `out` of one byte with this value.
    ///
    /// # Errors
    /// As above.
    pub fn add_port_ioeventfd_for(&self, port: u16, value: u8) -> Outcome<IoEventFd> {
        self.add(IoEventAddress::Pio(port.into()), value)
    }

    fn add(&self, at: IoEventAddress, value: impl Into<u64>) -> Outcome<IoEventFd> {
        let rings =
            EventFd::new(EFD_NONBLOCK).map_err(|error| Stop::Error(format!("cannot make an eventfd: {error}")))?;
        self.kvm()
            .register_ioevent(&rings, &at, value)
            .map_err(|error| Stop::Fail(format!("KVM_IOEVENTFD at {at:x?}: {:?}", errno::of_kvm(error))))?;
        Ok(IoEventFd { rings })
    }
}
