//! The word in which hypervisors and processors name an event: EVENTINJ and EXITINTINFO of SVM (APM volume 2, 15.20
//! and 15.7.2), the interruption information of VMX (SDM volume 3, 26.8.3 and 26.9.3).

use privet_cpu::state::Injection;

/// The word names an event.
pub(crate) const VALID: u32 = 1 << 31;
/// The event pushes the error code that stands beside the word.
pub(crate) const ERROR_VALID: u32 = 1 << 11;

pub(crate) const KIND_INTERRUPT: u32 = 0;
pub(crate) const KIND_NMI: u32 = 2;
pub(crate) const KIND_EXCEPTION: u32 = 3;
pub(crate) const KIND_SOFTWARE: u32 = 4;
/// INT1, on Intel's processors.
pub(crate) const KIND_PRIVILEGED: u32 = 5;
/// INT3 and INTO, on Intel's processors.
pub(crate) const KIND_SOFT_EXCEPTION: u32 = 6;

/// The word of an event and its error code. `soft_exception` is the kind of INT3 and INTO, in which the vendors differ.
pub(crate) fn encode(event: Injection, soft_exception: u32) -> (u32, u32) {
    let word = |kind: u32, vector: u8| VALID | kind << 8 | u32::from(vector);
    match event {
        Injection::Interrupt(vector) => (word(KIND_INTERRUPT, vector), 0),
        Injection::Nmi => (word(KIND_NMI, privet_cpu::vector::NMI), 0),
        Injection::Exception(exception) => match exception.error_code {
            Some(code) => (word(KIND_EXCEPTION, exception.vector) | ERROR_VALID, code),
            None => (word(KIND_EXCEPTION, exception.vector), 0),
        },
        Injection::SoftInterrupt(vector) => (word(KIND_SOFTWARE, vector), 0),
        Injection::SoftException(vector) => (word(soft_exception, vector), 0),
    }
}
