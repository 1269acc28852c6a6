//! Touching host memory that guests, other threads and this process' owner touch at the same time.
//!
//! Every access is one machine instruction in inline assembly: it is as wide, as atomic (also when
//! unaligned) and as ordered as the guest's own instruction would be, because the host's memory model
//! is the guest's. To the compiler it is opaque, so a race is a race of the machine, not undefined
//! behaviour of the language.
#![expect(unsafe_code, reason = "guest memory is host memory behind raw pointers")]

use std::arch::asm;
use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_prefetch};

/// A value that one instruction moves between registers and memory.
pub(crate) trait Cell: Copy + Eq {
    /// # Safety
    /// `from` points to as many readable bytes.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `to` points to as many writable bytes.
    unsafe fn store(to: *mut u8, value: Self);
    /// Stores `new` if the memory holds `old`, with LOCK; returns what it held.
    ///
    /// # Safety
    /// `at` points to as many writable bytes; 16-byte cells are aligned.
    unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self;
}

macro_rules! cell {
    ($type:ty, $class:ident, $acc:tt, $modifier:literal, $width:literal) => {
        impl Cell for $type {
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                let value;
                // SAFETY: the caller says that the bytes are readable; nothing else is touched.
                unsafe {
                    asm!(concat!("mov {v", $modifier, "}, ", $width, " ptr [{p}]"), v = out($class) value, p = in(reg) from,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(to: *mut u8, value: Self) {
                // SAFETY: the caller says that the bytes are writable; nothing else is touched.
                unsafe {
                    asm!(concat!("mov ", $width, " ptr [{p}], {v", $modifier, "}"), v = in($class) value, p = in(reg) to,
                        options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self {
                let found;
                // SAFETY: the caller says that the bytes are writable; nothing else is touched.
                unsafe {
                    asm!(concat!("lock cmpxchg ", $width, " ptr [{p}], {n", $modifier, "}"), n = in($class) new,
                        p = in(reg) at, inout($acc) old => found, options(nostack));
                }
                found
            }
        }
    };
}

cell!(u8, reg_byte, "al", "", "byte");
cell!(u16, reg, "ax", ":x", "word");
cell!(u32, reg, "eax", ":e", "dword");
cell!(u64, reg, "rax", ":r", "qword");

impl Cell for u128 {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        let value: __m128i;
        // SAFETY: the caller says that the bytes are readable; nothing else is touched.
        unsafe {
            asm!("movups {v}, xmmword ptr [{p}]", v = out(xmm_reg) value, p = in(reg) from,
                options(nostack, preserves_flags, readonly));
            std::mem::transmute(value)
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, value: Self) {
        // SAFETY: the caller says that the bytes are writable; nothing else is touched. Both types
        // are 16 plain bytes.
        unsafe {
            let value: __m128i = std::mem::transmute(value);
            asm!("movups xmmword ptr [{p}], {v}", v = in(xmm_reg) value, p = in(reg) to,
                options(nostack, preserves_flags));
        }
    }

    unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self {
        let (low, high);
        // SAFETY: the caller says that the bytes are writable and aligned. RBX, which the compiler
        // keeps to itself, is put back.
        unsafe {
            asm!("xchg {b}, rbx", "lock cmpxchg16b xmmword ptr [{p}]", "mov rbx, {b}",
                b = inout(reg) new as u64 => _, p = in(reg) at, in("rcx") (new >> 64) as u64,
                inout("rax") old as u64 => low, inout("rdx") (old >> 64) as u64 => high, options(nostack));
        }
        let (low, high): (u64, u64) = (low, high);
        u128::from(high) << 64 | u128::from(low)
    }
}

/// Has the processor fetch what will be read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(what: Option<&T>) {
    if let Some(what) = what {
        // SAFETY: a prefetch reads nothing that a program sees, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) };
    }
}

/// Copies bytes out of guest memory.
///
/// # Safety
/// `from` points to `into.len()` readable bytes.
pub(crate) unsafe fn copy_out(from: *const u8, into: &mut [u8]) {
    // SAFETY: the caller's promise for `from`; `into` is a live slice. REP MOVSB is opaque to the
    // compiler as the other accesses are.
    unsafe {
        asm!("rep movsb", inout("rcx") into.len() => _, inout("rsi") from => _, inout("rdi") into.as_mut_ptr() => _,
            options(nostack, preserves_flags));
    }
}

/// Copies bytes into guest memory.
///
/// # Safety
/// `to` points to `from.len()` writable bytes.
pub(crate) unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    // SAFETY: as in `copy_out`.
    unsafe {
        asm!("rep movsb", inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Moves `count` elements of `size` bytes upwards from one guest address to another as REP MOVS does,
/// also when they overlap.
///
/// # Safety
/// `from` points to `count * size` readable bytes, `to` to as many writable ones.
pub(crate) unsafe fn rep_movs(to: *mut u8, from: *const u8, count: u64, size: u64) {
    macro_rules! movs {
        ($insn:literal) => {
            // SAFETY: the caller's promise; the direction flag is clear in Rust code.
            unsafe {
                asm!($insn, inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _,
                    options(nostack, preserves_flags));
            }
        };
    }
    match size {
        1 => movs!("rep movsb"),
        2 => movs!("rep movsw"),
        4 => movs!("rep movsd"),
        _ => movs!("rep movsq"),
    }
}

/// Stores `count` elements of `size` bytes upwards as REP STOS does.
///
/// # Safety
/// `to` points to `count * size` writable bytes.
pub(crate) unsafe fn rep_stos(to: *mut u8, value: u64, count: u64, size: u64) {
    macro_rules! stos {
        ($insn:literal) => {
            // SAFETY: the caller's promise; the direction flag is clear in Rust code.
            unsafe {
                asm!($insn, inout("rcx") count => _, in("rax") value, inout("rdi") to => _,
                    options(nostack, preserves_flags));
            }
        };
    }
    match size {
        1 => stos!("rep stosb"),
        2 => stos!("rep stosw"),
        4 => stos!("rep stosd"),
        _ => stos!("rep stosq"),
    }
}

/// Compares `accumulator` with up to `count` elements of `size` bytes upwards as REPE SCAS does, or as REPNE
/// SCAS if not `equal`; returns how many it has compared, and RFLAGS after the last.
///
/// # Safety
/// `at` points to `count * size` readable bytes, and `count` is not 0.
pub(crate) unsafe fn rep_scas(at: *const u8, accumulator: u64, count: u64, size: u64, equal: bool) -> (u64, u64) {
    let (left, flags): (u64, u64);
    macro_rules! scas {
        ($insn:literal) => {
            // SAFETY: the caller's promise; the direction flag is clear in Rust code.
            unsafe {
                asm!($insn, "pushfq", "pop {flags}", flags = out(reg) flags, inout("rcx") count => left,
                    in("rax") accumulator, inout("rdi") at => _, options(readonly));
            }
        };
    }
    match (size, equal) {
        (1, true) => scas!("repe scasb"),
        (2, true) => scas!("repe scasw"),
        (4, true) => scas!("repe scasd"),
        (_, true) => scas!("repe scasq"),
        (1, false) => scas!("repne scasb"),
        (2, false) => scas!("repne scasw"),
        (4, false) => scas!("repne scasd"),
        (_, false) => scas!("repne scasq"),
    }
    (count - left, flags)
}

/// Whether guest memory holds exactly `expected`.
///
/// # Safety
/// `at` points to `expected.len()` readable bytes.
#[inline(always)]
pub(crate) unsafe fn equals(at: *const u8, expected: &[u8]) -> bool {
    let words = expected.len() / 8;
    for index in 0..words {
        let word = u64::from_le_bytes(expected[index * 8..index * 8 + 8].try_into().expect("8 bytes"));
        // SAFETY: inside the bytes that the caller says are readable.
        if unsafe { u64::load(at.add(index * 8)) } != word {
            return false;
        }
    }
    for (index, &byte) in expected.iter().enumerate().skip(words * 8) {
        // SAFETY: as above.
        if unsafe { u8::load(at.add(index)) } != byte {
            return false;
        }
    }
    true
}
