//! Memory whose pages are not there until somebody brings them, as a guest's that is still coming from another host:
//! userfaultfd(2).
#![expect(unsafe_code, reason = "userfaultfd(2), and its ioctls")]

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::mapping::Mapping;
use crate::outcome::{Lack, LackOf, Outcome, Stop};
use crate::units::{PAGE_SIZE, PageCount};

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;
/// `UFFD_EVENT_PAGEFAULT`.
const PAGEFAULT: u8 = 0x12;

/// `struct uffdio_api`.
#[repr(C)]
pub struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
pub struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
pub struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

nix::ioctl_readwrite! {
    /// Agrees on the interface.
    uffdio_api, 0xaa, 0x3f, Api
}
nix::ioctl_readwrite! {
    /// Takes a range.
    uffdio_register, 0xaa, 0x00, Register
}
nix::ioctl_readwrite! {
    /// Brings pages.
    uffdio_copy, 0xaa, 0x03, Copy
}

/// Brings the pages of a mapping.
#[derive(Debug)]
pub struct Userfault<'a> {
    file: std::fs::File,
    memory: &'a Mapping,
}

impl<'a> Userfault<'a> {
    /// From here on, whoever touches a page of `memory` that is not there waits for it, in the kernel, too.
    ///
    /// # Errors
    /// `Stop::Skip` if this process may not have that, or the kernel has none; `Stop::Error` with the error number.
    pub fn over(memory: &'a Mapping) -> Outcome<Userfault<'a>> {
        // Where reading would block there is no waiting for it by poll(2) (kernel: fs/userfaultfd.c: userfaultfd_poll).
        // SAFETY: the call takes no memory.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) });
        let fd = fd.map_err(|errno| match errno {
            Errno::EPERM | Errno::ENOSYS => Stop::Skip(Lack {
                of: LackOf::Feature,
                reason: format!("userfaultfd: {errno:?}; run as root, or on a kernel with CONFIG_USERFAULTFD"),
            }),
            errno => failed("userfaultfd", errno),
        })?;
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it. It is an int.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = Api { api: API, features: 0, ioctls: 0 };
        // SAFETY: the request's size is that of the struct, which lives until the call returns.
        unsafe { uffdio_api(fd.as_raw_fd(), &mut api) }.map_err(|errno| failed("UFFDIO_API", errno))?;
        let mut register = Register { start: memory.addr(), len: memory.len(), mode: MISSING, ioctls: 0 };
        // SAFETY: likewise. Memory that is registered stays what it is; who touches it may wait.
        unsafe { uffdio_register(fd.as_raw_fd(), &mut register) }.map_err(|errno| failed("UFFDIO_REGISTER", errno))?;
        Ok(Self { file: fd.into(), memory })
    }

    /// Waits until somebody waits for a page, and says for which of the mapping.
    ///
    /// # Errors
    /// `Stop::Timeout` if nobody does in time, `Stop::Error` on anything else that the kernel tells.
    pub fn wanted(&mut self, limit: Duration) -> Outcome<u64> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], timeout);
        if ready.map_err(|errno| failed("poll of a userfaultfd", errno))? == 0 {
            return Err(Stop::Timeout(format!("nobody has wanted a page within {} ms", limit.as_millis())));
        }
        // struct uffd_msg: the event, and from byte 16 on the address.
        let mut message = [0; 32];
        self.file.read_exact(&mut message).map_err(|error| Stop::Error(format!("a userfaultfd's message: {error}")))?;
        let address = u64::from_le_bytes(message[16..24].try_into().unwrap_or_default());
        match address.checked_sub(self.memory.addr()) {
            Some(offset) if message[0] == PAGEFAULT && offset < self.memory.len() => Ok(offset / PAGE_SIZE),
            _ => Err(Stop::Error(format!("a userfaultfd tells of event {:#x} at {address:#x}", message[0]))),
        }
    }

    /// Brings page `page` of the mapping with what is in the first page of `from`, and wakes whoever waits for it.
    ///
    /// # Errors
    /// `Stop::Error` with the error number: EEXIST if it is there.
    pub fn bring(&self, page: u64, from: &Mapping) -> Outcome {
        let dst = self.memory.addr() + PageCount(page).bytes();
        let mut copy = Copy { dst, src: from.addr(), len: PAGE_SIZE, mode: 0, copied: 0 };
        // SAFETY: the request's size is that of the struct, which lives until the call returns. The kernel writes to memory
        // that this was made for, which is a Mapping's, and so nobody has references to it.
        unsafe { uffdio_copy(self.file.as_raw_fd(), &mut copy) }.map_err(|errno| failed("UFFDIO_COPY", errno)).map(drop)
    }
}

fn failed(what: &str, errno: Errno) -> Stop {
    Stop::Error(format!("{what}: {errno:?}"))
}
