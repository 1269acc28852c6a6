//! Group `hypercalls`: each vendor has an instruction for them, and KVM's quirk that rewrites guests which use
//! the other vendor's; and what else an exit for one depends on.

mod modes;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::conversion::HYPERCALL_LONG_MODE;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::uapi::{Capability, HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED, QUIRK_FIX_HYPERCALL_INSN};
use privet_protocol::{HypercallInstruction, Op, PAYLOAD_BASE};

use crate::expect::{expect_eq, expect_no_exit_but, expect_ok, expect_that};
use crate::row::Row;
use crate::types::Types;

const QUIRK: &str = "Documentation/virt/kvm/api.rst 7.32: KVM_X86_QUIRK_FIX_HYPERCALL_INSN";
const PATCH: &str = "arch/x86/kvm/x86.c: emulator_fix_hypercall; vmx/vmx.c: vmx_patch_hypercall; svm/svm.c: \
                     svm_patch_hypercall";
const UPSTREAM: &str = "tools/testing/selftests/kvm/x86/fix_hypercall_test.c";

/// The vector of an undefined instruction.
const UD: u64 = 6;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "hypercalls.own",
            Types::ALL,
            "The instruction of the CPU's own vendor reaches userspace and returns, and the guest's code stays as \
             it was, with the quirk and without.",
            own_instruction,
        )
        .basis(&[QUIRK]),
        Row::new(
            "hypercalls.of_the_other_vendor",
            Types::UNENCRYPTED,
            "With the quirk, as it is by default, KVM writes the CPU's own instruction over the other vendor's: \
             the hypercall arrives like any other, and these three bytes of the guest's code have changed, once.",
            other_instruction_is_patched,
        )
        .basis(&[QUIRK, PATCH, UPSTREAM]),
        Row::new(
            "hypercalls.of_the_other_vendor.quirk_off",
            Types::UNENCRYPTED,
            "Without the quirk the other vendor's instruction is undefined: the guest gets #UD there, nothing \
             reaches userspace, and not a byte of the guest's code changes.",
            other_instruction_is_undefined,
        )
        .basis(&[QUIRK, PATCH, UPSTREAM]),
        Row::new(
            "hypercalls.of_the_other_vendor.encrypted",
            Types::SEV_FAMILY,
            "KVM cannot write into encrypted code: the other vendor's instruction is #UD for the guest, with the quirk as \
             without, and nothing reaches userspace.",
            other_instruction_of_an_encrypted_guest,
        )
        .basis(&[QUIRK, PATCH]),
    ];
    let quirk = Need::Capability(Capability::DISABLE_QUIRKS2, QUIRK_FIX_HYPERCALL_INSN as i32);
    let rows = rows.into_iter().map(|row| row.needs(quirk.clone()));
    let exits = Need::Capability(Capability::EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE);
    let needs = |row: Row| row.needs(Need::GuestCode).needs(Need::Hypercall).needs(exits.clone());
    rows.chain(modes::rows()).map(needs).collect()
}

fn own_instruction(t: &Case) -> Outcome {
    let g = t.guest().hypercall(t.host().hypercall_instruction()).boot()?;
    let before = code(t, &g)?;
    hypercall_arrives(&g, 0)?;
    quirk_off(&g)?;
    hypercall_arrives(&g, Errno::EINVAL as u64)?;
    expect_unchanged(t, &g, &before)
}

fn other_instruction_is_patched(t: &Case) -> Outcome {
    let (own, other) = instructions(t);
    let g = t.guest().hypercall(other).boot()?;
    let before = code(t, &g)?;
    hypercall_arrives(&g, 0)?;
    let after = code(t, &g)?;
    // The two differ in their last byte only.
    let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    let [last] = changed[..] else {
        return Err(Stop::Fail(format!("KVM changed {} bytes of the guest's code, expected 1", changed.len())));
    };
    let place = last.saturating_sub(2)..=last;
    expect_eq("the instruction before", &before[place.clone()].to_vec(), &opcode(other).to_vec())?;
    expect_eq("the instruction after", &after[place].to_vec(), &opcode(own).to_vec())?;
    // It is the CPU's own now, and needs no quirk any more.
    quirk_off(&g)?;
    hypercall_arrives(&g, Errno::EINVAL as u64)?;
    expect_unchanged(t, &g, &after)
}

fn other_instruction_is_undefined(t: &Case) -> Outcome {
    let (_, other) = instructions(t);
    let g = t.guest().hypercall(other).boot()?;
    let before = code(t, &g)?;
    quirk_off(&g)?;
    for _ in 0..2 {
        let exits = t.trace().exits();
        let fault = match g.vcpu(0).attempt(call())? {
            Err(fault) => fault,
            Ok(values) => return Err(Stop::Fail(format!("the hypercall returned {:#x}, expected #UD", values[0]))),
        };
        expect_no_exit_but(t, exits, 1)?;
        expect_eq("vector and error code", &(fault.vector, fault.error_code), &(UD, 0))?;
        let at = code_offset(t, fault.rip)?;
        expect_eq("the instruction at the fault", &before[at..at + 3].to_vec(), &opcode(other).to_vec())?;
    }
    expect_unchanged(t, &g, &before)
}

fn other_instruction_of_an_encrypted_guest(t: &Case) -> Outcome {
    let (_, other) = instructions(t);
    let g = t.guest().hypercall(other).boot()?;
    let undefined = || {
        let exits = t.trace().exits();
        let fault = match g.vcpu(0).attempt(call())? {
            Err(fault) => fault,
            Ok(values) => return Err(Stop::Fail(format!("the hypercall returned {:#x}, expected #UD", values[0]))),
        };
        expect_no_exit_but(t, exits, 1)?;
        expect_eq("vector and error code", &(fault.vector, fault.error_code), &(UD, 0))
    };
    undefined()?;
    quirk_off(&g)?;
    undefined()
}

/// The instruction of the CPU's vendor, and the other one.
fn instructions(t: &Case) -> (HypercallInstruction, HypercallInstruction) {
    match t.host().hypercall_instruction() {
        HypercallInstruction::Vmcall => (HypercallInstruction::Vmcall, HypercallInstruction::Vmmcall),
        HypercallInstruction::Vmmcall => (HypercallInstruction::Vmmcall, HypercallInstruction::Vmcall),
    }
}

fn opcode(instruction: HypercallInstruction) -> [u8; 3] {
    match instruction {
        HypercallInstruction::Vmcall => [0x0f, 0x01, 0xc1],
        HypercallInstruction::Vmmcall => [0x0f, 0x01, 0xd9],
    }
}

fn quirk_off(g: &Guest) -> Outcome {
    let off = g.vm().enable_cap(Capability::DISABLE_QUIRKS2, [QUIRK_FIX_HYPERCALL_INSN, 0, 0, 0]);
    expect_ok("KVM_ENABLE_CAP(DISABLE_QUIRKS2, FIX_HYPERCALL_INSN)", off)
}

/// A hypercall that leads to userspace, about a page that nobody uses.
fn call() -> Op {
    Op::MapGpaRange { gpa: 0, pages: 1, attributes: MAP_GPA_RANGE_ENCRYPTED }
}

/// The guest makes the hypercall: one exit, and then `ret` in RAX.
fn hypercall_arrives(g: &Guest, ret: u64) -> Outcome {
    let running = g.vcpu(0).start(call())?;
    running.expect_exit(&Exit::Hypercall {
        nr: HC_MAP_GPA_RANGE,
        args: [0, 1, MAP_GPA_RANGE_ENCRYPTED],
        flags: HYPERCALL_LONG_MODE,
    })?;
    g.vcpu(0).kvm().set_hypercall_ret(ret)?;
    running.resume()?;
    expect_eq("RAX after the hypercall", &running.done()?[0], &ret)
}

/// The payload's code as it is in the guest's memory now.
fn code(t: &Case, g: &Guest) -> Outcome<Vec<u8>> {
    let mut code = Vec::new();
    for segment in t.payload()?.segments.iter().filter(|segment| segment.executable) {
        let mut bytes = vec![0; segment.bytes.len()];
        g.own_memory().read(segment.gpa - PAYLOAD_BASE, &mut bytes)?;
        code.extend(bytes);
    }
    Ok(code)
}

/// Where an address of the guest lies in [`code`].
fn code_offset(t: &Case, rip: u64) -> Outcome<usize> {
    let mut start = 0;
    for segment in t.payload()?.segments.iter().filter(|segment| segment.executable) {
        match rip.checked_sub(segment.gpa).map(|offset| offset as usize) {
            Some(offset) if offset + 3 <= segment.bytes.len() => return Ok(start + offset),
            _ => start += segment.bytes.len(),
        }
    }
    Err(Stop::Fail(format!("the fault at rip {rip:#x} is not in the payload's code")))
}

fn expect_unchanged(t: &Case, g: &Guest, before: &[u8]) -> Outcome {
    expect_that(code(t, g)? == before, || "KVM changed the guest's code".to_owned())
}
