//! What #VMEXIT tells a hypervisor (APM volume 2, 15.6, 15.7 and appendix C).

use privet_cpu::vector;

use super::intercepts::Code;

/// VMEXIT_INVALID: the consistency checks of VMRUN failed.
pub(crate) const INVALID: u64 = u64::MAX;
/// VMEXIT_BUSY: the VMSA runs already.
pub(crate) const BUSY: u64 = u64::MAX - 1;
/// VMEXIT_NPF.
pub(crate) const NPF: u64 = 0x400;
/// VMEXIT_VMGEXIT.
pub(crate) const VMGEXIT: u64 = 0x403;

/// Bit of a page fault's error code: the access was an instruction fetch.
const PF_FETCH: u64 = 1 << 4;

/// An exit code and what goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: u64,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    /// Address of the next instruction, 0 where the exit is none of an instruction.
    pub(crate) next_rip: u64,
    /// With the bytes at RIP, if the processor has decode assists: faults on data.
    pub(crate) with_bytes: bool,
}

impl Exit {
    /// An exit for something that no instruction asked for.
    pub(crate) fn asynchronous(code: Code) -> Exit {
        Exit { code: code.number(), info1: 0, info2: 0, next_rip: 0, with_bytes: false }
    }

    /// An exit in place of an instruction.
    pub(crate) fn instruction(code: Code, info1: u64, info2: u64, next_rip: u64) -> Exit {
        Exit { code: code.number(), info1, info2, next_rip, with_bytes: false }
    }

    /// An exit for a nested page fault. The manual (15.7.1) promises NEXT_RIP for intercepted instructions only, but
    /// processors tell it of a data access, too: KVM relies on that for its fast MMIO bus ("in practice the next RIP
    /// will be available", commit 01cde4eaaeca), and skips the store.
    pub(crate) fn nested_page_fault(error: u64, gpa: u64, next_rip: u64) -> Exit {
        Exit { code: NPF, info1: error, info2: gpa, next_rip, with_bytes: error & PF_FETCH == 0 }
    }

    /// An exit for a page fault: CR2 does not change, the address is told in its place (15.12.15).
    pub(crate) fn page_fault(error: u64, linear: u64) -> Exit {
        let code = Code::exception(vector::PF).number();
        Exit { code, info1: error, info2: linear, next_rip: 0, with_bytes: error & PF_FETCH == 0 }
    }
}
