//! The layout of a VMCB (APM volume 2, appendix B): a page with a control area and a state save area.

use crate::memory::{PhysicalMemory, read_array};

/// Where the state save area begins in a VMCB, and in a host save area, which has the same form here.
pub(crate) const SAVE: u64 = 0x400;

/// Offsets in the control area that are written, or read one by one.
pub(crate) mod at {
    pub(crate) const INTERRUPT_CONTROL: u64 = 0x60;
    pub(crate) const INTERRUPT_STATE: u64 = 0x68;
    pub(crate) const EXIT_CODE: u64 = 0x70;
    pub(crate) const EVENT_INJECTION: u64 = 0xa8;
    pub(crate) const NEXT_RIP: u64 = 0xc8;
    pub(crate) const GHCB: u64 = 0xa0;
    pub(crate) const INSTRUCTION_LENGTH: u64 = 0xd0;
}

/// Bits of the interrupt control word at offset 0x60.
pub(crate) mod int_ctl {
    pub(crate) const V_TPR: u32 = 0xf;
    pub(crate) const V_IRQ: u32 = 1 << 8;
    pub(crate) const V_INTR_PRIO_SHIFT: u32 = 16;
    pub(crate) const V_IGN_TPR: u32 = 1 << 20;
    pub(crate) const V_INTR_MASKING: u32 = 1 << 24;
    pub(crate) const V_GIF_ENABLE: u32 = 1 << 25;
    pub(crate) const V_NMI_ENABLE: u32 = 1 << 26;
    pub(crate) const X2AVIC: u32 = 1 << 30;
    pub(crate) const AVIC: u32 = 1 << 31;
}

/// Bits of the word at offset 0x90.
pub(crate) mod misc {
    pub(crate) const NESTED_PAGING: u64 = 1 << 0;
    pub(crate) const SEV: u64 = 1 << 1;
    pub(crate) const SEV_ES: u64 = 1 << 2;
    pub(crate) const GMET: u64 = 1 << 3;
}

/// Bits of the word at offset 0xB8.
pub(crate) mod misc2 {
    pub(crate) const LBR: u64 = 1 << 0;
    pub(crate) const VIRTUAL_VMLOAD: u64 = 1 << 1;
}

/// Little-endian fields of a piece of a VMCB.
pub(crate) struct Area<const N: usize>([u8; N]);

impl<const N: usize> Area<N> {
    pub(crate) fn read(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> Area<N> {
        Area(read_array(memory, pa))
    }

    fn bytes<const LEN: usize>(&self, at: usize) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&self.0[at..at + LEN]);
        bytes
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u128(&self, at: usize) -> u128 {
        u128::from_le_bytes(self.bytes(at))
    }
}
