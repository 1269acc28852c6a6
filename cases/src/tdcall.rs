//! Groups `measure` and `accept` of TDX: what a TD learns of itself from the module, and pages that it accepts.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::RangeSpec;
use privet_harness::units::PAGE_SIZE;
use privet_protocol::{Op, Pattern, Width};

use crate::expect::{expect_eq, expect_errno, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);

/// Leaves of TDCALL (TDX module ABI).
const RTMR_EXTEND: u64 = 2;
const REPORT: u64 = 4;
const ACCEPT: u64 = 6;

/// Completion status, bits 63:32.
const OPERAND_INVALID: u64 = 0xc000_0100;
const ALREADY_ACCEPTED: u64 = 0x0000_0b0a;
const SIZE_MISMATCH: u64 = 0xc000_0b0b;

/// Where in a report MRTD and the first RTMR are, and how long each is (TDREPORT_STRUCT).
const MRTD: u64 = 528;
const RTMR: u64 = 720;
const REGISTER: usize = 48;

const MODULE: &str = "TDX module ABI: TDG.MEM.PAGE.ACCEPT";
const VIOLATION: &str = "arch/x86/kvm/vmx/tdx.c: tdx_handle_ept_violation";

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "measure.mrtd_matches_report",
            Types::TDX,
            "MRTD in the report that the TD gets of the module is the digest predicted from what was launched: every page, \
             its place and its content, in order.",
            mrtd_matches_report,
        )
        .basis(&["TDX module ABI: TDG.MR.REPORT", "arch/x86/kvm/vmx/tdx.c: tdx_gmem_post_populate"]),
        Row::new(
            "measure.rtmrs_are_the_guests",
            Types::TDX,
            "The TD extends a register of its own, which its report then shows; MRTD and the other registers stay, and \
             there are four.",
            rtmrs,
        )
        .basis(&["TDX module ABI: TDG.MR.RTMR.EXTEND"]),
        Row::new(
            "measure.cpuid",
            Types::TDX,
            "CPUID tells the TD that it is one, whatever the host says: the module answers. The leaves of hypervisors are \
             KVM's, by #VE and TDG.VP.VMCALL. Neither exits to user space.",
            cpuid,
        )
        .basis(&["TDX module ABI: CPUID virtualization", "arch/x86/kvm/vmx/tdx.c: tdx_emulate_cpuid"])
        .exceeds("x86/tdx_vm_test: verify_td_cpuid"),
        Row::new(
            "accept.once",
            Types::TDX,
            "A private page that the TD accepts reads zero, whatever was in the guest_memfd; accepted again it is told \
             that it was, and keeps its content. So are pages of the launch.",
            accept_once,
        )
        .basis(&[MODULE]),
        Row::new(
            "accept.sizes",
            Types::TDX,
            "KVM maps private memory in pages of 4 KiB: 2 MiB are of another size, 1 GiB is no size at all, and neither \
             accepts anything.",
            accept_sizes,
        )
        .basis(&[MODULE, VIOLATION]),
        Row::new(
            "accept.shared_attribute",
            Types::TDX,
            "Accepting a page whose attribute is shared exits as a memory fault, private; made private, the same \
             instruction succeeds.",
            accept_shared,
        )
        .basis(&[VIOLATION])
        .upstream("x86/tdx_upm_test: verify_upm_implicit"),
        Row::new(
            "access.before_accept",
            Types::TDX,
            "Without SEPT_VE_DISABLE a load of a private page that is not accepted is #VE in the TD, without an exit to \
             user space; accepted, it is read.",
            before_accept,
        )
        .basis(&[VIOLATION, "TDX module base architecture: EPT violation #VE of pending pages"]),
        Row::new(
            "access.before_accept.dies",
            Types::TDX,
            "With SEPT_VE_DISABLE the same load is the end of the TD: KVM_RUN is EIO without an exit, the VM is given up, and \
             all of its ioctls are EIO. Another TD goes on.",
            before_accept_dies,
        )
        .basis(&[VIOLATION, "TDX module base architecture: SEPT_VE_DISABLE"]),
        Row::new(
            "convert.content_is_destroyed",
            Types::TDX,
            "A private page that becomes shared and private again reads zero: its content went with KVM's removal of it, \
             although nobody punched the guest_memfd. Pages beside it stay.",
            content_is_destroyed,
        )
        .basis(&["arch/x86/kvm/vmx/tdx.c: tdx_sept_remove_leaf_spte"]),
    ]
}

/// A guest with a test range of so many pages.
fn guest(t: &Case, pages: u64) -> Outcome<Guest> {
    t.guest().range(RangeSpec::new(pages)).boot()
}

/// TDCALL of vCPU 0: the status.
fn tdcall(g: &Guest, leaf: u64, registers: [u64; 4]) -> Outcome<u64> {
    let [status, ..] = g.vcpu(0).call(Op::Tdcall { leaf, registers })?;
    Ok(status)
}

/// The report of the TD, written into the first page of the range, the second being its data. Both are private.
fn report(g: &Guest) -> Outcome<impl Fn(u64) -> Outcome<Vec<u8>>> {
    let range = g.range(0);
    expect_eq("TDG.MR.REPORT", &tdcall(g, REPORT, [range.gpa(0).0, range.gpa(1).0, 0, 0])?, &0)?;
    let start = range.private_gva(0);
    Ok(move |offset: u64| g.vcpu(0).read_bytes(start + offset, REGISTER))
}

fn mrtd_matches_report(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    g.make_private(0, 0..2)?;
    let predicted = t.trace().launches().last().map(|log| log.digest());
    let predicted = predicted.ok_or_else(|| Stop::Error("the launch has left no log".into()))?;
    expect_eq("MRTD", &report(&g)?(MRTD)?, &predicted)
}

fn rtmrs(t: &Case) -> Outcome {
    let g = guest(t, 3)?;
    g.make_private(0, 0..3)?;
    let (mrtd, first) = {
        let register = report(&g)?;
        (register(MRTD)?, register(RTMR)?)
    };
    expect_eq("RTMR 0 in the beginning", &first, &vec![0; REGISTER])?;
    let data = g.range(0).gpa(2).0;
    expect_eq("RTMR 2", &tdcall(&g, RTMR_EXTEND, [data, 2, 0, 0])?, &0)?;
    expect_eq("RTMR 4", &(tdcall(&g, RTMR_EXTEND, [data, 4, 0, 0])? >> 32), &OPERAND_INVALID)?;
    let register = report(&g)?;
    expect_eq("MRTD", &register(MRTD)?, &mrtd)?;
    let zero: Vec<bool> =
        (0..4).map(|index| Ok(register(RTMR + index * 48)? == vec![0; REGISTER])).collect::<Outcome<_>>()?;
    expect_eq("RTMRs that are still zero", &zero, &vec![true, true, false, true])
}

fn cpuid(t: &Case) -> Outcome {
    const IDENTITY: u32 = 0x21;
    const HYPERVISOR: u32 = 0x4000_0000;
    let g = guest(t, 1)?;
    let exits = t.trace().exits();
    let ask = |leaf| {
        let [_, ebx, ecx, edx, ..] = g.vcpu(0).call(Op::Cpuid { leaf, subleaf: 0 })?;
        Ok::<_, Stop>([ebx, ecx, edx].map(|register| (register as u32).to_le_bytes()))
    };
    let [ebx, ecx, edx] = ask(IDENTITY)?;
    expect_eq("the module's identity", &[ebx, edx, ecx].concat(), &b"IntelTDX    ".to_vec())?;
    expect_eq("KVM's identity", &ask(HYPERVISOR)?.concat(), &b"KVMKVMKVM\0\0\0".to_vec())?;
    expect_no_exit_but(t, exits, 2)
}

fn accept_once(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..2, A)?;
    range.set_private(g.vm(), 0..1)?;
    expect_eq("the first time", &tdcall(&g, ACCEPT, [range.gpa(0).0, 0, 0, 0])?, &0)?;
    v.expect_read(range.private_gva(0), Width::B8, 0)?;
    v.fill(range.private_gva(0), 1, A, 0)?;
    let again = tdcall(&g, ACCEPT, [range.gpa(0).0, 0, 0, 0])?;
    expect_eq("the second time", &again, &(ALREADY_ACCEPTED << 32))?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    let code = g.plan().private().next().map_or(0, |piece| piece.gpa.0);
    expect_eq("a page of the launch", &tdcall(&g, ACCEPT, [code, 0, 0, 0])?, &(ALREADY_ACCEPTED << 32))
}

fn accept_sizes(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let range = g.range(0);
    range.set_private(g.vm(), 0..1)?;
    let gpa = range.gpa(0).0;
    expect_eq("1 GiB", &tdcall(&g, ACCEPT, [gpa | 2, 0, 0, 0])?, &(OPERAND_INVALID << 32 | 1))?;
    expect_eq("2 MiB", &tdcall(&g, ACCEPT, [gpa | 1, 0, 0, 0])?, &(SIZE_MISMATCH << 32 | 1))?;
    expect_eq("4 KiB", &tdcall(&g, ACCEPT, [gpa, 0, 0, 0])?, &0)
}

fn accept_shared(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let range = g.range(0);
    let accepting = g.vcpu(0).start(Op::Tdcall { leaf: ACCEPT, registers: [range.gpa(1).0, 0, 0, 0] })?;
    accepting.expect_exit(&Exit::memory_fault(range.gpa(1), true))?;
    range.set_private(g.vm(), 1..2)?;
    accepting.resume()?;
    let [status, ..] = accepting.done()?;
    expect_eq("the status", &status, &0)
}

fn before_accept(t: &Case) -> Outcome {
    const VE: u64 = 20;
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 0..1)?;
    let exits = t.trace().exits();
    let load = Op::Read { gva: range.private_gva(0).0, width: Width::B8 };
    let fault = v.attempt(load)?.err().map(|fault| fault.vector);
    expect_eq("the exception", &fault, &Some(VE))?;
    expect_eq("exits", &(t.trace().exits() - exits), &1)?;
    expect_eq("TDG.MEM.PAGE.ACCEPT", &tdcall(&g, ACCEPT, [range.gpa(0).0, 0, 0, 0])?, &0)?;
    v.expect_read(range.private_gva(0), Width::B8, 0)
}

fn before_accept_dies(t: &Case) -> Outcome {
    let other = guest(t, 1)?;
    let g = t.guest().range(RangeSpec::new(2)).sept_ve_disable().boot()?;
    let range = g.range(0);
    range.set_private(g.vm(), 0..2)?;
    expect_eq("a page that is accepted before", &tdcall(&g, ACCEPT, [range.gpa(0).0, 0, 0, 0])?, &0)?;
    g.vcpu(0).expect_read(range.private_gva(0), Width::B8, 0)?;
    let load = g.vcpu(0).start(Op::Read { gva: range.private_gva(1).0, width: Width::B8 })?;
    load.expect_exit(&Exit::Failed { errno: Errno::EIO, reason: 0 })?;
    load.resume()?;
    load.expect_exit(&Exit::Refused { errno: Errno::EIO })?;
    let refused = g.vm().set_memory_attributes_raw(range.gpa(0).0, PAGE_SIZE, 0, 0);
    expect_errno("KVM_SET_MEMORY_ATTRIBUTES", refused, Errno::EIO)?;
    other.vcpu(0).call(Op::Nop).map(drop)
}

fn content_is_destroyed(t: &Case) -> Outcome {
    let g = guest(t, 3)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..3)?;
    v.fill(range.private_gva(0), 3, A, 0)?;
    g.make_shared(0, 1..2)?;
    g.make_private(0, 1..2)?;
    v.expect_read(range.private_gva(1), Width::B8, 0)?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    v.expect(range.private_gva(2), 1, A, 2)
}
