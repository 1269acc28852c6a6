//! Event injection (SDM volume 3, 27.6): what the VM-entry interruption information makes a processor deliver.

use privet_cpu::state::Injection;
use privet_cpu::{CpuState, Exception, vector};

use super::field;
use super::vmcs::Vmcs;
use crate::event::{
    ERROR_VALID, KIND_EXCEPTION, KIND_INTERRUPT, KIND_NMI, KIND_PRIVILEGED, KIND_SOFT_EXCEPTION, KIND_SOFTWARE, VALID,
};

/// Bits of DR6 that say what a #DB is about.
const DR6_CAUSES: u64 = 0xe00f;

/// The event that a checked VMCS injects. The guest's CR2 and DR6 are in `state`: injection of #PF and #DB changes
/// neither.
pub(super) fn injection(vmcs: &Vmcs, state: &CpuState) -> Option<Injection> {
    let event = vmcs.get32(field::ENTRY_EVENT);
    let number = event as u8;
    if event & VALID == 0 {
        return None;
    }
    Some(match event >> 8 & 7 {
        KIND_INTERRUPT => Injection::Interrupt(number),
        KIND_NMI => Injection::Nmi,
        KIND_SOFTWARE => Injection::SoftInterrupt(number),
        KIND_SOFT_EXCEPTION => Injection::SoftException(number),
        KIND_EXCEPTION | KIND_PRIVILEGED => Injection::Exception(Exception {
            vector: number,
            error_code: (event & ERROR_VALID != 0).then_some(vmcs.get32(field::ENTRY_ERROR)),
            payload: match number {
                vector::PF => state.cr2,
                vector::DB => state.dr6 & DR6_CAUSES,
                _ => 0,
            },
        }),
        _ => return None,
    })
}

/// Whether the event that is injected is an instruction's, and goes on behind it.
pub(super) fn is_software(vmcs: &Vmcs) -> bool {
    let event = vmcs.get32(field::ENTRY_EVENT);
    event & VALID != 0 && matches!(event >> 8 & 7, KIND_SOFTWARE | KIND_PRIVILEGED | KIND_SOFT_EXCEPTION)
}
