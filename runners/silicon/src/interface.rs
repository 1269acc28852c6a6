//! What a board asks the virtualization of a processor, and what it is told: the same for SVM and VMX.

use privet_cpu::state::Shadow;
use privet_cpu::{CpuState, Exception, flags};

use crate::encryption::Key;

/// What waits outside of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// INIT.
    pub init: bool,
    /// A system management interrupt.
    pub smi: bool,
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// The vector of the interrupt that the local APIC would deliver now.
    pub interrupt: Option<u8>,
}

/// What the processor does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nothing: what waits goes on waiting.
    Nothing,
    /// It takes the INIT.
    Init,
    /// It takes the system management interrupt.
    Smi,
    /// It takes the NMI.
    Nmi,
    /// It takes the interrupt: the board acknowledges it.
    Interrupt,
    /// It takes a virtual interrupt with this vector; what waits outside is not concerned.
    Virtual(u8),
    /// The guest was left. What waits goes on waiting: the host takes it once it can.
    Switched,
    /// The guest was left with the interrupt, which the board acknowledges.
    SwitchedByInterrupt,
    /// The guest was left with the NMI, which waits no longer.
    SwitchedByNmi,
    /// The interrupt was about posted ones: the board acknowledges and ends it, and asks again.
    Notified,
    /// Nothing, and the processor waits, as after HLT.
    Halted,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// There.
    Page {
        /// System-physical address.
        page: u64,
        /// The key with which the access is made.
        key: Key,
    },
    /// No memory, but registers at this system-physical address: the board is asked for each access.
    Device(u64),
    /// The access raises this exception.
    Reflect(Exception),
    /// The access has left the guest.
    Switched,
}

/// Whether maskable interrupts are open.
pub(crate) fn interruptible(state: &CpuState) -> bool {
    state.rflags & flags::IF != 0 && state.shadow == Shadow::None
}
