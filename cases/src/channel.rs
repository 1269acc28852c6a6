//! Group `channel`: requests and answers between host and guest, and what becomes of broken ones.

mod broken;
mod calls;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_protocol::{HostMailbox, Words};

use crate::expect::expect_eq;
use crate::row::Row;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    [calls::rows(), broken::rows()].into_iter().flatten().map(|row| row.needs(Need::GuestCode)).collect()
}

/// The mailbox of a vCPU as the words that host and guest share.
fn words(v: &GuestVcpu) -> Outcome<&Words> {
    v.mailbox_words()
}

fn mailbox(v: &GuestVcpu) -> Outcome<HostMailbox<'_>> {
    words(v).map(HostMailbox::new)
}

/// Enters the guest and expects it to ring.
fn ring(t: &Case, v: &GuestVcpu) -> Outcome {
    expect_eq("the exit", &v.kvm().run(t.limit())?, &Exit::doorbell())
}

/// Expects the harness to call this an error, with all of these in its one line.
fn expect_error<T: std::fmt::Debug>(what: &str, outcome: Outcome<T>, fragments: &[&str]) -> Outcome {
    match outcome {
        Err(Stop::Error(line)) if fragments.iter().all(|fragment| line.contains(fragment)) => Ok(()),
        Err(Stop::Error(line)) => Err(Stop::Fail(format!("{what}: `{line}` does not have all of {fragments:?}"))),
        other => Err(Stop::Fail(format!("{what}: {other:?}, expected an error"))),
    }
}
