//! CPU accesses to host memory that survive SIGBUS and SIGSEGV.
//!
//! Rows ask whether a page of a guest_memfd can be touched, so the access must be one that the CPU makes:
//! system calls that copy (process_vm_readv, write) take another way into the file. All accesses are made
//! by the few instructions below. A signal handler recognises a fault in them by RIP, and makes them return
//! the signal and the address instead; any other fault is left to the handler that was there before.
#![expect(unsafe_code, reason = "memory accesses in assembly and the signal handler that recovers them")]

use std::arch::global_asm;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// A signal that an access met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{signal} at host address {address:#x}")]
pub struct Fault {
    /// SIGBUS or SIGSEGV.
    pub signal: Signal,
    /// The address that faulted.
    pub address: usize,
}

// Every function returns RAX = 0, or from the fixup RAX = signal and RDX = address, both set by the handler.
global_asm!(
    ".pushsection .text.privet_catch,\"ax\",@progbits",
    ".hidden privet_catch_start, privet_catch_end, privet_catch_fixup",
    ".hidden privet_catch_copy, privet_catch_fill, privet_catch_first_other, privet_catch_first_equal",
    ".hidden privet_catch_word",
    ".globl privet_catch_start, privet_catch_end, privet_catch_fixup",
    ".globl privet_catch_copy, privet_catch_fill, privet_catch_first_other, privet_catch_first_equal",
    ".globl privet_catch_word",
    "privet_catch_start:",
    // (rdi = to, rsi = from, rdx = bytes)
    "privet_catch_copy:",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep movsq",
    "mov rcx, rdx",
    "and rcx, 7",
    "rep movsb",
    "xor eax, eax",
    "ret",
    // (rdi = to, rsi = the word, rdx = bytes)
    "privet_catch_fill:",
    "mov rax, rsi",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep stosq",
    "mov rcx, rdx",
    "and rcx, 7",
    "rep stosb",
    "xor eax, eax",
    "ret",
    // (rdi = from, rsi = the word, rdx = words, one at least); RDX = words from the first other one on
    "privet_catch_first_other:",
    "mov rax, rsi",
    "mov rcx, rdx",
    "repe scasq",
    "setne al",
    "jmp privet_catch_scanned",
    // The same for the first equal one.
    "privet_catch_first_equal:",
    "mov rax, rsi",
    "mov rcx, rdx",
    "repne scasq",
    "sete al",
    "privet_catch_scanned:",
    "movzx edx, al",
    "add rdx, rcx",
    "xor eax, eax",
    "ret",
    // (rdi = to, rsi = from), one access of 8 bytes each
    "privet_catch_word:",
    "mov rcx, [rsi]",
    "mov [rdi], rcx",
    "xor eax, eax",
    "ret",
    "privet_catch_end:",
    "privet_catch_fixup:",
    "ret",
    ".popsection",
);

/// RAX and RDX, as the System V ABI returns them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Caught {
    signal: u64,
    address: u64,
}

// SAFETY: the functions are defined above with these signatures and keep to the System V ABI; the labels
// are only used for their addresses.
unsafe extern "sysv64" {
    fn privet_catch_copy(to: *mut u8, from: *const u8, bytes: usize) -> Caught;
    fn privet_catch_fill(to: *mut u8, word: u64, bytes: usize) -> Caught;
    fn privet_catch_first_other(from: *const u64, word: u64, words: usize) -> Caught;
    fn privet_catch_first_equal(from: *const u64, word: u64, words: usize) -> Caught;
    fn privet_catch_word(to: *mut u64, from: *const u64) -> Caught;
    safe static privet_catch_start: u8;
    safe static privet_catch_end: u8;
    safe static privet_catch_fixup: u8;
}

/// Copies `bytes` bytes in ascending order, in words of 8 bytes first.
///
/// # Safety
/// Both ranges must be free of Rust objects that others access, or be the caller's to access; they must not
/// overlap. They need not be mapped.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) -> Result<(), Fault> {
    catch();
    // SAFETY: what the caller promises; faults are recovered.
    of(unsafe { privet_catch_copy(to, from, bytes) })
}

/// Fills `bytes` bytes with `word`, again and again.
///
/// # Safety
/// As for the destination of [`copy`].
pub(crate) unsafe fn fill(to: *mut u8, word: u64, bytes: usize) -> Result<(), Fault> {
    catch();
    // SAFETY: what the caller promises; faults are recovered.
    of(unsafe { privet_catch_fill(to, word, bytes) })
}

/// What [`first`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sought {
    /// A word that is this one.
    Equal(u64),
    /// One that is not.
    Other(u64),
}

/// The number of the first such word among `words`.
///
/// # Safety
/// As for the source of [`copy`].
pub(crate) unsafe fn first(sought: Sought, from: *const u64, words: usize) -> Result<Option<usize>, Fault> {
    catch();
    if words == 0 {
        return Ok(None);
    }
    // SAFETY: what the caller promises; faults are recovered. There is a word.
    let found = unsafe {
        match sought {
            Sought::Equal(word) => privet_catch_first_equal(from, word, words),
            Sought::Other(word) => privet_catch_first_other(from, word, words),
        }
    };
    // Without a fault this is no address, but how many words there are from the one that was found.
    let left = found.address as usize;
    of(found).map(|()| (left > 0).then(|| words - left))
}

/// Copies 8 bytes by one load and one store; each is atomic where the address is aligned.
///
/// # Safety
/// As for [`copy`].
pub(crate) unsafe fn copy_word(to: *mut u64, from: *const u64) -> Result<(), Fault> {
    catch();
    // SAFETY: what the caller promises; faults are recovered.
    of(unsafe { privet_catch_word(to, from) })
}

fn of(caught: Caught) -> Result<(), Fault> {
    match caught.signal as c_int {
        0 => Ok(()),
        libc::SIGBUS => Err(Fault { signal: Signal::SIGBUS, address: caught.address as usize }),
        _ => Err(Fault { signal: Signal::SIGSEGV, address: caught.address as usize }),
    }
}

static PREVIOUS: OnceLock<[Result<SigAction, Errno>; 2]> = OnceLock::new();

/// Installs the handler once. Should the kernel refuse it, which it has no reason to, faults end the process
/// as they would without it.
fn catch() {
    PREVIOUS.get_or_init(|| {
        let action =
            SigAction::new(SigHandler::SigAction(recover), SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK, SigSet::empty());
        // SAFETY: the handler only uses its arguments, an atomic load and sigaction(2), which are
        // async-signal-safe.
        [Signal::SIGBUS, Signal::SIGSEGV].map(|signal| unsafe { sigaction(signal, &action) })
    });
}

extern "C" fn recover(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let start = &raw const privet_catch_start as i64;
    let end = &raw const privet_catch_end as i64;
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo and a ucontext, ours until we return.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let registers = &mut context.uc_mcontext.gregs;
    if (start..end).contains(&registers[libc::REG_RIP as usize]) {
        registers[libc::REG_RAX as usize] = signal.into();
        // SAFETY: SIGBUS and SIGSEGV that the CPU caused carry an address.
        registers[libc::REG_RDX as usize] = unsafe { info.si_addr() } as i64;
        registers[libc::REG_RIP as usize] = &raw const privet_catch_fixup as i64;
        return;
    }
    let index = usize::from(signal == libc::SIGSEGV);
    let previous = match PREVIOUS.get() {
        Some(previous) => previous[index].ok(),
        None => None,
    };
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let signal = if signal == libc::SIGSEGV { Signal::SIGSEGV } else { Signal::SIGBUS };
    // SAFETY: gives the signal back to whoever had it; the instruction faults again and is theirs.
    let _ = unsafe { sigaction(signal, &previous.unwrap_or(default)) };
}
