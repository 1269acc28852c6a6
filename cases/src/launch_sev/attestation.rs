//! GET_ATTESTATION_REPORT: what was launched, in the platform's words.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::{Access, Mapping};
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory};
use privet_harness::units::PAGE_SIZE;

use super::vm::{SevVm, bytes_of};
use crate::expect::{
    expect_done, expect_eq, expect_refused, expect_refused_by_firmware, expect_refused_by_kvm, expect_that,
};
use crate::row::Row;
use crate::types::Types;

const REPORT: &str = "arch/x86/kvm/svm/sev.c: sev_get_attestation_report";
const API: &str = "SEV API, ATTESTATION";
/// Bytes of a report.
const LENGTH: u32 = 0xd0;
const NONCE: [u8; 16] = *b"asked for by you";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.attestation.report",
            Types::SEV_AND_ES,
            "The report on a guest begins with the nonce that was asked with, the digest of what was launched, which is the \
             same for the same and another for another content, and the policy.",
            report,
        )
        .basis(&[REPORT, API]),
        Row::new(
            "launch.attestation.length",
            Types::SEV_AND_ES,
            "With no length INVALID_LEN, and the length is told; with too little INVALID_LEN alone; more than 16 KiB are \
             EINVAL, 16 KiB are not. Not a byte more than the report is written where memory ends behind it.",
            length,
        )
        .basis(&[REPORT, API]),
        Row::new(
            "launch.attestation.refused",
            Types::SEV_AND_ES,
            "There is no report before the measurement: INVALID_GUEST_STATE. One that cannot be written is EFAULT, and the \
             next one can.",
            refused,
        )
        .basis(&[REPORT, API]),
    ]
}

/// A guest whose memory, of this content, is measured.
fn measured(t: &Case, content: u8) -> Outcome<SevVm> {
    let sev = SevVm::started(t)?;
    let memory = Mapping::anonymous(PAGE_SIZE)?;
    memory.fill(0, PAGE_SIZE, content)?;
    expect_done("LAUNCH_UPDATE_DATA", sev.commands().launch_update_data(Memory::In(&memory, 0), PAGE_SIZE as u32))?;
    sev.measure()?;
    Ok(sev)
}

fn reported(sev: &SevVm) -> Outcome<Vec<u8>> {
    let into = Mapping::anonymous(PAGE_SIZE)?;
    let (result, told) = sev.commands().attestation_report(NONCE, Memory::In(&into, 0), LENGTH);
    expect_done("GET_ATTESTATION_REPORT", result)?;
    expect_eq("the length", &told, &LENGTH)?;
    bytes_of(&into, 0, LENGTH as usize)
}

fn report(t: &Case) -> Outcome {
    let (first, same, other) = (measured(t, 1)?, measured(t, 1)?, measured(t, 2)?);
    let of_first = reported(&first)?;
    expect_eq("the nonce", &of_first[..16].to_vec(), &NONCE.to_vec())?;
    let digest = |report: &[u8]| report[16..48].to_vec();
    expect_that(digest(&of_first) == digest(&reported(&same)?), || "the same content has two digests".to_owned())?;
    expect_that(digest(&of_first) != digest(&reported(&other)?), || "two contents have one digest".to_owned())?;
    expect_eq("the policy", &of_first[48..52].to_vec(), &first.policy().0.to_le_bytes().to_vec())?;
    expect_done("LAUNCH_FINISH", first.commands().launch_finish())?;
    expect_eq("what is reported of the running guest", &reported(&first)?[..52].to_vec(), &of_first[..52].to_vec())
}

fn length(t: &Case) -> Outcome {
    let sev = measured(t, 1)?;
    let into = Mapping::anonymous(8 * PAGE_SIZE)?;
    for (what, place, len, expected) in
        [("no length", Memory::NONE, 0, LENGTH), ("one byte too little", Memory::In(&into, 0), LENGTH - 1, LENGTH - 1)]
    {
        let (result, told) = sev.commands().attestation_report(NONCE, place, len);
        expect_refused_by_firmware(what, result, Firmware::INVALID_LEN)?;
        expect_eq(&format!("the length that is told with {what}"), &told, &expected)?;
    }
    expect_eq("bytes that were written", &into.first_other_than(0, into.len(), 0)?, &None)?;
    let (result, _) = sev.commands().attestation_report(NONCE, Memory::In(&into, 0), 0x4001);
    expect_refused_by_kvm("more than 16 KiB", result, Errno::EINVAL)?;
    let (result, told) = sev.commands().attestation_report(NONCE, Memory::In(&into, 0), 0x4000);
    expect_done("16 KiB", result)?;
    expect_eq("the length", &told, &LENGTH)?;
    into.set_access(PAGE_SIZE, PAGE_SIZE, Access::None)?;
    let (result, _) =
        sev.commands().attestation_report(NONCE, Memory::In(&into, PAGE_SIZE - u64::from(LENGTH)), LENGTH);
    expect_done("at the end of memory", result)
}

fn refused(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let into = Mapping::anonymous(PAGE_SIZE)?;
    let (result, _) = sev.commands().attestation_report(NONCE, Memory::In(&into, 0), LENGTH);
    expect_refused_by_firmware("before the measurement", result, Firmware::INVALID_GUEST_STATE)?;
    sev.measure()?;
    let (result, _) = sev.commands().attestation_report(NONCE, Memory::Nowhere(PAGE_SIZE), LENGTH);
    expect_refused("a report to nowhere", result, Errno::EFAULT, Firmware::SUCCESS)?;
    reported(&sev).map(drop)
}
