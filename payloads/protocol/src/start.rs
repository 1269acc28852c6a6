//! What the host tells a guest at its start about the VM that it is in.

use crate::decode::{DecodeError, Field};
use crate::layout::START_COUNT;

/// Which instruction makes a hypercall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum HypercallInstruction {
    /// `vmcall`: Intel's.
    Vmcall = 0,
    /// `vmmcall`: AMD's.
    Vmmcall = 1,
}

impl HypercallInstruction {
    fn decode(word: u64) -> Result<Self, DecodeError> {
        match word {
            0 => Ok(Self::Vmcall),
            1 => Ok(Self::Vmmcall),
            _ => Err(DecodeError::new(Field::Hypercall, word)),
        }
    }
}

/// How a guest leaves when it has answered. VM types whose guests cannot execute `out` bring a variant of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Doorbell {
    /// `out` of one byte, value 0, to [`DOORBELL_PORT`](crate::DOORBELL_PORT).
    Port = 0,
}

impl Doorbell {
    fn decode(word: u64) -> Result<Self, DecodeError> {
        match word {
            0 => Ok(Self::Port),
            _ => Err(DecodeError::new(Field::Doorbell, word)),
        }
    }
}

/// The bits of a page-table entry that say whether the page is accessed as private or as shared memory: the C-bit, the
/// shared bit, or none where the entry has no say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AliasBits {
    /// Set in entries of private mappings.
    pub private: u64,
    /// Set in entries of shared mappings.
    pub shared: u64,
}

impl AliasBits {
    /// The entry has no say.
    pub const NONE: Self = Self { private: 0, shared: 0 };

    /// The bits of an entry that are an address: bits 51:12 without these.
    pub const fn address_mask(self) -> u64 {
        0x000f_ffff_ffff_f000 & !(self.private | self.shared)
    }
}

/// All that a guest is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Which instruction makes a hypercall.
    pub hypercall: HypercallInstruction,
    /// How it leaves when it has answered.
    pub doorbell: Doorbell,
    /// What its page-table entries say of privacy.
    pub aliases: AliasBits,
}

impl Start {
    pub(crate) fn encode(self) -> [u64; START_COUNT] {
        [self.hypercall as u64, self.doorbell as u64, self.aliases.private, self.aliases.shared]
    }

    pub(crate) fn decode([hypercall, doorbell, private, shared]: [u64; START_COUNT]) -> Result<Self, DecodeError> {
        Ok(Self {
            hypercall: HypercallInstruction::decode(hypercall)?,
            doorbell: Doorbell::decode(doorbell)?,
            aliases: AliasBits { private, shared },
        })
    }
}
