//! `KVM_IOEVENTFD`: stores that ring an eventfd where user space would have been asked.
//!
//! Source: `virt/kvm/eventfd.c`: kvm_assign_ioeventfd, kvm_deassign_ioeventfd, ioeventfd_in_range.
#![expect(unsafe_code, reason = "descriptors of the program, which are duplicated")]

use std::fs;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use kvm_bindings::*;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::defect::Defect;
use crate::dispatch::IoctlResult;
use crate::options::Options;
use crate::real;

const DATAMATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;
const VIRTIO_CCW: u32 = 1 << kvm_ioeventfd_flag_nr_virtio_ccw_notify;

/// Where the model's own duplicates of eventfds begin: out of the way of a program that counts on low numbers.
const FIRST_FD: i64 = 512;

/// What a store goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Mmio(u64),
    Port(u64),
}

impl Target {
    fn moved_below(self, bytes: u64) -> Self {
        match self {
            Self::Mmio(gpa) => Self::Mmio(gpa & !(bytes - 1)),
            port @ Self::Port(_) => port,
        }
    }
}

/// Which stores ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stores {
    target: Target,
    /// In bytes; 0 for any.
    length: u32,
    /// The value, in the low bytes; `None` for any.
    value: Option<u64>,
}

impl Stores {
    fn include(&self, target: Target, data: &[u8]) -> bool {
        if self.target != target || self.length != 0 && self.length as usize != data.len() {
            return false;
        }
        let bytes = |value: u64| value.to_le_bytes();
        self.length == 0 || self.value.is_none_or(|value| bytes(value)[..data.len()] == *data)
    }

    /// Whether some store would ring both.
    fn collide(&self, other: &Self) -> bool {
        self.target == other.target
            && (self.length == 0
                || other.length == 0
                || self.length == other.length
                    && (self.value.is_none() || other.value.is_none() || self.value == other.value))
    }
}

/// One ioeventfd.
struct Bell {
    stores: Stores,
    /// The kernel's number of the eventfd, whatever descriptor it is known by.
    id: u64,
    eventfd: OwnedFd,
}

/// The ioeventfds of a VM.
#[derive(Default)]
pub(crate) struct IoEventFds {
    bells: RwLock<Vec<Bell>>,
    /// There are some: vCPUs of other VMs need not look.
    any: AtomicBool,
}

impl IoEventFds {
    /// The ioctl.
    ///
    /// # Errors
    /// EINVAL, EEXIST, ENOENT, EBADF, and what a duplicate of the descriptor may fail with.
    pub(crate) fn change(&self, request: &kvm_ioeventfd) -> IoctlResult {
        let &kvm_ioeventfd { datamatch, addr, len, fd, flags, .. } = request;
        let assign = flags & DEASSIGN == 0;
        let is_valid = matches!(len, 0 | 1 | 2 | 4 | 8)
            && addr.checked_add(len.into()).is_some()
            && flags & !(DATAMATCH | PIO | DEASSIGN | VIRTIO_CCW) == 0
            && (len != 0 || flags & DATAMATCH == 0);
        if assign && !is_valid {
            return Err(Errno::EINVAL);
        }
        let id = eventfd_id(fd)?;
        let target = if flags & PIO == 0 { Target::Mmio(addr) } else { Target::Port(addr) };
        let stores = Stores { target, length: len, value: (flags & DATAMATCH != 0).then_some(datamatch) };
        let mut bells = self.bells.write().unwrap_or_else(PoisonError::into_inner);
        if !assign {
            let found = bells.iter().position(|bell| bell.id == id && bell.stores == stores).ok_or(Errno::ENOENT)?;
            bells.remove(found);
        } else if bells.iter().any(|bell| bell.stores.collide(&stores)) {
            return Err(Errno::EEXIST);
        } else {
            bells.push(Bell { stores, id, eventfd: duplicate(fd)? });
        }
        self.any.store(!bells.is_empty(), Ordering::SeqCst);
        Ok(0)
    }

    /// Whether there are any at all.
    pub(crate) fn are_any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// Rings for a store. False if there is nothing to ring: user space is asked.
    pub(crate) fn take(&self, target: Target, data: &[u8], options: &Options) -> bool {
        let target = if options.has(Defect::IoeventfdRingsBeside) { target.moved_below(8) } else { target };
        self.ring(|stores| stores.include(target, data))
    }

    /// Rings for an access to MMIO that is known for it, without a look at what it is (kernel: KVM_FAST_MMIO_BUS).
    /// False if there is nothing to ring.
    pub(crate) fn take_undecoded(&self, gpa: u64) -> bool {
        self.ring(|stores| stores.length == 0 && stores.target == Target::Mmio(gpa))
    }

    fn ring(&self, includes: impl Fn(&Stores) -> bool) -> bool {
        if !self.are_any() {
            return false;
        }
        let bells = self.bells.read().unwrap_or_else(PoisonError::into_inner);
        let Some(bell) = bells.iter().find(|bell| includes(&bell.stores)) else { return false };
        // One that is full stays full (kernel: eventfd_signal); the write would wait for a reader.
        let mut fds = [PollFd::new(bell.eventfd.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO) == Ok(1) {
            let _ = nix::unistd::write(&bell.eventfd, &1u64.to_ne_bytes());
        }
        true
    }
}

/// The kernel's number of an eventfd.
///
/// # Errors
/// EBADF if the descriptor is closed, EINVAL if it is something else.
fn eventfd_id(fd: i32) -> Result<u64, Errno> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|_| Errno::EBADF)?;
    let id = info.lines().find_map(|line| line.strip_prefix("eventfd-id:"));
    id.and_then(|id| id.trim().parse().ok()).ok_or(Errno::EINVAL)
}

fn duplicate(fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: only makes a new descriptor, of an open one that the caller has just looked at.
    let above = |first| Errno::result(unsafe { real::fcntl(fd, libc::F_DUPFD_CLOEXEC, first) });
    // EINVAL: this process may not have numbers so high (RLIMIT_NOFILE).
    let duplicate = above(FIRST_FD).or_else(|errno| if errno == Errno::EINVAL { above(0) } else { Err(errno) })?;
    // SAFETY: it was just made, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::eventfd::EventFd;

    use super::*;

    const AT: Target = Target::Mmio(0x1000);

    fn stores(length: u32, value: Option<u64>) -> Stores {
        Stores { target: AT, length, value }
    }

    #[test]
    fn a_store_rings_by_address_length_and_value() {
        assert!(stores(0, None).include(AT, &[1, 2]));
        assert!(!stores(0, None).include(Target::Mmio(0x1001), &[1]));
        assert!(!stores(0, None).include(Target::Port(0x1000), &[1]));
        assert!(stores(2, None).include(AT, &[1, 2]) && !stores(2, None).include(AT, &[1]));
        assert!(stores(2, Some(0x0201)).include(AT, &[1, 2]) && !stores(2, Some(0x0201)).include(AT, &[2, 2]));
    }

    #[test]
    fn two_that_one_store_would_ring_collide() {
        let collide = |a, b| Stores::collide(&a, &b);
        assert!(collide(stores(0, None), stores(4, Some(1))) && collide(stores(4, None), stores(4, Some(1))));
        assert!(!collide(stores(4, Some(2)), stores(4, Some(1))) && !collide(stores(4, None), stores(2, None)));
        assert!(!collide(stores(0, None), Stores { target: Target::Port(0x1000), ..stores(0, None) }));
    }

    #[test]
    fn garbage_is_refused_as_the_kernel_does() {
        let eventfds = IoEventFds::default();
        let eventfd = EventFd::new().unwrap();
        let fd = eventfd.as_fd().as_raw_fd();
        let request = |len, flags, fd| kvm_ioeventfd { addr: 0x1000, len, fd, flags, ..Default::default() };
        for (refused, errno) in [
            (request(3, 0, fd), Errno::EINVAL),
            (request(4, 1 << 9, fd), Errno::EINVAL),
            (request(0, DATAMATCH, fd), Errno::EINVAL),
            (kvm_ioeventfd { addr: u64::MAX, ..request(4, 0, fd) }, Errno::EINVAL),
            (request(4, 0, -1), Errno::EBADF),
            (request(4, 0, 0), Errno::EINVAL),
            (request(4, DEASSIGN, fd), Errno::ENOENT),
        ] {
            assert_eq!(eventfds.change(&refused), Err(errno), "{refused:?}");
        }
        assert_eq!(eventfds.change(&request(4, 0, fd)), Ok(0));
        assert_eq!(eventfds.change(&request(0, 0, fd)), Err(Errno::EEXIST));
        assert_eq!(eventfds.change(&request(4, DEASSIGN, fd)), Ok(0));
        assert!(!eventfds.take(AT, &[0; 4], &Options::default()));
    }
}
