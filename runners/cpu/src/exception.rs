//! Exceptions: what a guest instruction raises, or what a [`crate::Bus`] reflects into the guest.

use serde::{Deserialize, Serialize};

/// Vectors of the architecture's exceptions (SDM volume 3, table 7-1; APM volume 2, table 8-1).
pub mod vector {
    /// #DE, divide error.
    pub const DE: u8 = 0;
    /// #DB, debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// #BP, breakpoint (INT3).
    pub const BP: u8 = 3;
    /// #OF, overflow (INTO).
    pub const OF: u8 = 4;
    /// #BR, BOUND range exceeded.
    pub const BR: u8 = 5;
    /// #UD, invalid opcode.
    pub const UD: u8 = 6;
    /// #NM, device not available.
    pub const NM: u8 = 7;
    /// #DF, double fault.
    pub const DF: u8 = 8;
    /// #TS, invalid TSS.
    pub const TS: u8 = 10;
    /// #NP, segment not present.
    pub const NP: u8 = 11;
    /// #SS, stack fault.
    pub const SS: u8 = 12;
    /// #GP, general protection.
    pub const GP: u8 = 13;
    /// #PF, page fault.
    pub const PF: u8 = 14;
    /// #MF, x87 floating-point error.
    pub const MF: u8 = 16;
    /// #AC, alignment check.
    pub const AC: u8 = 17;
    /// #XM, SIMD floating-point error.
    pub const XM: u8 = 19;
    /// #VE, virtualization exception (TDX).
    pub const VE: u8 = 20;
    /// #CP, control protection.
    pub const CP: u8 = 21;
    /// #VC, VMM communication (SEV-ES, SEV-SNP).
    pub const VC: u8 = 29;
}

/// An exception on its way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// What delivery stores beside the frame: CR2 for #PF, the new DR6 bits for #DB, else 0.
    pub payload: u64,
}

impl Exception {
    /// An exception that pushes no error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Exception {
        Exception { vector, error_code: None, payload: 0 }
    }

    /// An exception that pushes `error_code`.
    #[must_use]
    pub const fn with_code(vector: u8, error_code: u32) -> Exception {
        Exception { vector, error_code: Some(error_code), payload: 0 }
    }

    /// #UD.
    #[must_use]
    pub const fn ud() -> Exception {
        Exception::plain(vector::UD)
    }

    /// #GP with an error code: 0, or a selector with its two low bits as the EXT and IDT flags.
    #[must_use]
    pub const fn gp(error_code: u32) -> Exception {
        Exception::with_code(vector::GP, error_code)
    }

    /// #SS with an error code.
    #[must_use]
    pub const fn ss(error_code: u32) -> Exception {
        Exception::with_code(vector::SS, error_code)
    }

    /// #PF at the linear address `cr2`.
    #[must_use]
    pub const fn pf(cr2: u64, error_code: u32) -> Exception {
        Exception { vector: vector::PF, error_code: Some(error_code), payload: cr2 }
    }

    /// #DB that sets these bits of DR6.
    #[must_use]
    pub const fn db(dr6: u64) -> Exception {
        Exception { vector: vector::DB, error_code: None, payload: dr6 }
    }

    /// #VC with the intercept's exit code as error code (`SVM_EXIT_*`, e.g. 0x400 for an NPF).
    #[must_use]
    pub const fn vc(exit_code: u32) -> Exception {
        Exception::with_code(vector::VC, exit_code)
    }

    /// #VE; its reason is for the guest to ask for (TDG.VP.VEINFO.GET), so the bus keeps it.
    #[must_use]
    pub const fn ve() -> Exception {
        Exception::plain(vector::VE)
    }

    /// Whether a second exception while delivering this one makes a double fault (SDM table 7-4).
    pub(crate) fn is_contributory(self) -> bool {
        matches!(self.vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP | vector::VC)
    }

    /// Whether the exception is of the page-fault class of SDM table 7-4 (#PF, #VE).
    pub(crate) fn is_page_fault_class(self) -> bool {
        matches!(self.vector, vector::PF | vector::VE)
    }

    /// Whether the exception is reported after the instruction (a trap), so that RF is not set.
    pub(crate) fn is_trap(self) -> bool {
        matches!(self.vector, vector::DB | vector::BP | vector::OF)
    }
}
