//! Ioctls made by another process, which has the descriptors but not the memory of the one that made a VM.
#![expect(unsafe_code, reason = "fork(2)")]

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::verdict::{Outcome, Stop};
use crate::vm::Vm;

impl Vm {
    /// [`set_memory_attributes_raw`](Vm::set_memory_attributes_raw) from a child process.
    ///
    /// # Errors
    /// Outside `Stop::Error` if there is no child to be had; inside the error number of the ioctl.
    pub fn set_memory_attributes_elsewhere(&self, gpa: u64, size: u64, attributes: u64) -> Outcome<Result<(), Errno>> {
        // SAFETY: the child makes one ioctl with a struct on its stack and ends by _exit(2); neither allocates
        // nor takes a lock, so threads that the child lacks are not missed.
        let child = match unsafe { fork() }.map_err(|errno| Stop::Error(format!("fork: {errno:?}")))? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let errno =
                    self.set_memory_attributes_raw(gpa, size, attributes, 0).err().map_or(0, |errno| errno as i32);
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
}
