//! An interrupt on its way to local APICs: what an IPI and an entry of the I/O APIC have in common.

use serde::{Deserialize, Serialize};

/// How an interrupt is delivered (SDM volume 3, section 12.6.1; AMD APM volume 2, section 16.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Delivery {
    /// To all destinations, with the vector.
    Fixed,
    /// To the destination that does the least important work.
    LowestPriority,
    /// A system-management interrupt.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT: the processor waits for a start-up message.
    Init,
    /// Start-up at the page of this number.
    StartUp,
    /// The 8259 has the vector.
    ExtInt,
    /// An encoding that is reserved.
    Reserved,
}

impl Delivery {
    /// The delivery mode of bits 10:8 of an ICR, a local vector or an I/O APIC entry.
    pub(crate) fn of(word: u32) -> Delivery {
        match word >> 8 & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::StartUp,
            7 => Delivery::ExtInt,
            _ => Delivery::Reserved,
        }
    }
}

/// Who is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The APIC with this ID, or all of them.
    Physical(u32),
    /// The APICs that find themselves in this set; its form is the receiver's (flat, cluster, x2APIC).
    Logical(u32),
    /// The sender.
    Itself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// An interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InterruptMessage {
    /// Who is meant.
    pub(crate) destination: Destination,
    /// How it is delivered.
    pub(crate) delivery: Delivery,
    /// The vector, or the page of a start-up message.
    pub(crate) vector: u8,
    /// Whether the source is level triggered, so that the end of the interrupt is told to I/O APICs.
    pub(crate) level: bool,
}
