//! Group `tdvmcall`: what a TD asks its host by TDG.VP.VMCALL, how KVM answers, and what user space is asked (GHCI
//! specification). MMIO and conversions that succeed are in `mmio` and `convert`.

use std::thread;
use std::time::Duration;

use kvm_bindings::KVM_MP_STATE_HALTED;
use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::{Direction, Exit};
use privet_harness::guest::{Guest, MMIO_BASE};
use privet_harness::guest_vcpu::Running;
use privet_harness::launch::tdx::GPA_WIDTH;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::RangeSpec;
use privet_harness::uapi::{HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use privet_harness::units::{Gpa, PAGE_SIZE};
use privet_protocol::Op;

use crate::expect::{expect_eq, expect_no_exit_but, expect_ok};
use crate::row::Row;
use crate::types::Types;

/// Functions, in R11.
const CPUID: u64 = 10;
const HLT: u64 = 12;
const IO: u64 = 30;
const RDMSR: u64 = 31;
const WRMSR: u64 = 32;
const MMIO: u64 = 48;
const GET_INFO: u64 = 0x1_0000;
const MAP_GPA: u64 = 0x1_0001;
const GET_QUOTE: u64 = 0x1_0002;
const REPORT_FATAL_ERROR: u64 = 0x1_0003;
const EVENT_NOTIFY: u64 = 0x1_0004;

/// Answers, in R10.
const DONE: u64 = 0;
const RETRY: u64 = 1;
const INVALID_OPERAND: u64 = 1 << 63;
const ALIGN_ERROR: u64 = 1 << 63 | 2;
const UNSUPPORTED: u64 = 1 << 63 | 3;

/// What KVM's exits from a TD have in RAX and RCX: exit reason 77, and the registers that the guest shows.
const TDCALL_EXIT: u64 = 77;
const R10_TO_R15: u64 = 0xfc00;
/// `KVM_SYSTEM_EVENT_TDX_FATAL`.
const TDX_FATAL: u32 = 7;

const SHARED: u64 = 1 << (GPA_WIDTH - 1);
const MIB: u64 = 1 << 20;

const GHCI: &str = "GHCI specification: TDG.VP.VMCALL";
const HANDLER: &str = "arch/x86/kvm/vmx/tdx.c: handle_tdvmcall";

pub(crate) fn rows() -> Vec<Row> {
    vec![
        row(
            "tdvmcall.fatal_error",
            "ReportFatalError is KVM_EXIT_SYSTEM_EVENT 7 with all 16 registers, of which those are 0 that the TD does not \
             show. Entered again all the same, the TD goes on.",
            fatal_error,
        )
        .exceeds("x86/tdx_vm_test: verify_report_fatal_error"),
        row(
            "tdvmcall.unknown",
            "A function that there is not is answered with SUBFUNC_UNSUPPORTED, and user space hears nothing of it.",
            unknown,
        ),
        row(
            "tdvmcall.info",
            "GetTdVmCallInfo 0 says that all that is demanded is there, 1 asks user space, which has nothing more unless it \
             says so, and any other is INVALID_OPERAND.",
            info,
        )
        .exceeds("x86/tdx_vm_test: verify_get_td_vmcall_info"),
        row(
            "tdvmcall.map_gpa.refused",
            "MapGPA of nothing, of what wraps, of addresses that are none, and of both sides of the shared bit is \
             INVALID_OPERAND; of parts of pages it is ALIGN_ERROR. R11 is the address, and user space hears nothing of it.",
            map_gpa_refused,
        ),
        row(
            "tdvmcall.map_gpa.without_exit",
            "Without KVM_CAP_EXIT_HYPERCALL there is no MapGPA: SUBFUNC_UNSUPPORTED.",
            map_gpa_without_exit,
        ),
        row(
            "tdvmcall.map_gpa.in_parts",
            "MapGPA of 5 MiB reaches user space as three hypercalls, of 2 MiB from the first address on, without the shared \
             bit: told by an attribute which way it goes.",
            map_gpa_in_parts,
        ),
        row(
            "tdvmcall.map_gpa.answers",
            "User space answers a part with EAGAIN: the TD gets RETRY and the address of that part, as it wrote it. EINVAL is \
             INVALID_OPERAND likewise.",
            map_gpa_answers,
        ),
        row(
            "tdvmcall.quote",
            "GetQuote of a private buffer is INVALID_OPERAND. Of a shared one it is KVM_EXIT_TDX without the shared bit, and \
             SUBFUNC_UNSUPPORTED unless user space answers otherwise.",
            quote,
        ),
        row(
            "tdvmcall.event_notify",
            "SetupEventNotifyInterrupt takes vectors 32 to 255 and is KVM_EXIT_TDX then; others are INVALID_OPERAND.",
            event_notify,
        ),
        row(
            "tdvmcall.port_sizes",
            "A port access of 1, 2 or 4 bytes reaches user space, and the TD gets as many of its answer; of another size, or \
             neither in nor out, it is INVALID_OPERAND.",
            port_sizes,
        )
        .exceeds("x86/tdx_vm_test: verify_td_ioexit, verify_guest_writes, verify_guest_reads"),
        row(
            "tdvmcall.mmio_sizes",
            "An MMIO access of 1, 2, 4 or 8 bytes reaches user space; of another size, neither load nor store, or at a \
             private address, it is INVALID_OPERAND.",
            mmio_sizes,
        )
        .exceeds("x86/tdx_vm_test: verify_mmio_reads, verify_mmio_writes"),
        row(
            "tdvmcall.cpuid",
            "CPUID asked of the host is what KVM_SET_CPUID2 has said of the vCPU, without an exit to user space.",
            cpuid,
        )
        .exceeds("x86/tdx_vm_test: verify_td_cpuid_tdcall"),
        row(
            "tdvmcall.msrs",
            "KVM keeps MTRRdefType for the TD as it is written; an MSR that it has not is INVALID_OPERAND, read or written.",
            msrs,
        )
        .upstream("x86/tdx_vm_test: verify_guest_msr_writes, verify_guest_msr_reads"),
        row(
            "tdvmcall.halt",
            "A TD that halts stays in the kernel. Interrupted, its vCPU says that it is halted, and is so when it is entered \
             again; made runnable, the TD goes on.",
            halt,
        )
        .exceeds("x86/tdx_vm_test: verify_guest_hlt"),
    ]
}

fn row(name: &'static str, about: &'static str, story: fn(&Case) -> Outcome) -> Row {
    Row::new(name, Types::TDX, about, story).basis(&[GHCI, HANDLER])
}

fn guest(t: &Case) -> Outcome<Guest> {
    t.guest().range(RangeSpec::new(2)).boot()
}

/// A function with its operands from R12 on.
fn op(function: u64, [r12, r13, r14, r15]: [u64; 4]) -> Op {
    Op::Tdvmcall { registers: [0, function, r12, r13, r14, r15] }
}

/// R10 and R11 of the answer to a function that KVM deals with by itself.
fn ask(g: &Guest, function: u64, operands: [u64; 4]) -> Outcome<[u64; 2]> {
    let [r10, r11, ..] = g.vcpu(0).call(op(function, operands))?;
    Ok([r10, r11])
}

/// Ends a function and expects R10 and R11.
fn expect_answer(asking: Running<'_>, expected: [u64; 2]) -> Outcome {
    asking.resume()?;
    let [r10, r11, ..] = asking.done()?;
    expect_eq("R10 and R11", &[r10, r11], &expected)
}

fn fatal_error(t: &Case) -> Outcome {
    let g = guest(t)?;
    let asking = g.vcpu(0).start(op(REPORT_FATAL_ERROR, [0x12, 0x13, 0x14, 0x15]))?;
    let hidden = [0; 6];
    let shown = [0, REPORT_FATAL_ERROR, 0x12, 0x13, 0x14, 0x15];
    let data = [[TDCALL_EXIT, R10_TO_R15].as_slice(), &hidden, &[0, 0], &shown].concat();
    asking.expect_exit(&Exit::SystemEvent { kind: TDX_FATAL, data })?;
    expect_answer(asking, [DONE, REPORT_FATAL_ERROR])
}

fn unknown(t: &Case) -> Outcome {
    let g = guest(t)?;
    let exits = t.trace().exits();
    let functions = [0, 1, 29, 0x1_0005, 0x1_ffff, u64::MAX];
    for function in functions {
        let [answer, _] = ask(&g, function, [0; 4])?;
        expect_eq(&format!("function {function:#x}"), &answer, &UNSUPPORTED)?;
    }
    expect_no_exit_but(t, exits, functions.len() as u64)
}

fn info(t: &Case) -> Outcome {
    let g = guest(t)?;
    let [r10, r11, r12, r13, r14, ..] = g.vcpu(0).call(op(GET_INFO, [0, 1, 2, 3]))?;
    expect_eq("leaf 0", &[r10, r11, r12, r13, r14], &[0; 5])?;
    let asked = Exit::Tdx { nr: GET_INFO, ret: DONE, values: [1, 0] };
    let asking = g.vcpu(0).start(op(GET_INFO, [1, 1, 2, 3]))?;
    asking.expect_exit(&asked)?;
    asking.resume()?;
    let [r10, r11, r12, r13, r14, ..] = asking.done()?;
    expect_eq("leaf 1 that user space leaves as it is", &[r10, r11, r12, r13, r14], &[0; 5])?;
    let asking = g.vcpu(0).start(op(GET_INFO, [1, 0, 0, 0]))?;
    asking.expect_exit(&asked)?;
    g.vcpu(0).kvm().set_tdx_info([0x21, 0x22, 0x23, 0x24])?;
    asking.resume()?;
    let [r10, r11, r12, r13, r14, ..] = asking.done()?;
    expect_eq("leaf 1", &[r10, r11, r12, r13, r14], &[0, 0x21, 0x22, 0x23, 0x24])?;
    expect_eq("leaf 2", &ask(&g, GET_INFO, [2, 0, 0, 0])?[0], &INVALID_OPERAND)
}

fn map_gpa_refused(t: &Case) -> Outcome {
    let g = guest(t)?;
    let gpa = g.range(0).gpa(0).0;
    let exits = t.trace().exits();
    let cases = [
        (gpa, 0, INVALID_OPERAND),
        (gpa, u64::MAX - gpa + 1, INVALID_OPERAND),
        (SHARED - PAGE_SIZE, 2 * PAGE_SIZE, INVALID_OPERAND),
        (1 << 52, PAGE_SIZE, INVALID_OPERAND),
        (gpa + 8, PAGE_SIZE, ALIGN_ERROR),
        (gpa, 8, ALIGN_ERROR),
        (gpa | SHARED, PAGE_SIZE + 1, ALIGN_ERROR),
    ];
    for (start, size, expected) in cases {
        let answer = ask(&g, MAP_GPA, [start, size, 0, 0])?;
        expect_eq(&format!("{size:#x} bytes at {start:#x}"), &answer, &[expected, start])?;
    }
    expect_no_exit_but(t, exits, cases.len() as u64)
}

fn map_gpa_without_exit(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).without_map_gpa_range_exit().boot()?;
    let gpa = g.range(0).gpa(0).0;
    expect_eq("MapGPA", &ask(&g, MAP_GPA, [gpa, PAGE_SIZE, 0, 0])?, &[UNSUPPORTED, gpa])
}

/// The exit for a part of MapGPA.
fn part(gpa: u64, bytes: u64, is_private: bool) -> Exit {
    let attributes = if is_private { MAP_GPA_RANGE_ENCRYPTED } else { 0 };
    Exit::Hypercall { nr: HC_MAP_GPA_RANGE, args: [gpa, bytes / PAGE_SIZE, attributes], flags: 1 }
}

fn map_gpa_in_parts(t: &Case) -> Outcome {
    let g = guest(t)?;
    // Nobody has memory there, and KVM asks nobody.
    let gpa = MMIO_BASE.0 + PAGE_SIZE;
    for (bit, is_private) in [(0, true), (SHARED, false)] {
        let asking = g.vcpu(0).start(op(MAP_GPA, [gpa | bit, 5 * MIB, 0, 0]))?;
        asking.expect_exit(&part(gpa, 2 * MIB, is_private))?;
        asking.resume()?;
        asking.expect_exit(&part(gpa + 2 * MIB, 2 * MIB, is_private))?;
        asking.resume()?;
        asking.expect_exit(&part(gpa + 4 * MIB, MIB, is_private))?;
        expect_answer(asking, [DONE, MAP_GPA])?;
    }
    Ok(())
}

fn map_gpa_answers(t: &Case) -> Outcome {
    let g = guest(t)?;
    let gpa = MMIO_BASE.0;
    for (errno, expected) in [(Errno::EAGAIN, RETRY), (Errno::EINVAL, INVALID_OPERAND)] {
        let asking = g.vcpu(0).start(op(MAP_GPA, [gpa | SHARED, 4 * MIB, 0, 0]))?;
        asking.expect_exit(&part(gpa, 2 * MIB, false))?;
        asking.resume()?;
        asking.expect_exit(&part(gpa + 2 * MIB, 2 * MIB, false))?;
        g.vcpu(0).kvm().set_hypercall_ret(errno as u64)?;
        expect_answer(asking, [expected, (gpa + 2 * MIB) | SHARED])?;
    }
    Ok(())
}

fn quote(t: &Case) -> Outcome {
    let g = guest(t)?;
    let gpa = g.range(0).gpa(0).0;
    expect_eq("a private buffer", &ask(&g, GET_QUOTE, [gpa, PAGE_SIZE, 0, 0])?[0], &INVALID_OPERAND)?;
    let asked = Exit::Tdx { nr: GET_QUOTE, ret: UNSUPPORTED, values: [gpa, PAGE_SIZE] };
    let asking = g.vcpu(0).start(op(GET_QUOTE, [gpa | SHARED, PAGE_SIZE, 0, 0]))?;
    asking.expect_exit(&asked)?;
    expect_answer(asking, [UNSUPPORTED, GET_QUOTE])?;
    let asking = g.vcpu(0).start(op(GET_QUOTE, [gpa | SHARED, PAGE_SIZE, 0, 0]))?;
    asking.expect_exit(&asked)?;
    g.vcpu(0).kvm().set_tdx_ret(DONE)?;
    expect_answer(asking, [DONE, GET_QUOTE])
}

fn event_notify(t: &Case) -> Outcome {
    let g = guest(t)?;
    for vector in [0, 31, 256, u64::MAX] {
        let [answer, _] = ask(&g, EVENT_NOTIFY, [vector, 0, 0, 0])?;
        expect_eq(&format!("vector {vector}"), &answer, &INVALID_OPERAND)?;
    }
    for vector in [32, 255] {
        let asking = g.vcpu(0).start(op(EVENT_NOTIFY, [vector, 0, 0, 0]))?;
        asking.expect_exit(&Exit::Tdx { nr: EVENT_NOTIFY, ret: UNSUPPORTED, values: [vector, 0] })?;
        g.vcpu(0).kvm().set_tdx_ret(DONE)?;
        expect_answer(asking, [DONE, EVENT_NOTIFY])?;
    }
    Ok(())
}

fn port_sizes(t: &Case) -> Outcome {
    const PORT: u64 = 0x2f8;
    const OUT: u64 = 1;
    let g = guest(t)?;
    let exits = t.trace().exits();
    for operands in [[0, OUT, PORT, 0], [3, OUT, PORT, 0], [8, 0, PORT, 0], [1, 2, PORT, 0], [1, u64::MAX, PORT, 0]] {
        expect_eq(&format!("{operands:?}"), &ask(&g, IO, operands)?[0], &INVALID_OPERAND)?;
    }
    expect_no_exit_but(t, exits, 5)?;
    for size in [1, 2, 4] {
        let data = vec![0x5a; size];
        let asking = g.vcpu(0).start(op(IO, [size as u64, OUT, PORT, 0x5a5a_5a5a]))?;
        let direction = Direction::Out;
        asking.expect_exit(&Exit::Io { port: PORT as u16, direction, size: size as u8, count: 1, data })?;
        expect_answer(asking, [DONE, IO])?;

        let asking = g.vcpu(0).start(op(IO, [size as u64, 0, PORT, 0]))?;
        let (direction, data) = (Direction::In, Vec::new());
        asking.expect_exit(&Exit::Io { port: PORT as u16, direction, size: size as u8, count: 1, data })?;
        let answer = [0x84, 0x83, 0x82, 0x81];
        g.vcpu(0).kvm().set_io_in_data(&answer[..size])?;
        let read = u64::from(u32::from_le_bytes(answer)) & (u64::MAX >> (64 - 8 * size));
        expect_answer(asking, [DONE, read])?;
    }
    Ok(())
}

fn mmio_sizes(t: &Case) -> Outcome {
    const STORE: u64 = 1;
    let g = guest(t)?;
    let gpa = MMIO_BASE.0;
    let at = gpa | SHARED;
    let exits = t.trace().exits();
    let refused = [
        [0, STORE, at, 0],
        [3, STORE, at, 0],
        [16, 0, at, 0],
        [8, 2, at, 0],
        [8, STORE, gpa, 0],
        [8, STORE, SHARED - 4, 0],
    ];
    for operands in refused {
        expect_eq(&format!("{operands:x?}"), &ask(&g, MMIO, operands)?[0], &INVALID_OPERAND)?;
    }
    expect_no_exit_but(t, exits, refused.len() as u64)?;
    for (len, data) in [(1, 0x88), (2, 0x7788), (4, 0x5566_7788), (8, 0x1122_3344_5566_7788)] {
        let asking = g.vcpu(0).start(op(MMIO, [len.into(), STORE, at, 0x1122_3344_5566_7788]))?;
        asking.expect_exit(&Exit::Mmio { gpa: Gpa(gpa), len, write: Some(data) })?;
        expect_answer(asking, [DONE, MMIO])?;
        let asking = g.vcpu(0).start(op(MMIO, [len.into(), 0, at, 0]))?;
        asking.expect_exit(&Exit::Mmio { gpa: Gpa(gpa), len, write: None })?;
        g.vcpu(0).kvm().set_mmio_data(0x1122_3344_5566_7788)?;
        expect_answer(asking, [DONE, data])?;
    }
    Ok(())
}

fn cpuid(t: &Case) -> Outcome {
    /// KVM's signature.
    const HYPERVISOR: u32 = 0x4000_0000;
    let g = guest(t)?;
    let exits = t.trace().exits();
    let table = t.host().supported_cpuid()?;
    for leaf in [0, HYPERVISOR] {
        let entry = table.as_slice().iter().find(|entry| entry.function == leaf).copied().unwrap_or_default();
        let [r10, _, eax, ebx, ecx, edx, ..] = g.vcpu(0).call(op(CPUID, [leaf.into(), 0, 0, 0]))?;
        let expected = [entry.eax, entry.ebx, entry.ecx, entry.edx].map(u64::from);
        expect_eq(&format!("leaf {leaf:#x}"), &(r10, [eax, ebx, ecx, edx]), &(DONE, expected))?;
    }
    expect_no_exit_but(t, exits, 2)
}

fn msrs(t: &Case) -> Outcome {
    const MTRR_DEF_TYPE: u64 = 0x2ff;
    /// Write-back.
    const VALUE: u64 = 6;
    /// No MSR of anybody's.
    const NOTHING: u64 = 0x1234;
    let g = guest(t)?;
    expect_eq("WRMSR", &ask(&g, WRMSR, [MTRR_DEF_TYPE, VALUE, 0, 0])?[0], &DONE)?;
    expect_eq("RDMSR", &ask(&g, RDMSR, [MTRR_DEF_TYPE, 0, 0, 0])?, &[DONE, VALUE])?;
    expect_eq("RDMSR of nothing", &ask(&g, RDMSR, [NOTHING, 0, 0, 0])?[0], &INVALID_OPERAND)?;
    expect_eq("WRMSR to nothing", &ask(&g, WRMSR, [NOTHING, 0, 0, 0])?[0], &INVALID_OPERAND)
}

fn halt(t: &Case) -> Outcome {
    let g = guest(t)?;
    let v = g.vcpu(0);
    let asking = v.start(op(HLT, [0; 4]))?;
    let interrupted = || {
        thread::sleep(Duration::from_millis(1));
        v.kvm().kick()?;
        asking.expect_exit(&Exit::Interrupted)?;
        expect_ok("KVM_GET_MP_STATE", v.kvm().kvm()?.get_mp_state().map_err(|error| Errno::from_raw(error.errno())))
    };
    // It may be interrupted before it comes to its HLT.
    let mut state = interrupted()?;
    for _ in 0..100 {
        if state.mp_state == KVM_MP_STATE_HALTED {
            break;
        }
        asking.resume()?;
        state = interrupted()?;
    }
    expect_eq("the state of a vCPU that halts", &state.mp_state, &KVM_MP_STATE_HALTED)?;
    asking.resume()?;
    expect_eq("its state a moment later", &interrupted()?.mp_state, &KVM_MP_STATE_HALTED)?;
    v.kvm().set_runnable()?;
    expect_answer(asking, [DONE, HLT])
}
