//! Ioctls made by another process, which has the descriptors but not the memory of the one that made a VM.
#![expect(unsafe_code, reason = "fork(2)")]

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::outcome::{Outcome, Stop};
use crate::raw;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

impl Vm {
    /// [`set_memory_attributes_raw`](Vm::set_memory_attributes_raw) from a child process.
    ///
    /// # Errors
    /// Outside `Stop::Error` if there is no child to be had; inside the error number of the ioctl.
    pub fn set_memory_attributes_elsewhere(&self, gpa: u64, size: u64, attributes: u64) -> Outcome<Result<(), Errno>> {
        // SAFETY: the closure makes one ioctl with a struct on its stack, without a lock or an allocation.
        unsafe { in_child(|| self.set_memory_attributes_raw(gpa, size, attributes, 0)) }
    }

    /// [`ioctl_raw`](Vm::ioctl_raw) with the argument 0 from a child process.
    ///
    /// # Errors
    /// As above.
    pub fn ioctl_raw_elsewhere(&self, request: u64) -> Outcome<Result<(), Errno>> {
        ioctl_in_child(self.kvm(), request)
    }
}

/// Makes all private memory of this process copy-on-write, and its own again: a child has it, too, until it ends, at once.
/// What this process has not written since then the kernel maps read-only.
///
/// # Errors
/// `Stop::Error` if there is no child to be had.
pub fn lend_memory() -> Outcome {
    // SAFETY: the closure does nothing.
    let lent = unsafe { in_child(|| Ok(())) }?;
    lent.map_err(|errno| Stop::Error(format!("a child that does nothing ended with {errno:?}")))
}

impl Vcpu {
    /// [`ioctl_raw`](Vcpu::ioctl_raw) with the argument 0 from a child process.
    ///
    /// # Errors
    /// As above, and outside `Stop::Error` if the vCPU is running.
    pub fn ioctl_raw_elsewhere(&self, request: u64) -> Outcome<Result<(), Errno>> {
        ioctl_in_child(self.kvm()?, request)
    }
}

fn ioctl_in_child(fd: &impl AsRawFd, request: u64) -> Outcome<Result<(), Errno>> {
    // SAFETY: the closure makes one ioctl, without a lock or an allocation.
    unsafe { in_child(|| raw::with_small_argument(fd, request, 0).map(drop)) }
}

/// What `ioctl` returns in a child process.
///
/// # Safety
/// `ioctl` neither allocates nor takes a lock: the child has one thread only, and what the others held stays
/// locked in it.
unsafe fn in_child(ioctl: impl FnOnce() -> Result<(), Errno>) -> Outcome<Result<(), Errno>> {
    // SAFETY: the child calls what the caller vouches for and ends by _exit(2).
    let child = match unsafe { fork() }.map_err(|errno| Stop::Error(format!("fork: {errno:?}")))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let errno = ioctl().err().map_or(0, |errno| errno as i32);
            // SAFETY: _exit(2) runs nothing of this program.
            unsafe { libc::_exit(errno) }
        }
    };
    match waitpid(child, None).map_err(|errno| Stop::Error(format!("waiting for a child: {errno:?}")))? {
        WaitStatus::Exited(_, 0) => Ok(Ok(())),
        WaitStatus::Exited(_, errno) => Ok(Err(Errno::from_raw(errno))),
        other => Err(Stop::Error(format!("a child that makes an ioctl ended as {other:?}"))),
    }
}
