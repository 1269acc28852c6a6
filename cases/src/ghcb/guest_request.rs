//! Messages between an SNP guest and the firmware, which the host carries and cannot read.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Page, Requests};
use privet_harness::guest::Guest;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::sev::{Firmware, SnpPolicy};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};

use super::extended_request::EXTENDED_REQUEST;
use super::message::{
    ALGORITHM, CONTENT, KEY, MESSAGES, REPORT_RESPONSE, SEQUENCE, key, key_of, opened, report_request,
    report_request_about,
};
use super::{image, ram, refuses};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_EVENT, INVALID_INPUT, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const REQUEST: &str = "arch/x86/kvm/svm/sev.c: snp_handle_guest_req";
const CHECKS: &str = "arch/x86/kvm/svm/sev.c: sev_handle_vmgexit, SVM_VMGEXIT_GUEST_REQUEST";

/// SW_EXITCODE.
pub(super) const GUEST_REQUEST: u64 = 0x8000_0011;

/// Where things are in a report, which follows 32 bytes of status.
const REPORT: usize = 0x20;
const POLICY: usize = REPORT + 0x8;
const DATA: usize = REPORT + 0x50;
const MEASUREMENT: usize = REPORT + 0x90;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ghcb.guest_request.report",
            Types::SNP,
            "The firmware's report about a guest has the launch digest that was predicted, of pages and vCPUs, the policy, \
             and what the guest wanted to be in it.",
            report,
        )
        .basis(&[REQUEST, MESSAGES]),
        Row::new(
            "ghcb.guest_request.refused_by_firmware",
            Types::SNP,
            "A message that is none, was changed on its way or comes twice is refused by the firmware; KVM hands the \
             firmware's word to the guest, and KVM_RUN does not fail.",
            refused_by_firmware,
        )
        .basis(&[REQUEST, MESSAGES]),
        Row::new(
            "ghcb.guest_request.about_another_vmpl",
            Types::SNP,
            "With the key of a VMPL there are reports about it and those below it; about one above it the firmware's answer, \
             which is sealed with that key, is INVALID_PARAM.",
            |t| {
                let g = guest(t)?;
                for of in 1..=3 {
                    let key = key_of(&g, of)?;
                    for (about, sequence) in (0..=3).zip((1..).step_by(2)) {
                        let message = report_request_about(about, (&key, of), sequence, [7; 64])?;
                        let (answer, response) = send(&g, &message)?;
                        let what = format!("for VMPL {about} with the key of VMPL {of}");
                        expect_eq(&format!("the answer {what}"), &answer, &word(Firmware::SUCCESS))?;
                        let (_, content) = opened(&key, &response)?;
                        let status = if about < of { Firmware::INVALID_PARAM } else { Firmware::SUCCESS };
                        let seen = content.get(..4).unwrap_or_default();
                        expect_eq(&format!("the status {what}"), &seen, &&status.0.to_le_bytes()[..])?;
                    }
                }
                Ok(())
            },
        )
        .basis(&[REQUEST, MESSAGES]),
        Row::new(
            "ghcb.guest_request.closed_descriptor",
            Types::SNP,
            "KVM takes guests' requests to the firmware through the descriptor of the launch: once the VMM has closed it, \
             KVM_RUN fails with EBADF.",
            |t| {
                let mut g = guest(t)?;
                let message = report_request(&key(&g)?, 1, [7; 64])?;
                g.close_firmware();
                g.range(0).host().write(0, &message)?;
                let [request, answer] = pages(&g);
                let asking = requests(&g).start(&Page::request(GUEST_REQUEST, request.0, answer.0))?;
                asking.expect_exit(&Exit::Failed { errno: Errno::EBADF, reason: 0 })
            },
        )
        .basis(&[REQUEST, "arch/x86/kvm/svm/sev.c: __sev_issue_cmd"]),
        Row::new(
            "ghcb.guest_request.without_memory",
            Types::SNP,
            "Where there is no memory for the request or the answer KVM_RUN fails with EIO.",
            |t| {
                let nowhere = Gpa(0x7_0000_0000);
                for (request, answer) in [(Some(nowhere), None), (None, Some(nowhere))] {
                    let g = guest(t)?;
                    g.range(0).host().write(0, &report_request(&key(&g)?, 1, [7; 64])?)?;
                    let [here, there] = pages(&g);
                    let page = Page::request(GUEST_REQUEST, request.unwrap_or(here).0, answer.unwrap_or(there).0);
                    requests(&g).start(&page)?.expect_exit(&Exit::Failed { errno: Errno::EIO, reason: 0 })?;
                }
                Ok(())
            },
        )
        .basis(&[REQUEST]),
        Row::new(
            "ghcb.guest_request.addresses",
            Types::SNP,
            "Pages for request and answer that are not aligned, or the same, are refused, with certificates as without.",
            |t| {
                let g = guest(t)?;
                let exits = t.trace().exits();
                let [at, other] = pages(&g);
                let places = [(at + 8, other), (at, other + 8), (at, at), (Gpa(at.0 | 1), Gpa(other.0 | 1))];
                for code in [GUEST_REQUEST, EXTENDED_REQUEST] {
                    for (request, answer) in places {
                        let request = Page::request(code, request.0, answer.0);
                        expect_eq("the answer", &requests(&g).call(&request)?.answer(), &(MALFORMED, INVALID_INPUT))?;
                    }
                }
                expect_no_exit_but(t, exits, 2 * places.len() as u64)
            },
        )
        .basis(&[CHECKS]),
        Row::new(
            "ghcb.guest_request.not_of_sev_es",
            Types::SEV_ES,
            "In a SEV-ES guest there is no such event, with certificates or without.",
            |t| {
                [GUEST_REQUEST, EXTENDED_REQUEST]
                    .into_iter()
                    .try_for_each(|code| refuses(t, Page::request(code, 0x1000, 0x2000), INVALID_EVENT))
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: is_snp_only_vmgexit"]),
    ]
}

/// A guest with secrets, shared pages for request and answer, and a page for its GHCB.
fn guest(t: &Case) -> Outcome<Guest> {
    t.guest().firmware_pages(Vec::new()).range(ram(2)).range(image()).boot()
}

fn requests(g: &Guest) -> Requests<'_> {
    Requests::new(g, 0, g.range(1), 0)
}

/// Where request and answer are.
pub(super) fn pages(g: &Guest) -> [Gpa; 2] {
    [g.range(0).gpa(0), g.range(0).gpa(0) + PageCount(1)]
}

/// Hands a message to the firmware: the answer by GHCB, and the message that has come back.
fn send(g: &Guest, message: &[u8]) -> Outcome<((u64, u64), Vec<u8>)> {
    let host = g.range(0).host();
    host.write(0, message)?;
    let [request, answer] = pages(g);
    let page = requests(g).call(&Page::request(GUEST_REQUEST, request.0, answer.0))?;
    let mut response = vec![0; PAGE_SIZE as usize];
    host.read(PAGE_SIZE, &mut response)?;
    Ok((page.answer(), response))
}

/// SW_EXITINFO2 of a guest request.
pub(super) fn word(firmware: Firmware) -> (u64, u64) {
    (0, firmware.0.into())
}

fn report(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).firmware_pages(Vec::new()).range(ram(2)).range(image()).boot()?;
    let key = key(&g)?;
    let log = t.trace().launches().pop().ok_or_else(|| Stop::Error("the launch was not put down".into()))?;
    for (sequence, data) in [(1, [0x5a; 64]), (3, [0xc3; 64])] {
        let (answer, response) = send(&g, &report_request(&key, sequence, data)?)?;
        expect_eq("the answer", &answer, &word(Firmware::SUCCESS))?;
        expect_eq("the sequence number", &&response[SEQUENCE..SEQUENCE + 8], &&(sequence + 1_u64).to_le_bytes()[..])?;
        let (kind, content) = opened(&key, &response)?;
        expect_eq("the type of the message", &kind, &REPORT_RESPONSE)?;
        let part = |at: usize, length: usize| content.get(at..at + length).unwrap_or_default().to_vec();
        expect_eq("the status", &part(0, 4), &vec![0; 4])?;
        expect_eq("the policy", &part(POLICY, 8), &SnpPolicy::DEFAULT.0.to_le_bytes().to_vec())?;
        expect_eq("the guest's data", &part(DATA, 64), &data.to_vec())?;
        expect_eq("the launch digest", &part(MEASUREMENT, 48), &log.digest())?;
    }
    Ok(())
}

fn refused_by_firmware(t: &Case) -> Outcome {
    let g = guest(t)?;
    let key = key(&g)?;
    let good = report_request(&key, 1, [7; 64])?;
    let with = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] ^= byte;
        message
    };
    let refused = |what: &str, message: &[u8], firmware: Firmware| {
        let (answer, _) = send(&g, message)?;
        expect_eq(&format!("the answer for {what}"), &answer, &word(firmware))
    };
    refused("no message", &vec![0; PAGE_SIZE as usize], Firmware::INVALID_PARAM)?;
    refused("an unknown algorithm", &with(ALGORITHM, 2), Firmware::INVALID_PARAM)?;
    refused("a changed content", &with(CONTENT, 1), Firmware::BAD_MEASUREMENT)?;
    refused("a changed tag", &with(0, 1), Firmware::BAD_MEASUREMENT)?;
    refused("another key of the guest's", &with(KEY, 1), Firmware::BAD_MEASUREMENT)?;
    refused("a sequence number ahead", &report_request(&key, 3, [7; 64])?, Firmware::AEAD_OFLOW)?;
    refused("the message as it should be", &good, Firmware::SUCCESS)?;
    refused("the same again", &good, Firmware::AEAD_OFLOW)
}
