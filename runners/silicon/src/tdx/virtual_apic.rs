//! The virtual APIC of a TD's vCPU: always in x2APIC mode, in a page of the vCPU's own, and told of interrupts by posting
//! (TDX module base architecture, "Interrupt Handling and APIC Virtualization").

use privet_cpu::state::{Shadow, gpr};
use privet_cpu::{CpuState, Exception, Intercepted};

use super::Tdx;
use crate::Rule;
use crate::board::Board;
use crate::encryption::{Key, KeyedMemory};
use crate::interface::{Taken, interruptible};
use crate::memory::PhysicalMemory;
use crate::virtual_apic::{VirtualApic, VirtualInterrupts};

/// Which of the pages that TDH.VP.ADDCX adds has the registers.
pub(super) const VIRTUAL_APIC: usize = 1;
const PAGE: u64 = 4096;

/// One whose registers are in this page: nothing is requested, and no EOI exits.
pub(super) fn of_page(page: u64) -> VirtualApic {
    VirtualApic {
        page: Some(page),
        access_page: None,
        x2apic: true,
        registers: true,
        threshold: 0,
        interrupts: Some(VirtualInterrupts::new(0, [0; 4])),
        posted: None,
        trap: None,
    }
}

/// Memory as the virtual APIC of a vCPU reaches it: its page is the TD's, the posted-interrupt descriptor the host's.
struct ApicMemory<'a> {
    memory: &'a mut dyn KeyedMemory,
    page: u64,
    key: Key,
}

impl ApicMemory<'_> {
    fn key_of(&self, pa: u64) -> Key {
        if (self.page..self.page + PAGE).contains(&pa) { self.key } else { Key::PLAIN }
    }
}

impl PhysicalMemory for ApicMemory<'_> {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        self.memory.read_as(self.key_of(pa), pa, bytes);
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        self.memory.write_as(self.key_of(pa), pa, bytes);
    }
}

/// MSRs of x2APIC mode that never leave the TD, of which those that are not virtualized raise #GP.
pub(super) fn has_msr(index: u32) -> bool {
    matches!(index, 0x808..=0x80C | 0x80E | 0x810..=0x827 | 0x83F)
}

/// Those of them that can be read: the priorities of task and processor, and what is in service, edge or level, and requested.
fn is_readable(index: u32) -> bool {
    matches!(index, 0x808 | 0x80A | 0x810..=0x827)
}

impl Tdx {
    /// Lets a vCPU's virtual APIC do something in its memory.
    fn with_apic<T>(
        &mut self,
        memory: &mut dyn KeyedMemory,
        tdvpr: u64,
        act: impl FnOnce(&mut VirtualApic, &mut dyn PhysicalMemory) -> T,
    ) -> Option<T> {
        let vcpu = self.vcpus.get_mut(&tdvpr)?;
        let key = self.tds.get(&vcpu.td)?.key;
        let apic = &mut vcpu.state.as_deref_mut()?.apic;
        let page = apic.page?;
        Some(act(apic, &mut ApicMemory { memory, page, key }))
    }

    /// The vCPU is entered: the host may have named another descriptor or vector.
    pub(super) fn enter_apic(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64) {
        let host = self.host_controls(tdvpr);
        let posted = host.process_posted.then_some((host.notification_vector as u8, host.posted_interrupts));
        self.with_apic(memory, tdvpr, |apic, memory| {
            apic.posted = posted;
            apic.enter(memory);
        });
    }

    /// Whether an interrupt waits for the vCPU whose priority lets it through.
    pub(super) fn has_interrupt(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64) -> bool {
        self.with_apic(memory, tdvpr, |apic, memory| apic.recognized(memory).is_some()).unwrap_or_default()
    }

    /// An interrupt of the processor's: whether it was the notification of posted ones, which the vCPU has now.
    pub(super) fn take_notification(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64, vector: u8) -> bool {
        if !self.holds(Rule::PostedToTd) {
            return false;
        }
        let taken = self.with_apic(memory, tdvpr, |apic, memory| {
            let is_notification = apic.posted.is_some_and(|(notification, _)| notification == vector);
            if is_notification {
                apic.take_posted(memory);
            }
            is_notification
        });
        taken.unwrap_or_default()
    }

    /// What the vCPU takes between two instructions: an NMI that the host has injected, once the #VE before it is told, or
    /// an interrupt of its virtual APIC.
    pub(super) fn take_virtual(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64, state: &CpuState) -> Taken {
        if let Ok((vcpu, _)) = self.running_vcpu(tdvpr)
            && vcpu.host.pending_nmi
            && vcpu.ve.is_none()
            && !state.nmi_blocked
            && state.shadow == Shadow::None
        {
            vcpu.host.pending_nmi = false;
            return Taken::Nmi;
        }
        if !interruptible(state) {
            return Taken::Nothing;
        }
        let taken = self.with_apic(memory, tdvpr, |apic, memory| {
            let vector = apic.recognized(memory)?;
            apic.take(memory);
            Some(vector)
        });
        taken.flatten().map_or(Taken::Nothing, Taken::Virtual)
    }

    /// CR8, which is the task priority.
    pub(super) fn task_priority(&mut self, memory: &mut dyn KeyedMemory, tdvpr: u64) -> u64 {
        self.with_apic(memory, tdvpr, |apic, memory| apic.task_priority(memory)).unwrap_or_default()
    }

    /// MOV to CR8.
    pub(super) fn set_task_priority(&mut self, board: &mut impl Board, tdvpr: u64, value: u64) -> Intercepted {
        if value > 0xF {
            return Intercepted::Reflect(Exception::gp(0));
        }
        self.with_apic(board, tdvpr, |apic, memory| apic.set_task_priority(memory, (value as u8) << 4));
        board.raise_event();
        Intercepted::Done
    }

    /// RDMSR of one of [`has_msr`].
    pub(super) fn read_apic_msr(&mut self, board: &mut impl Board, state: &mut CpuState, tdvpr: u64) -> Intercepted {
        let index = state.gpr[gpr::RCX] as u32;
        let value = self.with_apic(board, tdvpr, |apic, memory| apic.x2apic_read(memory, index)).flatten();
        match value.filter(|_| is_readable(index)) {
            Some(value) => {
                (state.gpr[gpr::RAX], state.gpr[gpr::RDX]) = (value & 0xFFFF_FFFF, value >> 32);
                Intercepted::Done
            }
            None => Intercepted::Reflect(Exception::gp(0)),
        }
    }

    /// WRMSR to one of [`has_msr`].
    pub(super) fn write_apic_msr(&mut self, board: &mut impl Board, state: &CpuState, tdvpr: u64) -> Intercepted {
        let index = state.gpr[gpr::RCX] as u32;
        let value = state.gpr[gpr::RAX] & 0xFFFF_FFFF | state.gpr[gpr::RDX] << 32;
        let written = self.with_apic(board, tdvpr, |apic, memory| apic.x2apic_write(memory, index, value)).flatten();
        match written {
            Some(Ok(())) => {
                board.raise_event();
                Intercepted::Done
            }
            Some(Err(exception)) => Intercepted::Reflect(exception),
            None => Intercepted::Reflect(Exception::gp(0)),
        }
    }
}
