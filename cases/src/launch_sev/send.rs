//! SEND_START: whom a guest may be sent to.

use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory, Recipient, SevPolicy};
use privet_harness::units::PAGE_SIZE;

use super::vm::SevVm;
use crate::expect::{expect_done, expect_eq, expect_refused_by_firmware};
use crate::row::Row;
use crate::types::Types;

const SEND: &str = "arch/x86/kvm/svm/sev.c: sev_send_start";

/// Bytes of a certificate, of the three that vouch for it, and of a session (SEV API, appendix C and 2.2.3).
const CERTIFICATE: u32 = 2084;
const CHAIN: u32 = 3 * CERTIFICATE;
const SESSION: u32 = 128;
/// What GUEST_STATUS says of a guest that runs.
const RUNNING: u32 = 3;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.send.forbidden",
            Types::SEV_AND_ES,
            "A guest whose policy forbids it is sent nowhere: POLICY_FAILURE, and it stays.",
            |t| refused(t, SevPolicy::NO_SEND, Firmware::POLICY_FAILURE),
        )
        .basis(&[SEND, "SEV API, SEND_START"]),
        Row::new(
            "launch.send.to_an_unproven_platform",
            Types::SEV_AND_ES,
            "A platform for which no certificates vouch gets no guest: INVALID_CERTIFICATE, and it stays.",
            |t| refused(t, SevPolicy::NONE, Firmware::INVALID_CERTIFICATE),
        )
        .basis(&[SEND, "SEV API, SEND_START"]),
    ]
}

/// A guest with this policy is not sent to a platform, this one, for which nothing vouches: those certificates are zeros.
fn refused(t: &Case, policy: SevPolicy, firmware: Firmware) -> Outcome {
    let sev = SevVm::initialized(t)?;
    expect_done("LAUNCH_START", sev.commands().launch_start(0, sev.policy() | policy, None))?;
    sev.finish()?;
    let blobs = Mapping::anonymous(8 * PAGE_SIZE)?;
    blobs.write(0, &sev.device.diffie_hellman_certificate()?)?;
    let recipient = Recipient {
        certificate: (Memory::In(&blobs, 0), CERTIFICATE),
        chain: (Memory::In(&blobs, PAGE_SIZE), CHAIN),
        amd: (Memory::In(&blobs, PAGE_SIZE), CHAIN),
    };
    // The other length is the greatest that KVM takes.
    for length in [SESSION, 0x4000] {
        let result = sev.commands().send_start(recipient, (Memory::In(&blobs, 4 * PAGE_SIZE), length));
        expect_refused_by_firmware(&format!("SEND_START with {length:#x} bytes for the session"), result, firmware)?;
    }
    expect_eq("the state", &expect_done("GUEST_STATUS", sev.commands().guest_status())?.state, &RUNNING)
}
