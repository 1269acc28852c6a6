//! Advertised is not usable: a few instructions tell what a guest can really do.
//!
//! A payload is compiled code in ring 0, which uses SSE freely, and asks for conversions by a hypercall. Some
//! hosts emulate ring 0 and do not know such instructions, or never return from a hypercall. So two guests
//! of a few bytes try it out, under a time limit, in plain VMs.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_regs;
use privet_protocol::HypercallInstruction;

use crate::exit::{Direction, Exit};
use crate::host::Host;
use crate::long_mode;
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::Outcome;
use crate::trace::{LONGEST_INSTRUCTION, Trace, disassemble};
use crate::uapi::{HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use crate::units::{Gpa, PAGE_SIZE, PageCount};
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use crate::vm_type::VmType;

/// How long a few instructions may take: milliseconds even on an emulator, but a loaded machine may not
/// schedule it at once, and a verdict of "hangs" must not depend on the load.
const LIMIT: Duration = Duration::from_secs(2);
/// The port by which a probe guest says that it is through.
const DONE_PORT: u16 = 0x10;

/// The memory of a probe guest, from GPA 0 on: a page table of each level, its code and its stack.
const PML4: u64 = 0;
const PDPT: u64 = PAGE_SIZE;
const PD: u64 = 2 * PAGE_SIZE;
const CODE: u64 = 3 * PAGE_SIZE;
const STACK_TOP: u64 = 5 * PAGE_SIZE;

/// `xorps xmm0, xmm0; movaps [rsp-16], xmm0; sub rsp, 8; stmxcsr [rsp]; ldmxcsr [rsp]; mov al, 1; out 0x10, al`
const RING0: &[u8] = &[
    0x0F,
    0x57,
    0xC0,
    0x0F,
    0x29,
    0x44,
    0x24,
    0xF0,
    0x48,
    0x83,
    0xEC,
    0x08,
    0x0F,
    0xAE,
    0x1C,
    0x24,
    0x0F,
    0xAE,
    0x14,
    0x24,
    0xB0,
    0x01,
    0xE6,
    DONE_PORT as u8,
];
/// `vmcall; out 0x10, al`
const VMCALL: &[u8] = &[0x0F, 0x01, 0xC1, 0xE6, DONE_PORT as u8];
/// `vmmcall; out 0x10, al`
const VMMCALL: &[u8] = &[0x0F, 0x01, 0xD9, 0xE6, DONE_PORT as u8];

/// Whether compiled code runs in ring 0 of guests on `host`; tried out once.
///
/// # Errors
/// What happened instead.
pub fn ring0(host: &Host) -> Result<(), &str> {
    let found = host.found().ring0.get_or_init(|| try_out(host, RING0));
    found.as_ref().copied().map_err(String::as_str)
}

/// Whether the hypercall by which guests ask for conversions reaches user space and returns; tried out once.
///
/// # Errors
/// What happened instead.
pub fn hypercall(host: &Host) -> Result<(), &str> {
    let found = host.found().hypercall.get_or_init(|| {
        let code = match host.hypercall_instruction() {
            HypercallInstruction::Vmcall => VMCALL,
            HypercallInstruction::Vmmcall => VMMCALL,
        };
        try_out(host, code)
    });
    found.as_ref().copied().map_err(String::as_str)
}

/// Runs `code`, which may make a hypercall, until it says that it is through.
fn try_out(host: &Host, code: &[u8]) -> Result<(), String> {
    let attempt = || -> Outcome<Result<(), String>> {
        let trace = Arc::new(Trace::new(1));
        let vm = Vm::try_create_traced(host, VmType::Plain.kvm_type(), &trace)
            .map_err(|errno| host.refused(VmType::Plain, errno))?;
        let memory = guest_memory(code)?;
        vm.add_slot(SlotSpec::shared(0, Gpa(0), PageCount::of_bytes(memory.len()), &memory))?;
        let hypercall = code != RING0;
        if hypercall {
            vm.enable_map_gpa_range_exit()?;
        }
        let vcpu = vm.create_vcpu(0)?;
        enter_long_mode(host, &vcpu)?;
        let mut asked = false;
        loop {
            match vcpu.run(LIMIT)? {
                Exit::Hypercall { nr: HC_MAP_GPA_RANGE, .. } if hypercall => {
                    asked = true;
                    vcpu.set_hypercall_ret(0)?;
                }
                Exit::Io { port: DONE_PORT, direction: Direction::Out, .. } if asked == hypercall => return Ok(Ok(())),
                Exit::Io { port: DONE_PORT, .. } => return Ok(Err("it did not exit to user space".to_owned())),
                other => return Ok(Err(describe(&other, &vcpu, &memory)?)),
            }
        }
    };
    attempt().unwrap_or_else(|stop| Err(stop.to_string()))
}

/// An exit and the instruction at which it happened.
fn describe(exit: &Exit, vcpu: &Vcpu, memory: &Mapping) -> Outcome<String> {
    let rip = vcpu.kvm()?.get_regs().map(|regs| regs.rip).unwrap_or(u64::MAX);
    let mut bytes = [0; LONGEST_INSTRUCTION];
    let instruction = match memory.try_read(rip, &mut bytes) {
        Ok(()) => disassemble(rip, &bytes),
        Err(_) => None,
    };
    Ok(match instruction {
        Some(instruction) => format!("{exit} at `{instruction}`"),
        None => exit.to_string(),
    })
}

fn guest_memory(code: &[u8]) -> Outcome<Arc<Mapping>> {
    let memory = Mapping::anonymous(STACK_TOP)?;
    let (present_writable, large) = (0b11, 1 << 7);
    memory.write_u64(PML4, PDPT | present_writable)?;
    memory.write_u64(PDPT, PD | present_writable)?;
    memory.write_u64(PD, present_writable | large)?;
    memory.write(CODE, code)?;
    Ok(Arc::new(memory))
}

/// Sets the registers to 64-bit ring 0 with paging and SSE, at the start of the code.
fn enter_long_mode(host: &Host, vcpu: &Vcpu) -> Outcome {
    // The arguments of KVM_HC_MAP_GPA_RANGE, for the code that makes it.
    let (rax, rbx, rcx, rdx) = (HC_MAP_GPA_RANGE, 0, 1, MAP_GPA_RANGE_ENCRYPTED);
    let regs = kvm_regs { rax, rbx, rcx, rdx, rsp: STACK_TOP, ..long_mode::registers(CODE, 0, 0) };
    long_mode::enter(vcpu, host.supported_cpuid()?, Gpa(PML4), &regs)
}
