//! Failing loudly: what broke, where, and during which operation, in the mailbox.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::{Failure, FailureKind, Fault, GuestMailbox, MAX_MESSAGE, Reply};

use crate::doorbell;
use crate::vcpu::Vcpu;

/// At the end of a message that did not fit.
const CUT: &[u8] = b" [cut]";

const NO_FAULT: Fault = Fault { vector: 0, error_code: 0, rip: 0, cr2: 0 };

/// An exception outside of every probe.
pub(crate) fn exception(vcpu: &Vcpu, fault: Fault) -> ! {
    fail(vcpu, format_args!(""), "", Failure { fault, ..failure(FailureKind::Exception, 0, 0) })
}

/// An exception in the handler of exception `outer`, which is thereby lost.
pub(crate) fn nested_exception(vcpu: &Vcpu, fault: Fault, outer: u64) -> ! {
    let failure = Failure { fault, left: outer, ..failure(FailureKind::NestedException, 0, 0) };
    fail(vcpu, format_args!(""), "", failure)
}

/// The host does not understand a request of ours: its code, and SW_EXITINFO1 and 2 of the answer.
#[track_caller]
pub(crate) fn refused(code: u64, info_1: u64, info_2: u64) -> ! {
    let place = core::panic::Location::caller();
    let failure = failure(FailureKind::Refused, place.line(), place.column());
    let fault = Fault { vector: 0, error_code: code, ..NO_FAULT };
    fail(Vcpu::current(), format_args!(""), place.file(), Failure { left: info_1, right: info_2, fault, ..failure })
}

/// A failed assertion: use [`guest_assert_eq!`](crate::guest_assert_eq).
#[doc(hidden)]
#[track_caller]
pub fn assertion(expression: &str, left: u64, right: u64) -> ! {
    let place = core::panic::Location::caller();
    let failure = Failure { left, right, ..failure(FailureKind::Assertion, place.line(), place.column()) };
    fail(Vcpu::current(), format_args!("{expression}"), place.file(), failure)
}

/// Fails with expression, operands and place if two integers of at most 64 bits differ. Nothing is formatted
/// in the guest.
#[macro_export]
macro_rules! guest_assert_eq {
    ($left:expr, $right:expr $(,)?) => {{
        let (left, right) = ($left as u64, $right as u64);
        if left != right {
            $crate::failure::assertion(concat!(stringify!($left), " == ", stringify!($right)), left, right);
        }
    }};
}

#[cfg(privet_payload)]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let (file, line, column) = info.location().map_or(("", 0, 0), |l| (l.file(), l.line(), l.column()));
    fail(Vcpu::current(), format_args!("{}", info.message()), file, failure(FailureKind::Panic, line, column))
}

fn failure(kind: FailureKind, line: u32, column: u32) -> Failure {
    Failure { kind, line: line.into(), column: column.into(), left: 0, right: 0, fault: NO_FAULT, op: 0 }
}

fn fail(vcpu: &Vcpu, message: fmt::Arguments<'_>, file: &str, failure: Failure) -> ! {
    // A failure while one is being told would overwrite it.
    if vcpu.failed.swap(1, Relaxed) == 0 {
        let mailbox = vcpu.mailbox();
        let mut text = Message { mailbox, len: 0, cut: false };
        // Formatting can only fail where the message is cut, which is marked.
        let _ = text.write_fmt(message);
        mailbox.set_failure_texts(text.finish(), file.as_bytes());
        let op = if vcpu.busy.load(Relaxed) == 1 { mailbox.op_code() } else { 0 };
        mailbox.answer(vcpu.sequence.load(Relaxed), Reply::Failed(Failure { op, ..failure }));
    }
    park(vcpu)
}

/// Nothing follows: each time the host enters the guest again, the doorbell rings again.
pub(crate) fn park(vcpu: &Vcpu) -> ! {
    loop {
        doorbell::ring(vcpu);
    }
}

/// Writes a message into the mailbox as it is formatted: stacks are small.
struct Message<'a> {
    mailbox: GuestMailbox<'a>,
    len: usize,
    cut: bool,
}

impl Message<'_> {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mailbox.set_byte(self.len, *byte);
            self.len += 1;
        }
    }

    fn finish(mut self) -> usize {
        if self.cut {
            self.len = MAX_MESSAGE - CUT.len();
            self.put(CUT);
        }
        self.len
    }
}

impl Write for Message<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.len().min(MAX_MESSAGE - self.len);
        self.put(&text.as_bytes()[..fits]);
        self.cut = fits < text.len();
        if self.cut { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use privet_protocol::{HostMailbox, WORDS};

    use super::*;

    /// What the host reads after `write` has formatted a message.
    fn told(write: impl FnOnce(&mut Message<'_>) -> fmt::Result) -> (fmt::Result, String) {
        let words = [const { AtomicU64::new(0) }; WORDS];
        let mailbox = GuestMailbox::new(&words);
        let mut message = Message { mailbox, len: 0, cut: false };
        let written = write(&mut message);
        mailbox.set_failure_texts(message.finish(), b"file.rs");
        let (text, file) = HostMailbox::new(&words).texts().unwrap();
        assert!(file.eq(*b"file.rs"));
        (written, String::from_utf8(text.collect()).unwrap())
    }

    #[test]
    fn a_message_arrives_whole() {
        assert_eq!(told(|m| write!(m, "{} of {:#x}", 7, 255)), (Ok(()), "7 of 0xff".into()));
        let longest = "x".repeat(MAX_MESSAGE);
        assert_eq!(told(|m| write!(m, "{longest}")), (Ok(()), longest.clone()));
    }

    #[test]
    fn a_message_that_does_not_fit_says_so() {
        let (written, text) = told(|m| write!(m, "{}zzz", "y".repeat(MAX_MESSAGE - 2)));
        assert!(written.is_err());
        assert_eq!(text.len(), MAX_MESSAGE);
        assert!(text.ends_with("yyy [cut]"), "{text}");
    }
}
