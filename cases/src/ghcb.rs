//! Group `ghcb`: the protocol by which SEV-ES and SNP guests ask their host, word by word, and the instructions for
//! which they have to.

mod ap_creation;
mod ap_races;
mod ap_reset_hold;
mod extended_request;
mod guest_request;
mod message;
mod msr;
mod port;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Field, Page, Requests};
use privet_harness::guest::Guest;
use privet_harness::launch::ghcb;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::units::Gpa;
use privet_protocol::Op;

use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_EVENT, INVALID_INPUT, INVALID_USAGE, MALFORMED, MISSING_INPUT, NOT_REGISTERED};
use crate::row::Row;
use crate::types::Types;

const MSR_PROTOCOL: &str = "arch/x86/kvm/svm/sev.c: sev_handle_vmgexit_msr_protocol";
const PAGE_PROTOCOL: &str = "arch/x86/kvm/svm/sev.c: sev_handle_vmgexit";
const FIELDS: &str = "arch/x86/kvm/svm/sev.c: sev_es_are_required_ghcb_fields_valid";
const SPECIFICATION: &str = "AMD's GHCB specification (56421)";
const INSTRUCTIONS: &str = "APM volume 2, 15.35.5: #VC, and 15.35.4: non-automatic exits";

/// SW_EXITCODE.
const CPUID: u64 = 0x72;
const RDTSC: u64 = 0x6e;
const IOIO: u64 = 0x7b;
const MSR: u64 = 0x7c;
const VMMCALL: u64 = 0x81;
const MONITOR: u64 = 0x8a;
const MWAIT: u64 = 0x8b;
const AP_JUMP_TABLE: u64 = 0x8000_0005;
const RUN_VMPL: u64 = 0x8000_0018;
const HV_FEATURES: u64 = 0x8000_fffd;
const TERMINATION: u64 = 0x8000_fffe;
const UNSUPPORTED_EVENT: u64 = 0x8000_ffff;

/// `KVM_SYSTEM_EVENT_SEV_TERM`.
const SEV_TERM: u32 = 6;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "ghcb.cpuid",
            Types::ES_AND_SNP,
            "CPUID by the instruction (which is one #VC), by a request and by the MSR protocol has the same answer.",
            cpuid,
        )
        .basis(&[MSR_PROTOCOL, PAGE_PROTOCOL, INSTRUCTIONS])
        .exceeds("x86/sev_all_boot_test: cpuid_by_ghcb_msr, cpuid_by_ghcb_page"),
        Row::new(
            "ghcb.termination",
            Types::ES_AND_SNP,
            "A termination by a request is a system event, too, with the address of the GHCB in place of the reasons.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let asking = requests(&g).start(&Page::request(TERMINATION, 1, 2))?;
                asking.expect_exit(&Exit::SystemEvent { kind: SEV_TERM, data: vec![ghcb(0).0] })?;
                asking.resume()?;
                expect_eq("the answer", &requests(&g).answer(asking)?.answer(), &(0, 0))
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.outside_of_memory",
            Types::ES_AND_SNP,
            "A GHCB at an address without memory has no answer: the guest goes on, and finds its own words.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let request = Page::request(HV_FEATURES, 0x11, 0x22);
                let exits = t.trace().exits();
                let asking = requests(&g).start_at(&request, Gpa(0x7_0000_0000))?;
                expect_eq("the page", &requests(&g).answer(asking)?, &request)?;
                expect_no_exit_but(t, exits, 1)
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.not_registered",
            Types::SNP,
            "A GHCB that an SNP guest has not registered is answered, in that page: not registered.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let request = Page::request(HV_FEATURES, 0x11, 0x22);
                let asking = requests(&g).start_at(&request, ghcb(1))?;
                expect_eq("the page that is registered", &requests(&g).answer(asking)?, &request)?;
                let at = ghcb(1).0 - privet_harness::launch::OWN_BASE.0;
                let word = |offset: u64| g.own_memory().read_u64(at + offset);
                expect_eq("the answer", &(word(0x398)?, word(0x3a0)?), &(MALFORMED, NOT_REGISTERED))
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.usage",
            Types::ES_AND_SNP,
            "Any usage of the page but 0 is refused.",
            |t| refuses(t, Page::request(HV_FEATURES, 0, 0).usage(1), INVALID_USAGE),
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.unknown_event",
            Types::ES_AND_SNP,
            "A code that KVM does not know, or does not implement, is refused.",
            |t| {
                [RUN_VMPL, 0x8000_001a, 0x8000_0000, 0, 0x401, u64::MAX]
                    .into_iter()
                    .try_for_each(|code| refuses(t, Page::request(code, 0, 0), INVALID_EVENT))
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.unsupported_event",
            Types::ES_AND_SNP,
            "A guest that reports an event that it does not support makes KVM_RUN fail with EINVAL.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let asking = requests(&g).start(&Page::request(UNSUPPORTED_EVENT, 0x400, 0))?;
                asking.expect_exit(&Exit::Failed { errno: Errno::EINVAL, reason: 0 })
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.rdtsc",
            Types::ES_AND_SNP,
            "RDTSC by a request is accepted, and then nobody handles it: an internal error that names the code.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let asking = requests(&g).start(&Page::request(RDTSC, 0, 0))?;
                match asking.exit()? {
                    Exit::InternalError { suberror: 4, data } if data.first() == Some(&RDTSC) => Ok(()),
                    other => Err(Stop::Fail(format!("expected INTERNAL_ERROR 4 with {RDTSC:#x}, saw {other}"))),
                }
            },
        )
        .basis(&[PAGE_PROTOCOL, "arch/x86/kvm/svm/svm.c: svm_invoke_exit_handler"]),
        Row::new(
            "ghcb.monitor_and_mwait",
            Types::ES_AND_SNP,
            "MONITOR and MWAIT by a request with all of their registers are done at once: nobody waits, and there is no exit.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let exits = t.trace().exits();
                expect_eq("the answer to MONITOR", &requests(&g).call(&monitor())?.answer(), &(0, 0))?;
                expect_eq("the answer to MWAIT", &requests(&g).call(&mwait())?.answer(), &(0, 0))?;
                expect_no_exit_but(t, exits, 2)
            },
        )
        .basis(&[FIELDS, "arch/x86/kvm/x86.c: kvm_emulate_monitor_mwait"]),
        Row::new(
            "ghcb.cpuid_of_states",
            Types::ES_AND_SNP,
            "CPUID of leaf 0xd by a request that says that the guest has x87 state only: an area of 576 bytes, by XSAVE.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let answer = requests(&g).call(&cpuid_of_states())?;
                expect_eq("the answer", &answer.answer(), &(0, 0))?;
                expect_eq("EBX", &answer.get(Field::RBX), &576)
            },
        )
        .basis(&[FIELDS, "arch/x86/kvm/cpuid.c: kvm_update_cpuid_runtime", "APM volume 3, CPUID Fn0000_000D"]),
        Row::new(
            "ghcb.msr_access",
            Types::ES_AND_SNP,
            "RDMSR by a request of an MSR that there is has its value, and of one that there is not it is #GP for the guest \
             to raise. (KVM extends the sign of the event over the error code.)",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let read = |msr: u64| requests(&g).call(&Page::request(MSR, 0, 0).with(Field::RCX, msr));
                expect_eq("the answer", &read(0x10)?.answer(), &(0, 0))?;
                let (info_1, info_2) = read(0x4b4d_ffff)?.answer();
                expect_eq("the answer for none", &(info_1, info_2 as u32), &(1, 0x8000_030d))
            },
        )
        .basis(&[PAGE_PROTOCOL, "arch/x86/kvm/svm/svm.c: svm_complete_emulated_msr"])
        .exceeds("x86/sev_es_ghcb_ucall: ghcb_msr")
        .needs(Need::Parameter("kvm.ignore_msrs", "N")),
        Row::new(
            "ghcb.ap_jump_table",
            Types::ES_AND_SNP,
            "The address of a jump table that one vCPU sets is what any gets; another request about it is refused.",
            |t| {
                let g = t.guest().vcpus(2).range(ram(2)).boot()?;
                let other = Requests::new(&g, 1, g.range(0), 1);
                let get = Page::request(AP_JUMP_TABLE, 1, 0);
                expect_eq("at first", &other.call(&get)?.answer(), &(0, 0))?;
                let set = requests(&g).call(&Page::request(AP_JUMP_TABLE, 0, 0x12_3000))?;
                expect_eq("setting it", &set.answer(), &(0, 0))?;
                expect_eq("afterwards", &other.call(&get)?.answer(), &(0, 0x12_3000))?;
                let odd = requests(&g).call(&Page::request(AP_JUMP_TABLE, 2, 0))?;
                expect_eq("another request", &odd.answer(), &(MALFORMED, INVALID_INPUT))
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.nested_exception",
            Types::ES_AND_SNP,
            "An exception in the guest's handler of #VC is told with both vectors: it is not lost.",
            |t| {
                let g = t.guest().boot()?;
                let running = g.vcpu(0).start(Op::PortReadBytes { port: 0x80, gva: 0x20_1234_5678, count: 8 })?;
                running.exit()?;
                running.resume()?;
                match running.result() {
                    Err(Stop::Error(line)) if line.contains("handled exception #VC") && line.contains("exception #PF") => {
                        Ok(())
                    }
                    other => Err(Stop::Fail(format!("expected a report of #PF in the handler of #VC, saw {other:x?}"))),
                }
            },
        )
        .basis(&["payloads/runtime: exceptions"]),
    ];
    let (out, out_string) =
        (Page::request(IOIO, 0x80 << 16 | 1 << 4, 0), Page::request(IOIO, 0x80 << 16 | 1 << 4 | 1 << 2, 1));
    let write_msr = Page::request(MSR, 1, 0).with(Field::RCX, 0x10).with(Field::RAX, 0).with(Field::RDX, 0);
    let cpuid_of_states = cpuid_of_states();
    let hypercall = Page::request(VMMCALL, 0, 0).with(Field::RAX, 0).with(Field::CPL, 0);
    for (name, field, request) in [
        ("code", Field::EXIT_CODE, Page::request(HV_FEATURES, 0, 0)),
        ("information_1", Field::EXIT_INFO_1, Page::request(HV_FEATURES, 0, 0)),
        ("information_2", Field::EXIT_INFO_2, Page::request(HV_FEATURES, 0, 0)),
        ("rcx_of_msr", Field::RCX, Page::request(MSR, 0, 0)),
        ("rax_of_written_msr", Field::RAX, write_msr.clone()),
        ("rdx_of_written_msr", Field::RDX, write_msr),
        ("rax_of_cpuid", Field::RAX, Page::request(CPUID, 0, 0).with(Field::RCX, 0)),
        ("rcx_of_cpuid", Field::RCX, Page::request(CPUID, 0, 0).with(Field::RAX, 0)),
        ("xcr0_of_cpuid", Field::XCR0, cpuid_of_states),
        ("rax_of_out", Field::RAX, out),
        ("scratch_of_string", Field::SCRATCH, out_string),
        ("rax_of_hypercall", Field::RAX, hypercall.clone()),
        ("cpl_of_hypercall", Field::CPL, hypercall),
        ("rax_of_monitor", Field::RAX, monitor()),
        ("rcx_of_monitor", Field::RCX, monitor()),
        ("rdx_of_monitor", Field::RDX, monitor()),
        ("rax_of_mwait", Field::RAX, mwait()),
        ("rcx_of_mwait", Field::RCX, mwait()),
        ("scratch_of_mmio", Field::SCRATCH, Page::request(0x8000_0001, 0x8000_0000, 4)),
    ] {
        rows.push(
            Row::new(
                format!("ghcb.missing_input.{name}"),
                Types::ES_AND_SNP,
                "A request without a field that it needs, which has a value but is not marked as valid, is refused.",
                move |t| refuses(t, request.clone().without(field), MISSING_INPUT),
            )
            .basis(&[FIELDS]),
        );
    }
    rows.extend(ap_creation::rows());
    rows.extend(ap_races::rows());
    rows.extend(ap_reset_hold::rows());
    rows.extend(guest_request::rows());
    rows.extend(extended_request::rows());
    rows.extend(msr::rows());
    rows.extend(port::rows());
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

/// A page for requests, far from all others.
fn image() -> RangeSpec {
    ram(1).at(Gpa(0x9_0000_0000))
}

/// Memory for requests, which is always shared.
fn ram(pages: u64) -> RangeSpec {
    RangeSpec::new(pages).backing(Backing::HostOnly)
}

fn requests(g: &Guest) -> Requests<'_> {
    Requests::new(g, 0, g.range(0), 0)
}

/// MONITOR of an address, with all of its registers.
fn monitor() -> Page {
    Page::request(MONITOR, 0, 0).with(Field::RAX, 0x1000).with(Field::RCX, 0).with(Field::RDX, 0)
}

/// MWAIT, likewise.
fn mwait() -> Page {
    Page::request(MWAIT, 0, 0).with(Field::RAX, 0).with(Field::RCX, 0)
}

/// CPUID of the leaf that depends on the guest's XCR0, in which there is only x87.
fn cpuid_of_states() -> Page {
    Page::request(CPUID, 0, 0).with(Field::RAX, 0xd).with(Field::RCX, 0).with(Field::XCR0, 1)
}

fn vmgexit(g: &Guest, msr: u64) -> Outcome<u64> {
    Ok(g.vcpu(0).call(Op::VmgexitMsr { msr })?[0])
}

/// Expects a request to be refused, for this reason, without an exit.
fn refuses(t: &Case, request: Page, reason: u64) -> Outcome {
    let g = t.guest().range(ram(1)).boot()?;
    let exits = t.trace().exits();
    expect_eq("the answer", &requests(&g).call(&request)?.answer(), &(MALFORMED, reason))?;
    expect_no_exit_but(t, exits, 1)
}

fn cpuid(t: &Case) -> Outcome {
    let g = t.guest().range(ram(1)).boot()?;
    let v = g.vcpu(0);
    for leaf in [0, 0x4000_0000, 0x8000_0000] {
        let [before, ..] = v.call(Op::Reflected)?;
        let [eax, ebx, ecx, edx, ..] = v.call(Op::Cpuid { leaf, subleaf: 0 })?;
        expect_eq("#VC of one CPUID", &(v.call(Op::Reflected)?[0] - before), &1)?;
        let request = Page::request(CPUID, 0, 0).with(Field::RAX, leaf.into()).with(Field::RCX, 0);
        let answer = requests(&g).call(&request)?;
        for (register, field, by_instruction) in
            [(0, Field::RAX, eax), (1, Field::RBX, ebx), (2, Field::RCX, ecx), (3, Field::RDX, edx)]
        {
            expect_eq("a register by page", &answer.get(field), &by_instruction)?;
            let by_msr = vmgexit(&g, u64::from(leaf) << 32 | register << 30 | 0x004)?;
            expect_eq("a register by MSR", &by_msr, &(by_instruction << 32 | register << 30 | 0x005))?;
        }
    }
    Ok(())
}
