//! Event injection (APM volume 2, 15.20): what EVENTINJ makes a processor deliver.

use privet_cpu::state::Injection;
use privet_cpu::{CpuState, Exception, vector};

use super::control::Control;
use crate::event::{ERROR_VALID, KIND_EXCEPTION, KIND_INTERRUPT, KIND_NMI, VALID};

/// The event that a checked control area injects. The guest's CR2 and DR6 are in `state` already: injection of #PF
/// and #DB changes neither.
pub(crate) fn injection(control: &Control, state: &CpuState) -> Option<Injection> {
    let event = control.event_injection;
    let number = event as u8;
    if event & VALID == 0 {
        return None;
    }
    Some(match event >> 8 & 7 {
        KIND_INTERRUPT => Injection::Interrupt(number),
        KIND_NMI => Injection::Nmi,
        KIND_EXCEPTION if matches!(number, vector::BP | vector::OF) => Injection::SoftException(number),
        KIND_EXCEPTION => Injection::Exception(Exception {
            vector: number,
            error_code: (event & ERROR_VALID != 0).then_some(control.event_error),
            payload: match number {
                vector::PF => state.cr2,
                vector::DB => state.dr6,
                _ => 0,
            },
        }),
        _ => Injection::SoftInterrupt(number),
    })
}

/// Whether an event returns to behind the instruction that made it: the address is NEXT_RIP's then.
pub(crate) fn is_software(event: Injection) -> bool {
    matches!(event, Injection::SoftInterrupt(_) | Injection::SoftException(_))
}
