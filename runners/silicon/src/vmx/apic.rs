//! The virtual APIC as a VMCS describes it (SDM volume 3, 25.6.8 and 25.4.2).

use super::controls::{Controls, pin, proc, proc2};
use super::field;
use super::vmcs::Vmcs;
use crate::virtual_apic::{VirtualApic, VirtualInterrupts};

/// That of the guest of a VMCS.
pub(super) fn of(vmcs: &Vmcs, controls: &Controls) -> VirtualApic {
    let exits = field::EOI_EXIT.map(|part| vmcs.get(part));
    let interrupts = || VirtualInterrupts::new(vmcs.get(field::GUEST_INTERRUPT_STATUS) as u16, exits);
    let posted = || (vmcs.get(field::POSTED_VECTOR) as u8, vmcs.get(field::POSTED_DESCRIPTOR));
    VirtualApic {
        page: controls.proc(proc::TPR_SHADOW).then(|| vmcs.get(field::VIRTUAL_APIC)),
        access_page: controls.proc2(proc2::APIC_ACCESSES).then(|| vmcs.get(field::APIC_ACCESS)),
        x2apic: controls.proc2(proc2::X2APIC),
        registers: controls.proc2(proc2::APIC_REGISTERS),
        threshold: vmcs.get(field::TPR_THRESHOLD) as u8 & 0xf,
        interrupts: controls.proc2(proc2::VIRTUAL_INTERRUPTS).then(interrupts),
        posted: controls.pin(pin::POSTED_INTERRUPTS).then(posted),
        trap: None,
    }
}

/// Stores the guest interrupt status.
pub(super) fn save(apic: &VirtualApic, vmcs: &mut Vmcs) {
    if let Some(interrupts) = apic.interrupts {
        vmcs.set(field::GUEST_INTERRUPT_STATUS, interrupts.status().into());
    }
}
