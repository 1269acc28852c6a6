//! The symbols of the C library that the model defines: each passes a call on unless it is the model's.
//!
//! Nothing else in the crate knows of C. A panic ends here, as EIO and a line in the log.
#![expect(unsafe_code, reason = "the C library's functions, with their C signatures")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;

use privet_machine::paths::{self, Node};
use privet_machine::{calls, directory, real, signals};

const MAP_FAILED: *mut c_void = libc::MAP_FAILED;

/// Runs the model's part of a call; errno is the program's own unless the model answers.
fn guard<R>(call: impl FnOnce() -> Option<Result<R, Errno>>) -> Option<Result<R, Errno>> {
    let errno = Errno::last_raw();
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        calls::panicked();
        Some(Err(Errno::EIO))
    });
    Errno::set_raw(errno);
    result
}

/// The C form of an answer.
fn answer<R>(result: Result<R, Errno>, failure: R) -> R {
    result.unwrap_or_else(|errno| {
        errno.set();
        failure
    })
}

/// The node at a path of the program's.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn node(path: *const c_char) -> Option<Result<Node, Errno>> {
    if path.is_null() {
        return None;
    }
    // SAFETY: what the caller promises.
    let path = unsafe { CStr::from_ptr(path) };
    guard(|| calls::node(path.to_bytes()))
}

/// `open`, for all its names.
///
/// # Safety
/// As for [`node`].
unsafe fn open_at(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's path.
    match unsafe { node(path) } {
        Some(node) => {
            answer(guard(|| Some(node.and_then(|node| paths::open(&node, flags)))).unwrap_or(Err(Errno::EIO)), -1)
        }
        // SAFETY: the caller's arguments.
        None => unsafe { real::openat(dir, path, flags, mode) },
    }
}

/// The path to ask about in place of the program's.
///
/// # Safety
/// As for [`node`].
unsafe fn with_stand_in<R>(path: *const c_char, ask: impl FnOnce(*const c_char) -> R, failure: R) -> R {
    // SAFETY: the caller's path.
    match unsafe { node(path) } {
        None => ask(path),
        Some(Ok(node)) => ask(paths::stand_in(&node).as_ptr()),
        Some(Err(errno)) => answer(Err(errno), failure),
    }
}

macro_rules! symbols {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// As for the C library's function.
            // SAFETY: the C library's name is what this library is preloaded for.
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $result $body
        )*
    };
}

symbols! {
    /// `open(2)`.
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
    }

    /// `open(2)`.
    fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
    }

    /// `open(2)`, checked.
    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { open_at(libc::AT_FDCWD, path, flags, 0) }
    }

    /// `open(2)`, checked.
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { open_at(libc::AT_FDCWD, path, flags, 0) }
    }

    /// `openat(2)`.
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { open_at(dir, path, flags, mode) }
    }

    /// `openat(2)`.
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { open_at(dir, path, flags, mode) }
    }

    /// `fopen(3)`.
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        // SAFETY: the program's arguments.
        unsafe { open_stream(path, mode) }
    }

    /// `fopen(3)`.
    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        // SAFETY: the program's arguments.
        unsafe { open_stream(path, mode) }
    }

    /// `access(2)`.
    fn access(path: *const c_char, mode: c_int) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::access(path, mode), -1) }
    }

    /// `faccessat(2)`.
    fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::faccessat(dir, path, mode, flags), -1) }
    }

    /// `stat(2)`.
    fn stat(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::stat(path, to), -1) }
    }

    /// `stat(2)`.
    fn stat64(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::stat(path, to), -1) }
    }

    /// `lstat(2)`.
    fn lstat(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::lstat(path, to), -1) }
    }

    /// `lstat(2)`.
    fn lstat64(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::lstat(path, to), -1) }
    }

    /// `fstatat(2)`.
    fn fstatat(dir: c_int, path: *const c_char, to: *mut libc::stat, flags: c_int) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::fstatat(dir, path, to, flags), -1) }
    }

    /// `fstatat(2)`.
    fn fstatat64(dir: c_int, path: *const c_char, to: *mut libc::stat, flags: c_int) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::fstatat(dir, path, to, flags), -1) }
    }

    /// `statx(2)`.
    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, to: *mut libc::statx) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { with_stand_in(path, |path| real::statx(dir, path, flags, mask, to), -1) }
    }

    /// `opendir(3)`.
    fn opendir(path: *const c_char) -> *mut libc::DIR {
        // SAFETY: the program's path.
        match unsafe { node(path) } {
            // SAFETY: the program's path.
            None => unsafe { real::opendir(path) },
            Some(node) => {
                let open = || Some(node.and_then(|node| directory::open(&node, calls::options()?).ok_or(Errno::ENOENT)));
                answer(guard(open).unwrap_or(Err(Errno::EIO)), std::ptr::null_mut())
            }
        }
    }

    /// `readdir(3)`.
    fn readdir(stream: *mut libc::DIR) -> *mut libc::dirent64 {
        // SAFETY: the program's stream.
        unsafe { next_entry(stream) }
    }

    /// `readdir(3)`.
    fn readdir64(stream: *mut libc::DIR) -> *mut libc::dirent64 {
        // SAFETY: the program's stream.
        unsafe { next_entry(stream) }
    }

    /// `closedir(3)`.
    fn closedir(stream: *mut libc::DIR) -> c_int {
        if directory::is_ours(stream) {
            directory::close(stream);
            return 0;
        }
        // SAFETY: the program's stream.
        unsafe { real::closedir(stream) }
    }

    /// `dirfd(3)`: the model's streams have none.
    fn dirfd(stream: *mut libc::DIR) -> c_int {
        if directory::is_ours(stream) {
            return answer(Err(Errno::ENOTSUP), -1);
        }
        // SAFETY: the program's stream.
        unsafe { real::dirfd(stream) }
    }

    /// `close(2)`.
    fn close(fd: c_int) -> c_int {
        let object = guard(|| calls::closing(fd).map(Ok));
        // SAFETY: the program's descriptor.
        let result = unsafe { real::close(fd) };
        release(object);
        result
    }

    /// `dup(2)`.
    fn dup(fd: c_int) -> c_int {
        // SAFETY: the program's descriptor.
        duplicated(fd, unsafe { real::dup(fd) })
    }

    /// `dup2(2)`.
    fn dup2(from: c_int, to: c_int) -> c_int {
        let replaced = if from == to { None } else { guard(|| calls::closing(to).map(Ok)) };
        // SAFETY: the program's descriptors.
        let result = duplicated(from, unsafe { real::dup2(from, to) });
        release(replaced);
        result
    }

    /// `dup3(2)`.
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        let replaced = if from == to { None } else { guard(|| calls::closing(to).map(Ok)) };
        // SAFETY: the program's descriptors.
        let result = duplicated(from, unsafe { real::dup3(from, to, flags) });
        release(replaced);
        result
    }

    /// `fcntl(2)`.
    fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { control(fd, command, argument) }
    }

    /// `fcntl(2)`.
    fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { control(fd, command, argument) }
    }

    /// `ioctl(2)`.
    fn ioctl(fd: c_int, request: u64, argument: u64) -> c_int {
        let result = guard(|| calls::ioctl(fd, request, argument));
        // Handlers of signals that came during KVM_RUN run in here.
        signals::restore();
        match result {
            Some(result) => answer(result, -1),
            // SAFETY: the program's arguments.
            None => unsafe { real::ioctl(fd, request, argument) },
        }
    }

    /// `mmap(2)`.
    fn mmap(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void {
        // SAFETY: the program's arguments.
        unsafe { map(at, len, protection, flags, fd, offset) }
    }

    /// `mmap(2)`.
    fn mmap64(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void {
        // SAFETY: the program's arguments.
        unsafe { map(at, len, protection, flags, fd, offset) }
    }

    /// `munmap(2)`.
    fn munmap(at: *mut c_void, len: usize) -> c_int {
        // SAFETY: the program's arguments.
        changing(at, len, || unsafe { real::munmap(at, len) })
    }

    /// `mprotect(2)`.
    fn mprotect(at: *mut c_void, len: usize, protection: c_int) -> c_int {
        // SAFETY: the program's arguments.
        changing(at, len, || unsafe { real::mprotect(at, len, protection) })
    }

    /// `madvise(2)`.
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int {
        match guard(|| calls::advise(at, advice).map(Err)) {
            Some(refused) => answer(refused, -1),
            // SAFETY: the program's arguments.
            None => unsafe { real::madvise(at, len, advice) },
        }
    }

    /// `mremap(2)`.
    fn mremap(at: *mut c_void, len: usize, new_len: usize, flags: c_int, to: *mut c_void) -> *mut c_void {
        // SAFETY: the program's arguments.
        let remap = || unsafe { real::mremap(at, len, new_len, flags, to) };
        if flags & libc::MREMAP_FIXED != 0 { changing(to, new_len, || changing(at, len, remap)) } else { changing(at, len, remap) }
    }

    /// `fallocate(2)`.
    fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { allocate(fd, mode, offset, len) }
    }

    /// `fallocate(2)`.
    fn fallocate64(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { allocate(fd, mode, offset, len) }
    }

    /// `ftruncate(2)`.
    fn ftruncate(fd: c_int, len: i64) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { truncate(fd, len) }
    }

    /// `ftruncate(2)`.
    fn ftruncate64(fd: c_int, len: i64) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { truncate(fd, len) }
    }

    /// `read(2)`.
    fn read(fd: c_int, to: *mut c_void, len: usize) -> isize {
        // SAFETY: the program's arguments.
        unsafe { read_on(fd, to, len) }
    }

    /// `read(2)`, checked.
    fn __read_chk(fd: c_int, to: *mut c_void, len: usize, _room: usize) -> isize {
        // SAFETY: the program's arguments.
        unsafe { read_on(fd, to, len) }
    }

    /// `pread(2)`.
    fn pread(fd: c_int, to: *mut c_void, len: usize, offset: i64) -> isize {
        // SAFETY: the program's arguments.
        unsafe { read_at(fd, to, len, offset) }
    }

    /// `pread(2)`.
    fn pread64(fd: c_int, to: *mut c_void, len: usize, offset: i64) -> isize {
        // SAFETY: the program's arguments.
        unsafe { read_at(fd, to, len, offset) }
    }

    /// `pread(2)`, checked.
    fn __pread64_chk(fd: c_int, to: *mut c_void, len: usize, offset: i64, _room: usize) -> isize {
        // SAFETY: the program's arguments.
        unsafe { read_at(fd, to, len, offset) }
    }

    /// `write(2)`.
    fn write(fd: c_int, from: *const c_void, len: usize) -> isize {
        match guard(|| calls::write(fd).map(Err)) {
            Some(refused) => answer(refused, -1),
            // SAFETY: the program's arguments.
            None => unsafe { real::write(fd, from, len) },
        }
    }

    /// `lseek(2)`.
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64 {
        // SAFETY: the program's arguments.
        unsafe { seek(fd, offset, whence) }
    }

    /// `lseek(2)`.
    fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
        // SAFETY: the program's arguments.
        unsafe { seek(fd, offset, whence) }
    }

    /// `fstatfs(2)`.
    fn fstatfs(fd: c_int, to: *mut libc::statfs) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { file_system(fd, to) }
    }

    /// `fstatfs(2)`.
    fn fstatfs64(fd: c_int, to: *mut libc::statfs) -> c_int {
        // SAFETY: the program's arguments.
        unsafe { file_system(fd, to) }
    }

    /// `pwrite(2)`.
    fn pwrite(fd: c_int, from: *const c_void, len: usize, offset: i64) -> isize {
        // SAFETY: the program's arguments.
        unsafe { write_at(fd, from, len, offset) }
    }

    /// `pwrite(2)`.
    fn pwrite64(fd: c_int, from: *const c_void, len: usize, offset: i64) -> isize {
        // SAFETY: the program's arguments.
        unsafe { write_at(fd, from, len, offset) }
    }
}

/// Lets go of what a closed descriptor stood for.
fn release<R>(object: R) {
    let _ = guard(|| {
        drop(object);
        None::<Result<(), Errno>>
    });
}

/// A descriptor was duplicated: the new number stands for the same.
fn duplicated(from: c_int, to: c_int) -> c_int {
    if to >= 0 && to != from {
        let _ = guard(|| {
            calls::duplicated(from, to);
            None::<Result<(), Errno>>
        });
    }
    to
}

unsafe fn control(fd: c_int, command: c_int, argument: c_long) -> c_int {
    // SAFETY: the program's arguments.
    let result = unsafe { real::fcntl(fd, command, argument) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, result),
        _ => result,
    }
}

unsafe extern "C" {
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut libc::FILE;
}

unsafe fn open_stream(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: the program's path.
    let Some(node) = (unsafe { node(path) }) else {
        // SAFETY: the program's arguments.
        return unsafe { real::fopen(path, mode) };
    };
    // SAFETY: a mode that begins with r only reads, but for "r+".
    let reads = !mode.is_null() && unsafe { *mode == b'r' as c_char && *mode.add(1) != b'+' as c_char };
    let flags = if reads { libc::O_RDONLY } else { libc::O_RDWR };
    match guard(|| Some(node.and_then(|node| paths::open(&node, flags)))) {
        // SAFETY: a descriptor that is the program's now.
        Some(Ok(fd)) => unsafe { fdopen(fd, mode) },
        Some(Err(errno)) => answer(Err(errno), std::ptr::null_mut()),
        None => std::ptr::null_mut(),
    }
}

unsafe fn next_entry(stream: *mut libc::DIR) -> *mut libc::dirent64 {
    if directory::is_ours(stream) {
        return directory::read(stream);
    }
    // SAFETY: the program's stream.
    unsafe { real::readdir(stream) }
}

/// Does something to the program's mappings, with the VMs' consent.
fn changing<R>(at: *mut c_void, len: usize, change: impl FnOnce() -> R) -> R {
    let start = at as u64;
    // Not guarded: it must be done exactly once, and what comes before it does not panic.
    calls::changing_mappings(start..start.saturating_add(len as u64), change)
}

unsafe fn map(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void {
    let ours = if flags & libc::MAP_ANONYMOUS != 0 {
        None
    } else {
        guard(|| calls::mmap(fd, (at, len), protection, flags, offset))
    };
    match ours {
        Some(Err(errno)) => answer(Err(errno), MAP_FAILED),
        Some(Ok(Some(mapped))) => mapped,
        Some(Ok(None)) | None => {
            // SAFETY: the program's arguments.
            let map = || unsafe { real::mmap(at, len, protection, flags, fd, offset) };
            if flags & libc::MAP_FIXED != 0 { changing(at, len, map) } else { map() }
        }
    }
}

unsafe fn allocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int {
    match guard(|| calls::fallocate(fd, mode, offset, len)) {
        Some(result) => answer(result.map(|()| 0), -1),
        // SAFETY: the program's arguments.
        None => unsafe { real::fallocate(fd, mode, offset, len) },
    }
}

unsafe fn truncate(fd: c_int, len: i64) -> c_int {
    match guard(|| calls::truncate(fd).map(Err)) {
        Some(refused) => answer(refused, -1),
        // Pages behind slots may go, wherever they are mapped.
        // SAFETY: the program's arguments.
        None => calls::changing_mappings(0..u64::MAX, || unsafe { real::ftruncate(fd, len) }),
    }
}

/// Stores what a read gave.
fn store(bytes: &[u8], to: *mut c_void) -> Result<isize, Errno> {
    calls::give(to as u64, bytes).map(|()| bytes.len() as isize)
}

unsafe fn read_at(fd: c_int, to: *mut c_void, len: usize, offset: i64) -> isize {
    match guard(|| calls::read_at(fd, offset, len).map(|bytes| store(&bytes?, to))) {
        Some(result) => answer(result, -1),
        // SAFETY: the program's arguments.
        None => unsafe { real::pread(fd, to, len, offset) },
    }
}

/// `read`: the position is that of the memfd.
unsafe fn read_on(fd: c_int, to: *mut c_void, len: usize) -> isize {
    // SAFETY: no memory is involved.
    let seek = |offset, whence| unsafe { real::lseek(fd, offset, whence) };
    let read = || {
        if !calls::is_ours(fd) {
            return None;
        }
        let position = seek(0, libc::SEEK_CUR);
        let bytes = match calls::read(fd, position, len)? {
            Ok(bytes) => bytes,
            Err(errno) => return Some(Err(errno)),
        };
        seek(position + bytes.len() as i64, libc::SEEK_SET);
        Some(store(&bytes, to))
    };
    match guard(read) {
        Some(result) => answer(result, -1),
        // SAFETY: the program's arguments.
        None => unsafe { real::read(fd, to, len) },
    }
}

unsafe fn write_at(fd: c_int, from: *const c_void, len: usize, offset: i64) -> isize {
    match guard(|| calls::write_at(fd).map(Err)) {
        Some(refused) => answer(refused, -1),
        // SAFETY: the program's arguments.
        None => unsafe { real::pwrite(fd, from, len, offset) },
    }
}

unsafe fn seek(fd: c_int, offset: i64, whence: c_int) -> i64 {
    match guard(|| calls::seek(fd)) {
        Some(result) => answer(result, -1),
        // SAFETY: the program's arguments.
        None => unsafe { real::lseek(fd, offset, whence) },
    }
}

unsafe fn file_system(fd: c_int, to: *mut libc::statfs) -> c_int {
    // SAFETY: the program's arguments.
    let result = unsafe { real::fstatfs(fd, to) };
    if let (0, Some(Ok(magic))) = (result, guard(|| calls::file_system(fd).map(Ok))) {
        // SAFETY: the kernel has just filled it in.
        unsafe { (*to).f_type = magic };
    }
    result
}
