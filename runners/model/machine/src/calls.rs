//! What the C library's calls do on the model's descriptors and paths. `None` means that the call is not the
//! model's business.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError, RwLockWriteGuard, Weak};

use nix::errno::Errno;

use crate::descriptors::{self, Object};
use crate::dispatch::{self, Argument, IoctlResult, Row};
use crate::log;
use crate::memory::Map;
use crate::options::Options;
use crate::paths::{self, Node};
use crate::stats::Stats;
use crate::system::{self, System};
use crate::user;
use crate::vm::Vm;
use crate::{vcpu_ioctls, vm_ioctls};

/// The machine; an environment that describes none is told once, and leaves the program without `/dev/kvm`.
///
/// # Errors
/// ENODEV.
pub fn options() -> Result<&'static Options, Errno> {
    static TOLD: std::sync::Once = std::sync::Once::new();
    Options::of_process().map_err(|bad| {
        TOLD.call_once(|| eprintln!("privet-model: {bad}"));
        Errno::ENODEV
    })
}

/// What is at a path.
pub fn node(path: &[u8]) -> Option<Result<Node, Errno>> {
    // Cheap for all other paths, since every open of the program comes by here.
    if ![&b"/dev/kvm"[..], b"/sys/module", b"/proc/cpuinfo", b"/proc/sys/kernel/osrelease"]
        .iter()
        .any(|start| path.starts_with(start))
    {
        return None;
    }
    match options() {
        Ok(options) => paths::lookup(path, options).map(Ok),
        Err(errno) => Some(Err(errno)),
    }
}

/// `ioctl`.
pub fn ioctl(fd: RawFd, request: u64, argument: u64) -> Option<Result<c_int, Errno>> {
    let argument = Argument(argument);
    Some(match descriptors::find(fd)? {
        Object::System => match options() {
            Ok(options) => {
                dispatch_to(system::IOCTLS, &System { options }, request, argument, "/dev/kvm", Errno::EINVAL)
            }
            Err(errno) => Err(errno),
        },
        Object::Vm(vm) if vm.is_foreign() => Err(Errno::EIO),
        Object::Vm(vm) => dispatch_to(vm_ioctls::IOCTLS, &vm, request, argument, "a VM", Errno::ENOTTY),
        Object::Vcpu(vcpu) if vcpu.vm.is_foreign() => Err(Errno::EIO),
        Object::Vcpu(vcpu) => dispatch_to(vcpu_ioctls::IOCTLS, &vcpu, request, argument, "a vCPU", Errno::EINVAL),
        Object::GuestMemfd(_) | Object::VmStats(_) | Object::VcpuStats(_) => Err(Errno::ENOTTY),
    })
}

fn dispatch_to<T>(
    rows: &'static [Row<T>],
    object: &T,
    request: u64,
    argument: Argument,
    what: &str,
    unknown: Errno,
) -> IoctlResult {
    match dispatch::find(rows, request) {
        Some((.., handler)) => handler(object, argument),
        None => {
            log::once(|| format!("ioctl {request:#x} of {what}: the model does not have it"));
            Err(unknown)
        }
    }
}

/// The statistics behind a descriptor.
fn statistics(object: &Object) -> Option<&Stats> {
    match object {
        Object::VmStats(vm) => Some(&vm.stats),
        Object::VcpuStats(file) => Some(&file.vcpu.stats),
        _ => None,
    }
}

/// The bytes that `pread` gives.
pub fn read_at(fd: RawFd, offset: i64, bytes: usize) -> Option<Result<Vec<u8>, Errno>> {
    let object = descriptors::find(fd)?;
    Some(match (statistics(&object), u64::try_from(offset)) {
        (_, Err(_)) => Err(Errno::EINVAL),
        (Some(stats), Ok(offset)) => Ok(stats.read(offset, bytes)),
        (None, _) => Err(no_position(&object)),
    })
}

/// What `pread` and `pwrite` say of a file without that operation: only files that were opened by a path have
/// positions.
fn no_position(object: &Object) -> Errno {
    if matches!(object, Object::System) { Errno::EINVAL } else { Errno::ESPIPE }
}

/// The bytes that `read` gives, from the file's position on.
pub fn read(fd: RawFd, position: i64, bytes: usize) -> Option<Result<Vec<u8>, Errno>> {
    let object = descriptors::find(fd)?;
    let stats = statistics(&object).ok_or(Errno::EINVAL);
    Some(stats.map(|stats| stats.read(position.max(0) as u64, bytes)))
}

/// `write`: nothing of the model's can be written.
pub fn write(fd: RawFd) -> Option<Errno> {
    Some(match descriptors::find(fd)? {
        Object::VmStats(_) | Object::VcpuStats(_) => Errno::EBADF,
        _ => Errno::EINVAL,
    })
}

/// `pwrite`, likewise.
pub fn write_at(fd: RawFd) -> Option<Errno> {
    descriptors::find(fd).map(|object| no_position(&object))
}

/// `lseek`: guest_memfd files have no position; that of the others does not move.
pub fn seek(fd: RawFd) -> Option<Result<i64, Errno>> {
    Some(match descriptors::find(fd)? {
        Object::GuestMemfd(_) => Err(Errno::ESPIPE),
        _ => Ok(0),
    })
}

/// The magic number of a guest_memfd's file system, for `fstatfs`.
pub fn file_system(fd: RawFd) -> Option<i64> {
    matches!(descriptors::find(fd)?, Object::GuestMemfd(_)).then_some(0x474d_454d)
}

/// `ftruncate`: the size of nothing of the model's can be changed.
pub fn truncate(fd: RawFd) -> Option<Errno> {
    descriptors::find(fd).map(|_| Errno::EINVAL)
}

/// `fallocate`.
pub fn fallocate(fd: RawFd, mode: c_int, offset: i64, len: i64) -> Option<Result<(), Errno>> {
    Some(match descriptors::find(fd)? {
        Object::GuestMemfd(file) => file.fallocate(fd, mode, offset, len),
        Object::VmStats(_) | Object::VcpuStats(_) => Err(Errno::EBADF),
        _ => Err(Errno::ENODEV),
    })
}

/// `mmap` of a descriptor. A vCPU's pages are mapped by the kernel: `Some(Ok(None))`.
pub fn mmap(
    fd: RawFd,
    place: (*mut c_void, usize),
    protection: c_int,
    flags: c_int,
    offset: i64,
) -> Option<Result<Option<*mut c_void>, Errno>> {
    Some(match descriptors::find(fd)? {
        Object::Vcpu(_) => Ok(None),
        Object::GuestMemfd(file) => file.map(fd, place, protection, flags, offset).map(Some),
        _ => Err(Errno::ENODEV),
    })
}

/// `madvise`: pages of a guest_memfd are never collapsed into huge ones.
pub fn advise(at: *mut c_void, advice: c_int) -> Option<Errno> {
    if advice != libc::MADV_COLLAPSE {
        return None;
    }
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let is_of_file = |line: &str| {
        let (start, rest) = line.split_once('-')?;
        let end = rest.split(' ').next()?;
        let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
        (range.contains(&(at as u64)) && line.contains("/memfd:[kvm-gmem]")).then_some(Errno::EINVAL)
    };
    maps.lines().find_map(is_of_file)
}

/// The VMs of the process, whose memory may be in mappings that the program changes.
static VMS: Mutex<Vec<Weak<Vm>>> = Mutex::new(Vec::new());

/// From now on changes of the program's mappings reach this VM.
pub(crate) fn watch_mappings(vm: &Arc<Vm>) {
    let mut vms = VMS.lock().unwrap_or_else(PoisonError::into_inner);
    vms.retain(|vm| vm.strong_count() > 0);
    vms.push(Arc::downgrade(vm));
}

/// Does `change` to the program's mappings in a range, while no vCPU uses them (kernel: MMU notifiers).
pub fn changing_mappings<R>(range: Range<u64>, change: impl FnOnce() -> R) -> R {
    let vms: Vec<Arc<Vm>> = {
        let vms = VMS.lock().unwrap_or_else(PoisonError::into_inner);
        vms.iter().filter_map(Weak::upgrade).filter(|vm| !vm.is_foreign()).collect()
    };
    let held: Vec<RwLockWriteGuard<'_, Map>> =
        vms.iter().filter_map(|vm| vm.memory.host_range_changes(range.clone())).collect();
    let result = change();
    drop(held);
    result
}

/// Whether a descriptor is the model's.
pub fn is_ours(fd: RawFd) -> bool {
    descriptors::find(fd).is_some()
}

/// What a descriptor of the model's stood for, released when dropped.
pub struct Closing {
    _object: Object,
}

/// `fd` is about to be closed or replaced. The caller drops the result once the number is free.
pub fn closing(fd: RawFd) -> Option<Closing> {
    descriptors::forget(fd).map(|object| Closing { _object: object })
}

/// `to` is now a duplicate of `from`.
pub fn duplicated(from: RawFd, to: RawFd) {
    // The number may have been the model's before, and closed unseen.
    drop(descriptors::forget(to));
    if let Some(object) = descriptors::find(from) {
        descriptors::register(to, object);
    }
}

/// Stores bytes at an address of the program's.
///
/// # Errors
/// EFAULT.
pub fn give(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    user::copy_out(address, bytes)
}

/// Tells the log of a panic that a caller has caught.
pub fn panicked() {
    log::once(|| "a panic in the model became EIO".into());
}
