//! guest_memfd: the files that hold private memory.
#![expect(unsafe_code, reason = "owning the descriptor that an ioctl returned")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::kvm_create_guest_memfd;
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use crate::errno;
use crate::host_action::HostAction;
use crate::mapping::{MapOptions, Mapping};
use crate::outcome::{Outcome, Stop};
use crate::trace::Trace;

/// fallocate mode: the file's size stays. The only mode of a guest_memfd that allocates.
pub const FALLOC_KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
/// fallocate mode: free the pages; together with [`FALLOC_KEEP_SIZE`].
pub const FALLOC_PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE;

/// A guest_memfd. Closed on drop, whether slots use it or not; may outlive its VM, which the kernel keeps
/// alive as long as the descriptor is open.
#[derive(Debug)]
pub struct GuestMemfd {
    fd: OwnedFd,
    size: u64,
    /// Where it is told what the host does to it, and of which VM it is.
    trace: Option<(Arc<Trace>, u64)>,
}

impl GuestMemfd {
    /// `KVM_CREATE_GUEST_MEMFD`, see [`Vm::create_guest_memfd_raw`](crate::vm::Vm::create_guest_memfd_raw).
    pub(crate) fn create(vm: &VmFd, size: u64, flags: u64) -> Result<GuestMemfd, Errno> {
        let request = kvm_create_guest_memfd { size, flags, reserved: [0; 6] };
        let fd = vm.create_guest_memfd(request).map_err(errno::of_kvm)?;
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok(GuestMemfd { fd: unsafe { OwnedFd::from_raw_fd(fd) }, size, trace: None })
    }

    /// The same, with what the host does to it going to the trace, as of the VM with this number.
    pub(crate) fn traced(self, trace: &Arc<Trace>, vm: u64) -> Self {
        Self { trace: Some((Arc::clone(trace), vm)), ..self }
    }

    /// The size in bytes that the file was created with.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor's number, as memslots want it.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Punches a hole: guest mappings are zapped, the pages freed; the next access finds zeroes.
    ///
    /// # Errors
    /// `Stop::Fail` with the range and the error number.
    pub fn punch(&self, offset: u64, bytes: u64) -> Outcome {
        self.fallocate_raw(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, offset, bytes)
            .map_err(|errno| refused("PUNCH_HOLE", offset, bytes, errno))
    }

    /// Allocates pages ahead of their use.
    ///
    /// # Errors
    /// `Stop::Fail` with the range and the error number.
    pub fn allocate(&self, offset: u64, bytes: u64) -> Outcome {
        self.fallocate_raw(FALLOC_KEEP_SIZE, offset, bytes).map_err(|errno| refused("KEEP_SIZE", offset, bytes, errno))
    }

    /// fallocate(2) with any mode and range.
    ///
    /// # Errors
    /// The error number of the call.
    pub fn fallocate_raw(&self, mode: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
        // SAFETY: fallocate takes numbers and the descriptor is ours.
        let came = Errno::result(unsafe { libc::fallocate(self.fd(), mode, offset as i64, bytes as i64) }).map(drop);
        if let Some((trace, vm)) = &self.trace {
            trace.host_did(*vm, HostAction::Fallocate { mode, offset, bytes }, &came);
        }
        came
    }

    /// mmap(2), read-write. Private to the process unless the options say shared, which is the only form
    /// that guest_memfd accepts.
    ///
    /// # Errors
    /// The error number of the call.
    pub fn mmap(&self, offset: u64, bytes: u64, options: MapOptions) -> Result<Mapping, Errno> {
        Mapping::of_file(self.fd.as_fd(), offset, bytes, options)
    }

    /// fstat(2).
    ///
    /// # Errors
    /// The error number of the call.
    pub fn fstat(&self) -> Result<FileStat, Errno> {
        fstat(&self.fd)
    }
}

impl AsFd for GuestMemfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn refused(mode: &str, offset: u64, bytes: u64, errno: Errno) -> Stop {
    Stop::Fail(format!("fallocate({mode}) of {bytes:#x} bytes at offset {offset:#x} of a guest_memfd: {errno:?}"))
}
