//! vCPUs that wait for their reset: an exit where KVM has no APIC of theirs, sleep until a SIPI where it has.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Page, Requests};
use privet_harness::guest::Guest;
use privet_harness::outcome::Outcome;
use privet_protocol::Op;

use super::{MSR_PROTOCOL, PAGE_PROTOCOL, ram, requests};
use crate::asleep::Asleep;
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

const HOLD: &str = "arch/x86/kvm/x86.c: kvm_emulate_ap_reset_hold";
const SIPI: &str = "arch/x86/kvm/svm/sev.c: sev_vcpu_deliver_sipi_vector";

/// SW_EXITCODE.
const AP_HLT_LOOP: u64 = 0x8000_0004;
/// The request of the MSR protocol and the code of its answer, whose bits 63:12 are 0 as long as no SIPI has come.
const REQUEST: u64 = 0x006;
const ANSWER: u64 = 0x007;
/// `KVM_EXIT_AP_RESET_HOLD`.
const AP_RESET_HOLD: u32 = 32;

/// IA32_APIC_BASE of an APIC in x2APIC mode, and the interrupt command register there.
const APIC_BASE: (u32, u64) = (0x1b, 0xfee0_0c00);
const COMMAND: u32 = 0x830;
/// INIT and SIPI for the APIC with id 1, edge, assert.
const INIT: u64 = 1 << 32 | 0x4500;
const START_UP: u64 = 1 << 32 | 0x4600;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ghcb.ap_reset_hold",
            Types::ES_AND_SNP,
            "A vCPU that waits for its reset is an exit where KVM has no APIC of it; both forms have an answer that says \
             that no SIPI has come.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let held = Exit::Other { reason: AP_RESET_HOLD };
                let asking = g.vcpu(0).start(Op::VmgexitMsr { msr: REQUEST })?;
                asking.expect_exit(&held)?;
                asking.resume()?;
                expect_eq("the answer by MSR", &asking.done()?[0], &ANSWER)?;
                let asking = requests(&g).start(&Page::request(AP_HLT_LOOP, 0, 0))?;
                asking.expect_exit(&held)?;
                asking.resume()?;
                expect_eq("the answer by page", &requests(&g).answer(asking)?.answer(), &(0, 0))
            },
        )
        .basis(&[MSR_PROTOCOL, PAGE_PROTOCOL, HOLD]),
        Row::new(
            "ghcb.ap_reset_hold.until_sipi",
            Types::ES_AND_SNP,
            "Where KVM has the APICs, a vCPU that waits for its reset sleeps, without an exit, until another one sends INIT \
             and SIPI. The first SIPI is that of its start, and not told in the answer; each later one is.",
            until_sipi,
        )
        .basis(&[HOLD, SIPI, "arch/x86/kvm/lapic.c: kvm_apic_accept_events"]),
    ]
}

/// vCPU 0 sends INIT and SIPI to vCPU 1.
pub(super) fn start_by_ipis(g: &Guest) -> Outcome {
    for (msr, value) in [APIC_BASE, (COMMAND, INIT), (COMMAND, START_UP)] {
        g.vcpu(0).call(Op::WriteMsr { msr, value })?;
    }
    Ok(())
}

fn until_sipi(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).irqchip().range(ram(2)).boot()?;
    let asleep = Asleep::of(g.vcpu(1).kvm())?;
    for answer in [ANSWER, 1 << 12 | ANSWER, 1 << 12 | ANSWER] {
        let waiting = g.vcpu(1).start(Op::VmgexitMsr { msr: REQUEST })?;
        asleep.wait()?;
        start_by_ipis(&g)?;
        expect_eq("the answer by MSR", &waiting.done()?[0], &answer)?;
    }
    let by_page = Requests::new(&g, 1, g.range(0), 1);
    let waiting = by_page.start(&Page::request(AP_HLT_LOOP, 0, 0))?;
    asleep.wait()?;
    start_by_ipis(&g)?;
    expect_eq("the answer by page", &by_page.answer(waiting)?.answer(), &(0, 1))
}
