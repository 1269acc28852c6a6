//! The C library's functions behind those that the model stands in for.
//!
//! The model itself, too, only calls these for the symbols that it defines.
#![expect(unsafe_code, reason = "symbols found by dlsym, called with their C signatures")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::OnceLock;

/// The address of the next definition of a symbol after the model's.
fn next(name: &'static CStr) -> usize {
    // SAFETY: a plain look-up by a C string.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize }
}

macro_rules! real {
    ($($symbol:literal fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $failure:expr;)*) => {
        $(
            /// The C library's; fails with ENOSYS should it have none.
            ///
            /// # Safety
            /// As for the C function.
            pub unsafe fn $name($($argument: $type),*) -> $result {
                static ADDRESS: OnceLock<usize> = OnceLock::new();
                let address = *ADDRESS.get_or_init(|| next($symbol));
                if address == 0 {
                    nix::errno::Errno::set_raw(libc::ENOSYS);
                    return $failure;
                }
                // SAFETY: the symbol has this signature in every C library that has it.
                let function: unsafe extern "C" fn($($type),*) -> $result = unsafe { std::mem::transmute(address) };
                // SAFETY: what the caller promises.
                unsafe { function($($argument),*) }
            }
        )*
    };
}

real! {
    c"openat64" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int = -1;
    c"close" fn close(fd: c_int) -> c_int = -1;
    c"dup" fn dup(fd: c_int) -> c_int = -1;
    c"dup2" fn dup2(from: c_int, to: c_int) -> c_int = -1;
    c"dup3" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int = -1;
    c"fcntl64" fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int = -1;
    c"ioctl" fn ioctl(fd: c_int, request: u64, argument: u64) -> c_int = -1;
    c"mmap64" fn mmap(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void = libc::MAP_FAILED;
    c"munmap" fn munmap(at: *mut c_void, len: usize) -> c_int = -1;
    c"mprotect" fn mprotect(at: *mut c_void, len: usize, protection: c_int) -> c_int = -1;
    c"mremap" fn mremap(at: *mut c_void, len: usize, new_len: usize, flags: c_int, to: *mut c_void) -> *mut c_void = libc::MAP_FAILED;
    c"madvise" fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int = -1;
    c"fallocate64" fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int = -1;
    c"ftruncate64" fn ftruncate(fd: c_int, len: i64) -> c_int = -1;
    c"read" fn read(fd: c_int, to: *mut c_void, len: usize) -> isize = -1;
    c"write" fn write(fd: c_int, from: *const c_void, len: usize) -> isize = -1;
    c"pread64" fn pread(fd: c_int, to: *mut c_void, len: usize, offset: i64) -> isize = -1;
    c"pwrite64" fn pwrite(fd: c_int, from: *const c_void, len: usize, offset: i64) -> isize = -1;
    c"lseek64" fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64 = -1;
    c"fopen64" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE = std::ptr::null_mut();
    c"fstatfs64" fn fstatfs(fd: c_int, to: *mut libc::statfs) -> c_int = -1;
    c"access" fn access(path: *const c_char, mode: c_int) -> c_int = -1;
    c"faccessat" fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int = -1;
    c"stat64" fn stat(path: *const c_char, to: *mut libc::stat) -> c_int = -1;
    c"lstat64" fn lstat(path: *const c_char, to: *mut libc::stat) -> c_int = -1;
    c"fstatat64" fn fstatat(dir: c_int, path: *const c_char, to: *mut libc::stat, flags: c_int) -> c_int = -1;
    c"statx" fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, to: *mut libc::statx) -> c_int = -1;
    c"opendir" fn opendir(path: *const c_char) -> *mut libc::DIR = std::ptr::null_mut();
    c"readdir64" fn readdir(dir: *mut libc::DIR) -> *mut libc::dirent64 = std::ptr::null_mut();
    c"closedir" fn closedir(dir: *mut libc::DIR) -> c_int = -1;
    c"dirfd" fn dirfd(dir: *mut libc::DIR) -> c_int = -1;
}
