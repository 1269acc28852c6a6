//! Exact expectations, with both sides in the message.

use std::fmt::Debug;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::sev::{Firmware, Refused};

/// Expects `seen` to equal `expected`.
pub(crate) fn expect_eq<T: PartialEq + Debug>(what: &str, seen: &T, expected: &T) -> Outcome {
    if seen == expected {
        return Ok(());
    }
    Err(Stop::Fail(format!("{what}: saw {seen:x?}, expected {expected:x?}")))
}

/// Expects that KVM_RUN has returned exactly `operations` times since there were `before` exits: once for the
/// doorbell of each operation, and never for anything else.
pub(crate) fn expect_no_exit_but(t: &Case, before: u64, operations: u64) -> Outcome {
    let seen = t.trace().exits() - before;
    if seen == operations {
        return Ok(());
    }
    Err(Stop::Fail(format!(
        "KVM_RUN returned {seen} times for {operations} operations: KVM left the guest without need"
    )))
}

/// Expects an ioctl to succeed.
pub(crate) fn expect_ok<T>(what: &str, result: Result<T, Errno>) -> Outcome<T> {
    result.map_err(|errno| Stop::Fail(format!("{what}: failed with {errno:?}, expected success")))
}

/// Expects an ioctl to fail with exactly this errno.
pub(crate) fn expect_errno<T>(what: &str, result: Result<T, Errno>, expected: Errno) -> Outcome {
    match result {
        Err(errno) if errno == expected => Ok(()),
        Err(errno) => Err(Stop::Fail(format!("{what}: failed with {errno:?}, expected {expected:?}"))),
        Ok(_) => Err(Stop::Fail(format!("{what}: succeeded, expected {expected:?}"))),
    }
}

/// Expects something that is no equality.
pub(crate) fn expect_that(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Stop::Fail(otherwise())) }
}

/// Expects a command of `KVM_MEMORY_ENCRYPT_OP` to succeed.
pub(crate) fn expect_done<T>(what: &str, result: Result<T, Refused>) -> Outcome<T> {
    result.map_err(|refused| Stop::Fail(format!("{what}: {refused}, expected success")))
}

/// Expects such a command to fail with exactly this errno and this word of the firmware.
pub(crate) fn expect_refused<T>(what: &str, result: Result<T, Refused>, errno: Errno, firmware: Firmware) -> Outcome {
    match result {
        Err(refused) if (refused.errno, refused.firmware) == (errno, firmware) => Ok(()),
        Err(refused) => Err(Stop::Fail(format!("{what}: {refused}, expected {errno:?}, {firmware}"))),
        Ok(_) => Err(Stop::Fail(format!("{what}: succeeded, expected {errno:?}, {firmware}"))),
    }
}

/// Expects KVM to refuse such a command without a word from the firmware.
pub(crate) fn expect_refused_by_kvm<T>(what: &str, result: Result<T, Refused>, errno: Errno) -> Outcome {
    expect_refused(what, result, errno, Firmware::NOT_ASKED)
}

/// Expects the firmware to refuse such a command with this status.
pub(crate) fn expect_refused_by_firmware<T>(what: &str, result: Result<T, Refused>, firmware: Firmware) -> Outcome {
    expect_refused(what, result, Errno::EIO, firmware)
}
