//! The MSR protocol: one word there and one back, before there is a GHCB and beside it.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::Page;
use privet_harness::guest::Guest;
use privet_harness::launch::ghcb;
use privet_harness::outcome::Outcome;
use privet_harness::platform::ByType;
use privet_protocol::Op;

use super::{HV_FEATURES, MSR_PROTOCOL, PAGE_PROTOCOL, SEV_TERM, SPECIFICATION, ram, requests, vmgexit};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ghcb.msr.sev_information",
            Types::ES_AND_SNP,
            "The host tells by the MSR protocol: versions 1 to 2, and the C-bit that the guest uses.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let c_bit = g.vcpu(0).read_entry(g.range(0).private_gva(0))? ^ g.vcpu(0).read_entry(g.range(0).shared_gva(0))?;
                let c_bit = u64::from(c_bit.trailing_zeros());
                expect_eq("the answer", &vmgexit(&g, 0x002)?, &(2 << 48 | 1 << 32 | c_bit << 24 | 0x001))
            },
        )
        .basis(&[MSR_PROTOCOL, SPECIFICATION]),
        Row::new(
            "ghcb.msr.hypervisor_features",
            Types::ES_AND_SNP,
            "The host tells of SNP and AP creation, in a SEV-ES guest, too; by the MSR protocol as by a request.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                expect_eq("the answer by MSR", &vmgexit(&g, 0x080)?, &(3 << 12 | 0x081))?;
                let answer = requests(&g).call(&Page::request(HV_FEATURES, 0, 0))?;
                expect_eq("the answer by page", &answer.answer(), &(0, 3))
            },
        )
        .basis(&[MSR_PROTOCOL, PAGE_PROTOCOL]),
        Row::new(
            "ghcb.msr.unknown_request",
            Types::ES_AND_SNP,
            "A request of the MSR protocol that KVM does not know leaves the MSR as it was: no exit, no answer.",
            |t| {
                let g = t.guest().boot()?;
                let exits = t.trace().exits();
                let unknown = [0x001, 0x003, 0x016, 0xabc | 5 << 12, 0xfff];
                for msr in unknown {
                    expect_eq("the MSR", &vmgexit(&g, msr)?, &msr)?;
                }
                expect_eq("the MSR that was 0", &vmgexit(&g, 0)?, &0)?;
                expect_no_exit_but(t, exits, unknown.len() as u64 + 1)
            },
        )
        .basis(&[MSR_PROTOCOL]),
        Row::new(
            "ghcb.msr.preferred_address",
            Types::ES_AND_SNP,
            "The host prefers no address for an SNP guest's GHCB; to a SEV-ES guest the question is a termination.",
            |t| {
                let g = t.guest().boot()?;
                by_type(t, || expect_eq("the answer", &vmgexit(&g, 0x010)?, &(!0xfff | 0x011)), || terminates(&g, 0x010))
            },
        )
        .basis(&[MSR_PROTOCOL]),
        Row::new(
            "ghcb.msr.registration",
            Types::ES_AND_SNP,
            "An SNP guest may register its GHCB again, the host repeats the address; to a SEV-ES guest it is a termination.",
            |t| {
                let g = t.guest().boot()?;
                let gpa = ghcb(0).0;
                let register = gpa | 0x012;
                let again = || expect_eq("the answer", &vmgexit(&g, register)?, &(gpa | 0x013));
                by_type(t, again, || terminates(&g, register))
            },
        )
        .basis(&[MSR_PROTOCOL])
        .upstream("x86/sev_es_ghcb_ucall: snp_register_ghcb"),
        Row::new(
            "ghcb.msr.termination",
            Types::ES_AND_SNP,
            "A termination is a system event with all of the request; a guest that is run again goes on behind it.",
            |t| {
                let g = t.guest().boot()?;
                terminates(&g, 0x42 << 16 | 0xd << 12 | 0x100)?;
                terminates(&g, 0x100)
            },
        )
        .basis(&[MSR_PROTOCOL])
        .exceeds("x86/sev_smoke_test: guest_sev_es_code"),
    ]
}

/// What SNP guests do, and what SEV-ES guests do instead.
fn by_type(t: &Case, snp: impl Fn() -> Outcome, sev_es: impl Fn() -> Outcome) -> Outcome {
    let is_snp = ByType { plain: false, upm: false, sev: false, sev_es: false, snp: true, tdx: false };
    if t.by_type(is_snp) { snp() } else { sev_es() }
}

/// Expects this request of the MSR protocol to be a termination, and the guest to go on when it is run again.
fn terminates(g: &Guest, msr: u64) -> Outcome {
    let asking = g.vcpu(0).start(Op::VmgexitMsr { msr })?;
    asking.expect_exit(&Exit::SystemEvent { kind: SEV_TERM, data: vec![msr] })?;
    asking.resume()?;
    expect_eq("the MSR", &asking.done()?[0], &msr)
}
