//! The descriptors that the model has handed out, and what is behind them.
//!
//! Each is a memfd of its own, so that numbers, limits, duplication, inheritance and mappings are the
//! kernel's. The table says which numbers are the model's; since a program can close and reuse a number
//! without the model seeing it, the file behind a number is compared each time.
#![expect(unsafe_code, reason = "memfd_create, fstat and pthread_atfork")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_uint};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, Once, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use nix::errno::Errno;

use crate::guest_memfd::GuestMemfd;
use crate::real;
use crate::ticker;
use crate::vcpu::VcpuFile;
use crate::vm::Vm;

/// What is behind a descriptor.
#[derive(Clone)]
pub(crate) enum Object {
    /// `/dev/kvm`.
    System,
    /// `KVM_CREATE_VM`.
    Vm(Arc<Vm>),
    /// `KVM_CREATE_VCPU`.
    Vcpu(Arc<VcpuFile>),
    /// `KVM_CREATE_GUEST_MEMFD`.
    GuestMemfd(Arc<GuestMemfd>),
    /// `KVM_GET_STATS_FD` of a VM.
    VmStats(Arc<Vm>),
    /// `KVM_GET_STATS_FD` of a vCPU.
    VcpuStats(Arc<VcpuFile>),
}

/// The file that a number stood for when it was handed out.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

struct Entry {
    object: Object,
    identity: Identity,
}

type Table = HashMap<RawFd, Entry>;

/// One bit a descriptor, so that calls on others neither wait nor look anything up.
static OURS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

fn bit(fd: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    // Numbers beyond the bitmap share its last bit, which is never cleared.
    let fd = fd.min(OURS.len() * 64 - 1);
    Some((&OURS[fd / 64], 1 << (fd % 64)))
}

fn table() -> &'static RwLock<Table> {
    static TABLE: OnceLock<RwLock<Table>> = OnceLock::new();
    static AT_FORK: Once = Once::new();
    let table = TABLE.get_or_init(RwLock::default);
    AT_FORK.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded.
        unsafe { libc::pthread_atfork(Some(lock_for_fork), Some(unlock_after_fork), Some(unlock_after_fork)) };
    });
    table
}

thread_local! {
    /// The table, and the ticker's, locked while this thread forks, so that the child finds them whole.
    static FORKING: RefCell<Option<(RwLockWriteGuard<'static, Table>, MutexGuard<'static, ticker::State>)>> = const { RefCell::new(None) };
}

extern "C" fn lock_for_fork() {
    let guard = table().write().unwrap_or_else(PoisonError::into_inner);
    let ticker = ticker::lock();
    let _ = FORKING.try_with(|forking| *forking.borrow_mut() = Some((guard, ticker)));
}

extern "C" fn unlock_after_fork() {
    let _ = FORKING.try_with(|forking| *forking.borrow_mut() = None);
}

fn identity(fd: RawFd) -> Option<Identity> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: room for the structure.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in by fstat.
    let status = unsafe { status.assume_init() };
    Some(Identity { device: status.st_dev, inode: status.st_ino })
}

/// A new memfd.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM.
pub(crate) fn new_memfd(name: &CStr, size: u64, flags: c_uint) -> Result<RawFd, Errno> {
    // SAFETY: a C string.
    let fd = Errno::result(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: a descriptor that nobody else knows of.
    if unsafe { real::ftruncate(fd, size as i64) } == 0 {
        return Ok(fd);
    }
    let errno = Errno::last();
    // SAFETY: as above.
    unsafe { real::close(fd) };
    Err(errno)
}

/// From now on `fd` is the model's.
pub(crate) fn register(fd: RawFd, object: Object) {
    let Some(identity) = identity(fd) else { return };
    let mut table = table().write().unwrap_or_else(PoisonError::into_inner);
    if let Some((word, mask)) = bit(fd) {
        word.fetch_or(mask, Ordering::SeqCst);
    }
    let old = table.insert(fd, Entry { object, identity });
    drop(table);
    // What an unseen close left behind goes without the lock held, since it may close more.
    drop(old);
}

/// A new descriptor for an object: a memfd of `size` bytes.
///
/// # Errors
/// As [`new_memfd`].
pub(crate) fn hand_out(name: &CStr, size: u64, flags: c_uint, object: Object) -> Result<RawFd, Errno> {
    let fd = new_memfd(name, size, flags)?;
    register(fd, object);
    Ok(fd)
}

/// What is behind `fd`; None if it is not the model's.
pub(crate) fn find(fd: RawFd) -> Option<Object> {
    let (word, mask) = bit(fd)?;
    if word.load(Ordering::SeqCst) & mask == 0 {
        return None;
    }
    let (object, known) = {
        let table = table().read().unwrap_or_else(PoisonError::into_inner);
        let entry = table.get(&fd)?;
        (entry.object.clone(), entry.identity)
    };
    if identity(fd) == Some(known) {
        return Some(object);
    }
    forget(fd);
    None
}

/// `fd` is about to be closed or replaced. The object is released when the result is dropped, which the caller
/// does once the number is free.
pub(crate) fn forget(fd: RawFd) -> Option<Object> {
    let (word, mask) = bit(fd)?;
    if word.load(Ordering::SeqCst) & mask == 0 {
        return None;
    }
    let mut table = table().write().unwrap_or_else(PoisonError::into_inner);
    let entry = table.remove(&fd)?;
    if (fd as usize) < OURS.len() * 64 - 1 {
        word.fetch_and(!mask, Ordering::SeqCst);
    }
    Some(entry.object)
}

/// Whether a number is open at all.
pub(crate) fn is_open(fd: RawFd) -> bool {
    identity(fd).is_some()
}

/// Closes a descriptor that was never handed out.
pub(crate) fn close_unregistered(fd: RawFd) {
    // SAFETY: nobody else knows of it.
    unsafe { real::close(fd) };
}
