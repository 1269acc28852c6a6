//! Exact expectations, with both sides in the message.

use std::fmt::Debug;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::{Outcome, Stop};

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
