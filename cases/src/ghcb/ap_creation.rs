//! vCPUs that an SNP guest starts: it makes a save area of a page of its own, and asks the host to run a vCPU from there.

use std::time::Duration;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Field, Page, Requests};
use privet_harness::guest::Guest;
use privet_harness::measure::SevFeatures;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{RangeSpec, TEST_BASE};
use privet_harness::units::{Gpa, Gva, PAGE_SIZE};
use privet_protocol::Op;

use super::{SEV_TERM, image, ram, refuses};
use crate::asleep::Asleep;
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_EVENT, INVALID_INPUT, MALFORMED, MISSING_INPUT};
use crate::row::Row;
use crate::types::Types;

const CREATION: &str = "arch/x86/kvm/svm/sev.c: sev_snp_ap_creation, sev_snp_init_protected_guest_state";
const VMRUN: &str = "APM volume 2, 15.36.12: VMRUN takes pages that RMPADJUST has made save areas";

/// SW_EXITCODE, and what SW_EXITINFO1 asks for in its low half.
const AP_CREATION: u64 = 0x8000_0013;
const CREATE_ON_INIT: u64 = 0;
pub(super) const CREATE: u64 = 1;
pub(super) const DESTROY: u64 = 2;

/// The attributes of RMPADJUST that make a page a save area: VMPL 1, which there always is, and bit 16.
const SAVE_AREA: u64 = 1 << 16 | 1;

/// `mov ecx, 0xc0010130; 1: mov eax, edi; xor edx, edx; wrmsr; rep vmmcall; add edi, 0x10000; jmp 1b`: one termination by
/// the MSR protocol after the other, the first with what is in EDI, each with a reason that is one more.
const TERMINATES: [u8; 23] = [
    0xb9, 0x30, 0x01, 0x01, 0xc0, 0x89, 0xf8, 0x31, 0xd2, 0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9, 0x81, 0xc7, 0, 0, 1, 0,
    0xeb, 0xee,
];
/// A termination of a set of reasons that nobody has; the reason is in bits 23:16.
const TERMINATION: u64 = 0xd << 12 | 0x100;

/// Where things are in the private range. Its first page is one of 2 MiB, which no save area may be.
pub(super) const CODE: u64 = 1;
pub(super) const FIRST: u64 = 2;
const SECOND: u64 = 3;

pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "ghcb.ap_creation.runs",
            Types::SNP,
            "A vCPU begins with the registers that the guest has put into a save area of its making, and goes on from there.",
            |t| {
                let g = guest(t)?;
                let area = save_area(&g, 0x40);
                make_save_area(&g, FIRST, &area)?;
                answered(&g, CREATE, FIRST)?;
                expect_termination(&g, 1, 0x40)?;
                expect_termination(&g, 1, 0x41)
            },
        )
        .basis(&[CREATION, VMRUN]),
        Row::new(
            "ghcb.ap_creation.again",
            Types::SNP,
            "A vCPU that was created goes on from another save area once it is created again, and from where it was in the \
             first one when it is created with that.",
            |t| {
                let g = guest(t)?;
                let areas = [save_area(&g, 0x40), save_area(&g, 0x80)];
                make_save_area(&g, FIRST, &areas[0])?;
                make_save_area(&g, SECOND, &areas[1])?;
                answered(&g, CREATE, FIRST)?;
                expect_termination(&g, 1, 0x40)?;
                answered(&g, CREATE, SECOND)?;
                expect_termination(&g, 1, 0x80)?;
                answered(&g, CREATE, FIRST)?;
                expect_termination(&g, 1, 0x41)
            },
        )
        .basis(&[CREATION, VMRUN]),
        Row::new(
            "ghcb.ap_creation.of_itself",
            Types::SNP,
            "A vCPU that asks for its own creation never sees the answer: it begins anew from the save area.",
            |t| {
                let g = guest(t)?;
                let area = save_area(&g, 0x40);
                make_save_area(&g, FIRST, &area)?;
                let asking = requests(&g).start(&creation(0, CREATE, g.range(0).gpa(FIRST)))?;
                asking.expect_exit(&termination(0x40))?;
                expect_termination(&g, 0, 0x41)
            },
        )
        .basis(&[CREATION]),
        Row::new(
            "ghcb.ap_creation.destroyed",
            Types::SNP,
            "A vCPU that was destroyed does not run: KVM_RUN waits until it is interrupted. Created again, it runs.",
            destroyed,
        )
        .basis(&[CREATION]),
        Row::new(
            "ghcb.ap_creation.deferred",
            Types::SNP,
            "A creation that is deferred until INIT changes nothing for a vCPU that runs, and a later one at once takes its \
             place.",
            |t| {
                let g = guest(t)?;
                let areas = [save_area(&g, 0x40), save_area(&g, 0x80)];
                make_save_area(&g, FIRST, &areas[0])?;
                make_save_area(&g, SECOND, &areas[1])?;
                answered(&g, CREATE_ON_INIT, FIRST)?;
                g.vcpu(1).call(Op::Nop)?;
                answered(&g, CREATE, SECOND)?;
                expect_termination(&g, 1, 0x80)
            },
        )
        .basis(&[CREATION]),
        Row::new(
            "ghcb.ap_creation.on_init",
            Types::SNP,
            "A creation that is deferred takes place when another vCPU sends INIT and SIPI.",
            |t| {
                let g = t.guest().vcpus(2).irqchip().range(RangeSpec::new(4)).range(image()).boot()?;
                g.make_private(0, 0..4)?;
                g.vcpu(0).write_bytes(g.range(0).private_gva(CODE), &TERMINATES)?;
                let area = save_area(&g, 0x40);
                make_save_area(&g, FIRST, &area)?;
                answered(&g, CREATE_ON_INIT, FIRST)?;
                super::ap_reset_hold::start_by_ipis(&g)?;
                expect_termination(&g, 1, 0x40)
            },
        )
        .basis(&[CREATION, "arch/x86/kvm/lapic.c: kvm_apic_accept_events"]),
        Row::new(
            "ghcb.ap_creation.without_memory",
            Types::SNP,
            "A save area where there is no memory is taken, and the vCPU does not enter the guest, KVM_EXIT_FAIL_ENTRY; with \
             another one it runs.",
            |t| {
                let g = guest(t)?;
                let request = creation(1, CREATE, Gpa(0x7_0000_1000));
                expect_eq("the answer", &requests(&g).call(&request)?.answer(), &(0, 0))?;
                expect_no_entry(&g.vcpu(1).kvm().run(LIMIT)?)?;
                let area = save_area(&g, 0x40);
                make_save_area(&g, FIRST, &area)?;
                answered(&g, CREATE, FIRST)?;
                expect_termination(&g, 1, 0x40)
            },
        )
        .basis(&[CREATION, "arch/x86/kvm/svm/svm.c: svm_vcpu_run, sev.c: pre_sev_run"]),
        Row::new(
            "ghcb.ap_creation.punched",
            Types::SNP,
            "A save area that is punched out of the guest_memfd is gone: its vCPU does not enter the guest, \
             KVM_EXIT_FAIL_ENTRY, and nobody else is harmed.",
            |t| {
                let g = guest(t)?;
                let area = save_area(&g, 0x40);
                make_save_area(&g, FIRST, &area)?;
                answered(&g, CREATE, FIRST)?;
                expect_termination(&g, 1, 0x40)?;
                g.range(0).punch(FIRST..FIRST + 1)?;
                expect_no_entry(&g.vcpu(1).kvm().run(LIMIT)?)?;
                g.vcpu(0).call(Op::Nop).map(drop)
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_gmem_invalidate_range, sev_snp_reload_vmsa, pre_sev_run"]),
        Row::new(
            "ghcb.ap_creation.refused",
            Types::SNP,
            "No such APIC id, no such request, no features or other ones than the guest's, a save area at an address that is none, or \
             at one of 2 MiB: refused.",
            refused,
        )
        .basis(&[CREATION]),
        Row::new(
            "ghcb.ap_creation.not_of_sev_es",
            Types::SEV_ES,
            "In a SEV-ES guest there is no such event.",
            |t| refuses(t, Page::request(AP_CREATION, 0, 0).with(Field::RAX, 0), INVALID_EVENT),
        )
        .basis(&["arch/x86/kvm/svm/sev.c: is_snp_only_vmgexit"]),
    ];
    let unfit: [(&str, Unfit); 4] = [
        ("without_svme", without_svme),
        ("without_snp", without_snp),
        ("with_unknown_features", with_unknown_features),
        ("of_an_ordinary_page", of_an_ordinary_page),
    ];
    for (name, make) in unfit {
        rows.push(
            Row::new(
                format!("ghcb.ap_creation.unfit.{name}"),
                Types::SNP,
                "KVM does not look into a save area, the processor does: a vCPU whose save area is none does not enter the \
                 guest, KVM_EXIT_FAIL_ENTRY with VMEXIT_INVALID.",
                move |t| {
                    let g = guest(t)?;
                    make(&g)?;
                    answered(&g, CREATE, FIRST)?;
                    expect_no_entry(&g.vcpu(1).kvm().run(LIMIT)?)
                },
            )
            .basis(&[CREATION, VMRUN]),
        );
    }
    rows
}

/// A guest of two vCPUs with private pages, one of which has the code, and a page for requests.
fn guest(t: &Case) -> Outcome<Guest> {
    let g = t.guest().vcpus(2).range(RangeSpec::new(4)).range(image()).boot()?;
    g.make_private(0, 0..4)?;
    g.vcpu(0).write_bytes(g.range(0).private_gva(CODE), &TERMINATES)?;
    Ok(g)
}

fn requests(g: &Guest) -> Requests<'_> {
    Requests::new(g, 0, g.range(1), 0)
}

/// A save area that begins with the code, and that with this reason.
fn save_area(g: &Guest, reason: u64) -> [u8; PAGE_SIZE as usize] {
    g.save_area(code(g), reason << 16 | TERMINATION, SevFeatures::SNP)
}

fn code(g: &Guest) -> Gva {
    g.range(0).private_gva(CODE)
}

/// vCPU 0 writes a save area into a private page.
fn write_save_area(g: &Guest, page: u64, area: &[u8; PAGE_SIZE as usize]) -> Outcome {
    let gva = g.range(0).private_gva(page);
    let (first, second) = area.split_at(area.len() / 2);
    g.vcpu(0).write_bytes(gva, first)?;
    g.vcpu(0).write_bytes(Gva(gva.0 + PAGE_SIZE / 2), second)
}

/// vCPU 0 writes a save area and makes it one.
pub(super) fn make_save_area(g: &Guest, page: u64, area: &[u8; PAGE_SIZE as usize]) -> Outcome {
    write_save_area(g, page, area)?;
    let adjust = Op::AdjustRmp { gva: g.range(0).private_gva(page).0, attributes: SAVE_AREA };
    expect_eq("EAX of RMPADJUST", &g.vcpu(0).call(adjust)?[0], &0)
}

/// Something that is no save area, in page [`FIRST`].
type Unfit = fn(&Guest) -> Outcome;

fn without_svme(g: &Guest) -> Outcome {
    let mut area = save_area(g, 0x40);
    // EFER, bit 12.
    area[0xd1] &= !0x10;
    make_save_area(g, FIRST, &area)
}

fn without_snp(g: &Guest) -> Outcome {
    make_save_area(g, FIRST, &g.save_area(code(g), TERMINATION, SevFeatures::NONE))
}

fn with_unknown_features(g: &Guest) -> Outcome {
    let no_such_feature = 1 << 63;
    make_save_area(g, FIRST, &g.save_area(code(g), TERMINATION, SevFeatures(SevFeatures::SNP.0 | no_such_feature)))
}

fn of_an_ordinary_page(g: &Guest) -> Outcome {
    write_save_area(g, FIRST, &save_area(g, 0x40))
}

fn creation(vcpu: u64, request: u64, area: Gpa) -> Page {
    let page = Page::request(AP_CREATION, vcpu << 32 | request, area.0);
    // Who is destroyed needs no features.
    if request == DESTROY { page } else { page.with(Field::RAX, SevFeatures::SNP.0) }
}

/// vCPU 0 asks for something to be done to vCPU 1, with a save area in this page, and is answered without an error.
pub(super) fn answered(g: &Guest, request: u64, page: u64) -> Outcome {
    let answer = requests(g).call(&creation(1, request, g.range(0).gpa(page)))?;
    expect_eq("the answer", &answer.answer(), &(0, 0))
}

fn termination(reason: u64) -> Exit {
    Exit::SystemEvent { kind: SEV_TERM, data: vec![reason << 16 | TERMINATION] }
}

/// Expects the next exit of a vCPU that executes the code.
fn expect_termination(g: &Guest, vcpu: usize, reason: u64) -> Outcome {
    expect_eq("the exit of the vCPU", &g.vcpu(vcpu).kvm().run(LIMIT)?, &termination(reason))
}

/// Expects this to be the exit of a vCPU that has not entered the guest: by the processor's word, or by KVM's, which says the
/// same before it asks.
pub(super) fn expect_no_entry(exit: &Exit) -> Outcome {
    match exit {
        Exit::FailEntry { hardware_reason: u64::MAX, .. } => Ok(()),
        other => Err(Stop::Fail(format!("{other}, expected FAIL_ENTRY with VMEXIT_INVALID"))),
    }
}

fn destroyed(t: &Case) -> Outcome {
    let g = guest(t)?;
    let area = save_area(&g, 0x40);
    make_save_area(&g, FIRST, &area)?;
    let ap = g.vcpu(1).kvm();
    answered(&g, CREATE, FIRST)?;
    expect_termination(&g, 1, 0x40)?;
    answered(&g, DESTROY, FIRST)?;
    let asleep = Asleep::of(ap)?;
    ap.start()?;
    asleep.wait()?;
    ap.kick()?;
    expect_eq("the exit of the vCPU", &ap.wait(LIMIT)?, &Exit::Interrupted)?;
    answered(&g, CREATE, FIRST)?;
    expect_termination(&g, 1, 0x41)
}

fn refused(t: &Case) -> Outcome {
    let features = SevFeatures::SNP.0;
    let g = t.guest().vcpus(2).range(ram(1)).boot()?;
    let of_vcpu_1 = |request: u64| 1 << 32 | request;
    let at = TEST_BASE.0 + PAGE_SIZE;
    let exits = t.trace().exits();
    let refused = [
        ("no such APIC id", 77 << 32 | CREATE, at, features),
        ("no such request", of_vcpu_1(3), at, features),
        ("another VMPL", of_vcpu_1(1 << 16 | CREATE), at, features),
        ("other features", of_vcpu_1(CREATE), at, features | 1 << 5),
        ("an unaligned address", of_vcpu_1(CREATE), at + 8, features),
        ("an address of no memory bus", of_vcpu_1(CREATE), 1 << 60, features),
        ("an address of 2 MiB", of_vcpu_1(CREATE), TEST_BASE.0, features),
    ];
    for (what, info_1, info_2, features) in refused {
        let request = Page::request(AP_CREATION, info_1, info_2).with(Field::RAX, features);
        expect_eq(what, &super::requests(&g).call(&request)?.answer(), &(MALFORMED, INVALID_INPUT))?;
    }
    let without_features = creation(1, CREATE, Gpa(at)).without(Field::RAX);
    let answer = super::requests(&g).call(&without_features)?.answer();
    expect_eq("no features", &answer, &(MALFORMED, MISSING_INPUT))?;
    expect_no_exit_but(t, exits, refused.len() as u64 + 1)?;
    // Nobody has touched the vCPU that they were about.
    g.vcpu(1).call(Op::Nop).map(drop)
}
