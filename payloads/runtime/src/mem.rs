//! What the compiler calls by name and `core` does not bring for this target.
#![expect(unsafe_code, reason = "memory functions of C")]

use core::arch::asm;

/// `memcpy` of C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
            options(nostack, preserves_flags))
    };
    to
}

/// `memmove` of C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: the caller's; `to` does not begin within `from`, so that copying upwards reads nothing
        // that it has overwritten.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's; downwards, from the last byte on, with the direction flag as it was afterwards.
    unsafe {
        asm!("lea rdi, [rdi + rcx - 1]", "lea rsi, [rsi + rcx - 1]", "std", "rep movsb", "cld",
            inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack))
    };
    to
}

/// `memset` of C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("al") value as u8,
            options(nostack, preserves_flags))
    };
    to
}

/// `memcmp` of C.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    let difference: i32;
    // SAFETY: the caller's. In assembly because the compiler may turn such a loop into a call of memcmp. The
    // comparison at the start is for length 0, after which `repe` leaves the flags alone.
    unsafe {
        asm!("cmp eax, eax", "repe cmpsb", "seta al", "setb cl", "sub al, cl", "movsx eax, al",
            inout("rsi") left => _, inout("rdi") right => _, inout("rcx") len => _,
            out("eax") difference, options(nostack))
    };
    difference
}

/// `bcmp` of BSD: zero if equal.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(left, right, len) }
}
