//! TDs that run: from the reset vector to the first answer.

use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_protocol::Op;

use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

/// Leaves of TDCALL (TDX module ABI).
const VP_INFO: u64 = 1;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.boot.vcpus",
            Types::TDX,
            "Each vCPU of a TD begins at the reset vector with its number, reaches 64-bit mode by itself, and answers; \
             TDG.VP.INFO tells it its number, how many there are, and where the shared bit is.",
            vcpus,
        )
        .basis(&["TDX module ABI: TDG.VP.INFO, TDH.VP.INIT", "arch/x86/kvm/vmx/tdx.c: tdx_td_vcpu_init"])
        .exceeds("x86/tdx_vm_test: verify_td_lifecycle, verify_tdcall_vp_info"),
    ]
}

fn vcpus(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).boot()?;
    for index in 0..2 {
        let [status, rcx, _, r8, r9, ..] = g.vcpu(index).call(Op::Tdcall { leaf: VP_INFO, registers: [0; 4] })?;
        expect_eq("status, width, vCPUs, number", &(status, rcx & 0x3f, r8 as u32, r9), &(0, 48, 2, index as u64))?;
    }
    Ok(())
}
