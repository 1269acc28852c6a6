//! A guest's request for a report together with the certificates for it, which the host has and the firmware has not.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Field, Page, Requests};
use privet_harness::guest::{Guest, GuestBuilder};
use privet_harness::guest_vcpu::Running;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::sev::Firmware;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};

use super::guest_request::{pages, word};
use super::message::{KEY_RESPONSE, MESSAGES, REPORT_RESPONSE, SEQUENCE, key, key_request, opened, report_request};
use super::{SPECIFICATION, image, ram};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_INPUT, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const REQUEST: &str = "arch/x86/kvm/svm/sev.c: snp_handle_ext_guest_req";
const COMPLETION: &str = "arch/x86/kvm/svm/sev.c: snp_complete_req_certs";
const API: &str = "Documentation/virt/kvm/api.rst: KVM_EXIT_SNP_REQ_CERTS";

/// SW_EXITCODE.
pub(super) const EXTENDED_REQUEST: u64 = 0x8000_0012;

/// What the host says to the guest, in the upper half of SW_EXITINFO2.
const TOO_SMALL: u64 = 1 << 32;
const BUSY: u64 = 2 << 32;
const OTHER_ERROR: u64 = 0xffff_ffff << 32;

/// Pages that the guest offers for certificates; the first of them is page 2 of its range.
const OFFERED: u64 = 2;
/// Bytes of the entry that ends a table of certificates.
const LAST_ENTRY: usize = 24;

pub(super) fn rows() -> Vec<Row> {
    let since = || Need::KernelSince((6, 19), "SNP_ENABLE_REQ_CERTS is new");
    vec![
        Row::new(
            "ghcb.extended_request.certificates",
            Types::SNP,
            "A request for a report with certificates leads to userspace, which is told where the guest wants them and for \
             how many pages there is room; then the guest has both, the host's bytes and the firmware's report.",
            certificates,
        )
        .basis(&[REQUEST, COMPLETION, API, MESSAGES])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.too_small",
            Types::SNP,
            "Where there is not enough room the guest is told how many pages it takes, and there is no report: the firmware \
             has not seen the request, which can be made again.",
            |t| {
                let g = asking_guest(t)?.boot()?;
                let message = report_request(&key(&g)?, 1, [7; 64])?;
                for needed in [3, 0, u64::MAX] {
                    let page = refused(&g, &message, Errno::ENOSPC, needed)?;
                    expect_eq("the answer", &page.answer(), &(0, TOO_SMALL))?;
                    expect_eq("the pages that it takes", &page.get(Field::RBX), &needed)?;
                }
                gets_a_report(&g, &message)
            },
        )
        .basis(&[COMPLETION, API, SPECIFICATION])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.not_now",
            Types::SNP,
            "EAGAIN of userspace is told to the guest as a host that is busy, EIO as any other error; the firmware has not \
             seen the request, which can be made again.",
            |t| {
                let g = asking_guest(t)?.boot()?;
                let message = report_request(&key(&g)?, 1, [7; 64])?;
                for (errno, told) in [(Errno::EAGAIN, BUSY), (Errno::EIO, OTHER_ERROR), (Errno::EAGAIN, BUSY)] {
                    let page = refused(&g, &message, errno, 9)?;
                    expect_eq(&format!("the answer after {errno:?}"), &page.answer(), &(0, told))?;
                    expect_eq("the pages that the guest offers", &page.get(Field::RBX), &OFFERED)?;
                }
                gets_a_report(&g, &message)
            },
        )
        .basis(&[COMPLETION, API, SPECIFICATION])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.unknown_answer",
            Types::SNP,
            "Any other answer of userspace makes KVM_RUN fail with EINVAL, before the guest runs.",
            |t| {
                for ret in [Errno::EINVAL as u64, Errno::EPERM as u64, 1 << 32, u64::MAX] {
                    let g = asking_guest(t)?.boot()?;
                    let asking = asked(&g, &report_request(&key(&g)?, 1, [7; 64])?)?;
                    g.vcpu(0).kvm().set_certificates(ret, 0)?;
                    asking.resume()?;
                    asking.expect_exit(&Exit::Refused { errno: Errno::EINVAL })?;
                }
                Ok(())
            },
        )
        .basis(&[COMPLETION, API])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.unchecked",
            Types::SNP,
            "Where the guest wants certificates, and for how many pages there is room, is passed on as it is: no memory, no \
             pages, more than there are.",
            |t| {
                let g = asking_guest(t)?.boot()?;
                let message = report_request(&key(&g)?, 1, [7; 64])?;
                let places = [(Gpa(0), 0), (Gpa(0x7_0000_0000), 1), (Gpa(!0xfff), u64::MAX)];
                for (gpa, room) in places {
                    let asking = start(&g, &message, request(&g, gpa, room))?;
                    asking.expect_exit(&Exit::CertificatesWanted { gpa, pages: room })?;
                    g.vcpu(0).kvm().set_certificates(Errno::EAGAIN as u64, 0)?;
                    asking.resume()?;
                    expect_eq("the answer", &requests(&g).answer(asking)?.answer(), &(0, BUSY))?;
                }
                Ok(())
            },
        )
        .basis(&[REQUEST, API])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.malformed",
            Types::SNP,
            "A place for certificates that is not aligned, or a place or room that is not marked as valid, is refused, \
             whether userspace is asked for certificates or not.",
            |t| {
                for builder in [plain_guest(t)?, asking_guest(t)?] {
                    let g = builder.boot()?;
                    let message = report_request(&key(&g)?, 1, [7; 64])?;
                    let good = request(&g, place(&g), OFFERED);
                    let exits = t.trace().exits();
                    let bad = [
                        good.clone().with(Field::RAX, place(&g).0 + 8),
                        good.clone().without(Field::RAX),
                        good.clone().without(Field::RBX),
                    ];
                    for page in &bad {
                        let answer = requests(&g).answer(start(&g, &message, page.clone())?)?.answer();
                        expect_eq("the answer", &answer, &(MALFORMED, INVALID_INPUT))?;
                    }
                    expect_no_exit_but(t, exits, bad.len() as u64)?;
                }
                Ok(())
            },
        )
        .basis(&[REQUEST, SPECIFICATION])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.of_another_kind",
            Types::SNP,
            "A message that asks for no report is the firmware's affair alone: no exit, no word about certificates is looked \
             at.",
            |t| {
                let g = asking_guest(t)?.boot()?;
                let key = key(&g)?;
                let exits = t.trace().exits();
                let page = request(&g, place(&g) + 8, OFFERED).without(Field::RAX).without(Field::RBX);
                let asking = start(&g, &key_request(&key, 1)?, page)?;
                expect_eq("the answer", &requests(&g).answer(asking)?.answer(), &word(Firmware::SUCCESS))?;
                expect_eq("the type of the message", &opened(&key, &response(&g)?)?.0, &KEY_RESPONSE)?;
                expect_no_exit_but(t, exits, 1)
            },
        )
        .basis(&[REQUEST, MESSAGES])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.without_exit",
            Types::SNP,
            "Where userspace has not asked to be told, KVM writes the end of a table that has no certificates, nothing if \
             there is no room, and the report follows without an exit.",
            |t| {
                let g = plain_guest(t)?.boot()?;
                let (key, exits) = (key(&g)?, t.trace().exits());
                for (sequence, room, written) in [(1, 0, 0), (3, 1, LAST_ENTRY), (5, OFFERED, LAST_ENTRY)] {
                    let table = [0x5a; PAGE_SIZE as usize];
                    g.range(0).host().write(2 * PAGE_SIZE, &table)?;
                    let asking = start(&g, &report_request(&key, sequence, [7; 64])?, request(&g, place(&g), room))?;
                    expect_eq("the answer", &requests(&g).answer(asking)?.answer(), &word(Firmware::SUCCESS))?;
                    expect_eq("the type of the message", &opened(&key, &response(&g)?)?.0, &REPORT_RESPONSE)?;
                    let mut seen = table;
                    g.range(0).host().read(2 * PAGE_SIZE, &mut seen)?;
                    let (end, rest) = seen.split_at(written);
                    expect_eq("whether the end of the table is zero", &end.iter().all(|&byte| byte == 0), &true)?;
                    expect_eq("whether the rest is as it was", &rest.iter().all(|&byte| byte == 0x5a), &true)?;
                }
                expect_no_exit_but(t, exits, 3)
            },
        )
        .basis(&[REQUEST, SPECIFICATION])
        .needs(since()),
        Row::new(
            "ghcb.extended_request.without_memory",
            Types::SNP,
            "Where there is no memory for the table that has no certificates, or for the request, KVM_RUN fails with EIO.",
            |t| {
                let nowhere = Gpa(0x7_0000_0000);
                for is_table in [true, false] {
                    let g = plain_guest(t)?.boot()?;
                    let message = report_request(&key(&g)?, 1, [7; 64])?;
                    let page = if is_table {
                        request(&g, nowhere, 1)
                    } else {
                        request(&g, place(&g), 1).with(Field::EXIT_INFO_1, nowhere.0)
                    };
                    start(&g, &message, page)?.expect_exit(&Exit::Failed { errno: Errno::EIO, reason: 0 })?;
                }
                Ok(())
            },
        )
        .basis(&[REQUEST])
        .needs(since()),
    ]
}

/// A guest with secrets, shared pages for request, answer and certificates, and a page for its GHCB.
fn plain_guest(t: &Case) -> Outcome<GuestBuilder<'_>> {
    Ok(t.guest().firmware_pages(Vec::new()).range(ram(2 + OFFERED)).range(image()))
}

/// The same, whose wishes for certificates lead to userspace.
fn asking_guest(t: &Case) -> Outcome<GuestBuilder<'_>> {
    Ok(plain_guest(t)?.certificates_exit())
}

fn requests(g: &Guest) -> Requests<'_> {
    Requests::new(g, 0, g.range(1), 0)
}

/// Where the guest wants certificates.
fn place(g: &Guest) -> Gpa {
    g.range(0).gpa(0) + PageCount(2)
}

/// A request with this place for certificates, and room for so many pages of them.
fn request(g: &Guest, place: Gpa, room: u64) -> Page {
    let [request, answer] = pages(g);
    Page::request(EXTENDED_REQUEST, request.0, answer.0).with(Field::RAX, place.0).with(Field::RBX, room)
}

/// The guest makes a request with this message to the firmware.
fn start<'a>(g: &'a Guest, message: &[u8], page: Page) -> Outcome<Running<'a>> {
    g.range(0).host().write(0, message)?;
    requests(g).start(&page)
}

/// Likewise, and userspace is asked for the certificates.
fn asked<'a>(g: &'a Guest, message: &[u8]) -> Outcome<Running<'a>> {
    let asking = start(g, message, request(g, place(g), OFFERED))?;
    asking.expect_exit(&Exit::CertificatesWanted { gpa: place(g), pages: OFFERED })?;
    Ok(asking)
}

/// What the guest is told if userspace refuses.
fn refused(g: &Guest, message: &[u8], errno: Errno, pages: u64) -> Outcome<Page> {
    let asking = asked(g, message)?;
    g.vcpu(0).kvm().set_certificates(errno as u64, pages)?;
    asking.resume()?;
    requests(g).answer(asking)
}

/// What the firmware has answered.
fn response(g: &Guest) -> Outcome<Vec<u8>> {
    let mut response = vec![0; PAGE_SIZE as usize];
    g.range(0).host().read(PAGE_SIZE, &mut response)?;
    Ok(response)
}

/// Expects the report to follow once userspace has no objection.
fn gets_a_report(g: &Guest, message: &[u8]) -> Outcome {
    let asking = asked(g, message)?;
    g.vcpu(0).kvm().set_certificates(0, 0)?;
    asking.resume()?;
    let page = requests(g).answer(asking)?;
    expect_eq("the answer", &page.answer(), &word(Firmware::SUCCESS))?;
    expect_eq("the pages that the guest offers", &page.get(Field::RBX), &OFFERED)?;
    let (kind, content) = opened(&key(g)?, &response(g)?)?;
    expect_eq("the type of the message", &kind, &REPORT_RESPONSE)?;
    expect_eq("the status of the report", &content.get(..4), &Some(&[0; 4][..]))
}

fn certificates(t: &Case) -> Outcome {
    let g = asking_guest(t)?.boot()?;
    let key = key(&g)?;
    let host = g.range(0).host();
    for sequence in [1, 3] {
        let asking = asked(&g, &report_request(&key, sequence, [7; 64])?)?;
        let table: Vec<u8> = (0..OFFERED * PAGE_SIZE).map(|byte| (byte / 16 + sequence) as u8).collect();
        host.write(2 * PAGE_SIZE, &table)?;
        g.vcpu(0).kvm().set_certificates(0, 0)?;
        asking.resume()?;
        let page = requests(&g).answer(asking)?;
        expect_eq("the answer", &page.answer(), &word(Firmware::SUCCESS))?;
        let answer = response(&g)?;
        expect_eq("the sequence number", &&answer[SEQUENCE..SEQUENCE + 8], &&(sequence + 1).to_le_bytes()[..])?;
        expect_eq("the type of the message", &opened(&key, &answer)?.0, &REPORT_RESPONSE)?;
        for (page, bytes) in table.chunks(PAGE_SIZE as usize).enumerate() {
            let seen = g.vcpu(0).read_bytes(g.range(0).shared_gva(2 + page as u64), 64)?;
            expect_eq("what the guest reads of the certificates", &seen, &bytes[..64].to_vec())?;
        }
    }
    Ok(())
}
