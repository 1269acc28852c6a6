//! The controls of a VMCS (SDM volume 3, 25.6 to 25.8): their bits, and what VM entry has read of them.

use serde::{Deserialize, Serialize};

use super::field;
use super::vmcs::Vmcs;

macro_rules! bits {
    ($(#[$doc:meta])* $module:ident { $($name:ident = $bit:literal,)* }) => {
        $(#[$doc])*
        pub(crate) mod $module {
            $(pub(crate) const $name: u32 = 1 << $bit;)*
        }
    };
}

bits! {
    /// Pin-based VM-execution controls (25.6.1).
    pin { EXTERNAL_INTERRUPT = 0, NMI = 3, VIRTUAL_NMI = 5, PREEMPTION_TIMER = 6, POSTED_INTERRUPTS = 7, }
}
bits! {
    /// Primary processor-based VM-execution controls (25.6.2).
    proc {
        INTERRUPT_WINDOW = 2, TSC_OFFSET = 3, HLT = 7, INVLPG = 9, MWAIT = 10, RDPMC = 11, RDTSC = 12, CR3_LOAD = 15,
        CR3_STORE = 16, CR8_LOAD = 19, CR8_STORE = 20, TPR_SHADOW = 21, NMI_WINDOW = 22, MOV_DR = 23,
        UNCONDITIONAL_IO = 24, IO_BITMAPS = 25, MSR_BITMAPS = 28, MONITOR = 29, PAUSE = 30, SECONDARY = 31,
    }
}
bits! {
    /// Secondary processor-based VM-execution controls (25.6.2).
    proc2 {
        APIC_ACCESSES = 0, EPT = 1, RDTSCP = 3, X2APIC = 4, VPID = 5, WBINVD = 6, UNRESTRICTED = 7, APIC_REGISTERS = 8,
        VIRTUAL_INTERRUPTS = 9, INVPCID = 12, PML = 17, XSAVES = 20, TSC_SCALING = 25,
    }
}
bits! {
    /// VM-exit controls (25.7.1).
    exit {
        SAVE_DEBUG = 2, HOST_64 = 9, ACKNOWLEDGE = 15, SAVE_PAT = 18, LOAD_PAT = 19, SAVE_EFER = 20, LOAD_EFER = 21,
        SAVE_TIMER = 22,
    }
}
bits! {
    /// VM-entry controls (25.8.1).
    entry { LOAD_DEBUG = 2, IA32E = 9, LOAD_PAT = 14, LOAD_EFER = 15, }
}

/// The words of controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Controls {
    pub(crate) pin: u32,
    pub(crate) proc: u32,
    /// 0 unless they are activated.
    pub(crate) proc2: u32,
    pub(crate) exit: u32,
    pub(crate) entry: u32,
}

impl Controls {
    pub(crate) fn of(vmcs: &Vmcs) -> Controls {
        let proc = vmcs.get32(field::PROC);
        Controls {
            pin: vmcs.get32(field::PIN),
            proc,
            proc2: if proc & proc::SECONDARY != 0 { vmcs.get32(field::PROC2) } else { 0 },
            exit: vmcs.get32(field::EXIT),
            entry: vmcs.get32(field::ENTRY),
        }
    }

    pub(crate) fn pin(&self, bit: u32) -> bool {
        self.pin & bit != 0
    }

    pub(crate) fn proc(&self, bit: u32) -> bool {
        self.proc & bit != 0
    }

    pub(crate) fn proc2(&self, bit: u32) -> bool {
        self.proc2 & bit != 0
    }

    pub(crate) fn exit(&self, bit: u32) -> bool {
        self.exit & bit != 0
    }

    pub(crate) fn entry(&self, bit: u32) -> bool {
        self.entry & bit != 0
    }
}
