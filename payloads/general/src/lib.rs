//! Executes every operation of the protocol.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod hammer;
mod memory;

use privet_protocol::{Conversion, Op, Refusal, Reply, Start};
use privet_runtime::paging::{self, Refused};
use privet_runtime::probe::{self, Probed};
use privet_runtime::{Vcpu, convert, cpu, ghcb, guest_assert_eq, hypercall, port, snp, tdx};

/// Executes one operation on one vCPU.
pub fn execute(vcpu: &'static Vcpu, start: Start, op: Op) -> Reply {
    let mailbox = vcpu.mailbox();
    match op {
        Op::Nop => Reply::done([]),
        Op::Read { gva, width } => value(probe::read(gva, width)),
        Op::Write { gva, width, value } => nothing(probe::write(gva, width, value)),
        Op::ReadBytes { gva, len } => nothing(memory::read_bytes(mailbox, gva, len)),
        Op::WriteBytes { gva, len } => nothing(memory::write_bytes(mailbox, gva, len)),
        Op::Fill { gva, pages, pattern, first } => memory::fill(gva, pages, pattern, first),
        Op::Check { gva, pages, pattern, first } => memory::check(gva, pages, pattern, first),
        Op::CompareExchange { gva, expected, new } => value(probe::compare_exchange(gva, expected, new)),
        Op::Execute { gva, argument } => value(probe::execute(gva, argument)),
        Op::MapGpaRange { gpa, pages, attributes } => {
            value(hypercall::map_gpa_range(start.hypercall, gpa, pages, attributes))
        }
        Op::Hypercall { registers } => value(hypercall::call(start.hypercall, registers)),
        Op::Convert { request } => convert::convert(start, request),
        Op::SetPresent { gva, pages, present } => entries(convert::set_present(start.aliases, gva, pages, present)),
        Op::ReadEntry { gva } => entries(convert::read_entry(start.aliases, gva)),
        Op::WriteEntry { gva, entry } => entries(convert::write_entry(start.aliases, gva, entry)),
        Op::Cpuid { leaf, subleaf } => Reply::done(cpu::cpuid(leaf, subleaf).map(u64::from)),
        Op::ReadMsr { msr } => value(probe::read_msr(msr)),
        Op::WriteMsr { msr, value } => nothing(probe::write_msr(msr, value)),
        Op::LoadZeropad { gva } => memory::load_zeropad(gva),
        Op::HammerZeropad { gva, limit, allowed } => hammer::zeropad_until_stopped(vcpu, gva, limit, allowed),
        Op::HammerAdd { gva, pages, limit } => hammer::add_until_stopped(vcpu, gva, pages, limit),
        // It leaves more registers to the host than this operation has.
        Op::Tdcall { leaf: tdx::VP_VMCALL, .. } => Reply::Refused(Refusal::BadRequest, tdx::VP_VMCALL),
        Op::Tdcall { leaf, registers } => {
            let tdx::Answer { status, values: [rcx, rdx, r8, r9, r10, r11] } = tdx::tdcall(leaf, registers);
            Reply::done([status, rcx, rdx, r8, r9, r10, r11])
        }
        Op::Tdvmcall { registers } => Reply::done(tdx::vmcall(registers)),
        Op::Validate { gva, pages, .. } if start.conversion == Conversion::MapGpa => {
            match paging::translate(start.aliases, gva) {
                Some(found) => {
                    let snp::Validated { code, done, unchanged } = tdx::accept(found.gpa, pages);
                    Reply::done([code, done, unchanged])
                }
                None => Reply::Refused(Refusal::NotMapped, gva),
            }
        }
        Op::Validate { gva, pages, validated } => match snp::validate(gva, pages, validated) {
            Ok(snp::Validated { code, done, unchanged }) => Reply::done([code, done, unchanged]),
            Err(fault) => Reply::Fault(fault),
        },
        Op::ValidateLarge { gva, validated } => match snp::pvalidate(gva, snp::LARGE, validated) {
            Ok((code, unchanged)) => Reply::done([code, unchanged.into()]),
            Err(fault) => Reply::Fault(fault),
        },
        Op::AdjustRmp { gva, attributes } => value(snp::adjust_rmp(gva, attributes)),
        Op::VmgexitMsr { msr } => Reply::done([ghcb::vmgexit(msr)]),
        Op::VmgexitPage { msr, page } => {
            vcpu.ghcb().map_or(Reply::Refused(Refusal::NotMapped, 0), |ghcb| ghcb.exchange(msr, page))
        }
        Op::Reflected => Reply::done([vcpu.reflected()]),
        Op::PortRead { port, width } => value(port::read(port as u16, width)),
        Op::PortWrite { port, width, value } => nothing(port::write(port as u16, width, value)),
        Op::PortReadBytes { port, gva, count } => value(port::read_bytes(port as u16, gva, count)),
        Op::PortWriteBytes { port, gva, count } => value(port::write_bytes(port as u16, gva, count)),
        Op::Panic { argument } => panic!("{}{argument}", Op::PANIC_ARGUMENT_PREFIX),
        Op::AssertEqual { left, right } => {
            guest_assert_eq!(left, right);
            Reply::done([])
        }
        Op::Crash => cpu::undefined_instruction(),
    }
}

fn value(probed: Probed<u64>) -> Reply {
    probed.map_or_else(Reply::Fault, |value| Reply::done([value]))
}

fn entries<const N: usize>(values: Result<[u64; N], Refused>) -> Reply {
    values.map_or_else(|(refusal, word)| Reply::Refused(refusal, word), Reply::done)
}

fn nothing(probed: Probed) -> Reply {
    probed.map_or_else(Reply::Fault, |()| Reply::done([]))
}
