//! The control area of a VMCB as VMRUN reads it (APM volume 2, table B-1).

use serde::{Deserialize, Serialize};

use super::intercepts::Intercepts;
use super::vmcb::{Area, int_ctl, misc};
use crate::memory::PhysicalMemory;

/// What a VMCB asks for, as VMRUN found it. The processor keeps it until #VMEXIT: changes of the page in between
/// have no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) intercepts: Intercepts,
    pub(crate) pause_threshold: u16,
    pub(crate) pause_count: u16,
    /// Physical address of the I/O permission map, 12 KiB.
    pub(crate) iopm: u64,
    /// Physical address of the MSR permission map, 8 KiB.
    pub(crate) msrpm: u64,
    pub(crate) tsc_offset: u64,
    pub(crate) asid: u32,
    pub(crate) tlb_control: u8,
    /// See [`int_ctl`].
    pub(crate) interrupt: u32,
    pub(crate) interrupt_vector: u8,
    pub(crate) interrupt_shadow: bool,
    /// See [`misc`].
    pub(crate) misc: u64,
    pub(crate) event_injection: u32,
    pub(crate) event_error: u32,
    /// MSR GHCB of the guest.
    pub(crate) ghcb: u64,
    pub(crate) nested_cr3: u64,
    /// See [`super::vmcb::misc2`].
    pub(crate) misc2: u64,
    pub(crate) next_rip: u64,
    /// Physical address of the VMSA, of a guest whose registers are encrypted.
    pub(crate) vmsa: u64,
}

impl Control {
    /// Reads the control area of the VMCB at `vmcb`.
    ///
    /// The clean bits are not looked at: they allow a processor to keep what it has, they never oblige it to, and
    /// what a hypervisor forgot to mark would be a bug that only some processors show.
    pub(crate) fn read(memory: &mut (impl PhysicalMemory + ?Sized), vmcb: u64) -> Control {
        let area = Area::<0x110>::read(memory, vmcb);
        Control {
            intercepts: Intercepts::new([0, 1, 2, 3, 4, 5].map(|word| area.u32(word * 4))),
            pause_threshold: area.u16(0x3c),
            pause_count: area.u16(0x3e),
            iopm: area.u64(0x40),
            msrpm: area.u64(0x48),
            tsc_offset: area.u64(0x50),
            asid: area.u32(0x58),
            tlb_control: area.u8(0x5c),
            interrupt: area.u32(0x60),
            interrupt_vector: area.u8(0x64),
            interrupt_shadow: area.u64(0x68) & 1 != 0,
            misc: area.u64(0x90),
            event_injection: area.u32(0xa8),
            event_error: area.u32(0xac),
            ghcb: area.u64(0xa0),
            nested_cr3: area.u64(0xb0),
            misc2: area.u64(0xb8),
            next_rip: area.u64(0xc8),
            vmsa: area.u64(0x108),
        }
    }

    /// NP_ENABLE: guest-physical addresses go through nested page tables.
    pub(crate) fn nested_paging(&self) -> bool {
        self.misc & misc::NESTED_PAGING != 0
    }

    /// V_INTR_MASKING: RFLAGS.IF and CR8 of the guest are about virtual interrupts only.
    pub(crate) fn interrupt_masking(&self) -> bool {
        self.interrupt & int_ctl::V_INTR_MASKING != 0
    }
}
