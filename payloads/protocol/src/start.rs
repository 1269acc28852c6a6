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

/// How a guest leaves when it has answered: one byte, value 0, for [`DOORBELL_PORT`](crate::DOORBELL_PORT). VM types whose
/// guests cannot execute `out` bring a variant of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doorbell {
    /// By `out`.
    Port,
    /// By a request in the GHCB of its vCPU: SEV-ES and SEV-SNP.
    Ghcb {
        /// Where that page is, as GPA and as the GVA of a shared mapping.
        gpa: u64,
    },
    /// By TDCALL, the function Instruction.IO: TDX.
    Tdvmcall,
}

/// [`Doorbell::Tdvmcall`] as a word, which is no address of a page.
const TDVMCALL: u64 = 1;

impl Doorbell {
    const fn encode(self) -> u64 {
        match self {
            Doorbell::Port => 0,
            Doorbell::Ghcb { gpa } => gpa,
            Doorbell::Tdvmcall => TDVMCALL,
        }
    }

    const fn decode(word: u64) -> Result<Self, DecodeError> {
        match word {
            0 => Ok(Self::Port),
            TDVMCALL => Ok(Self::Tdvmcall),
            gpa if gpa.is_multiple_of(4096) => Ok(Self::Ghcb { gpa }),
            _ => Err(DecodeError::new(Field::Doorbell, word)),
        }
    }
}

/// How a guest asks for a conversion of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Conversion {
    /// By the hypercall `KVM_HC_MAP_GPA_RANGE`.
    Hypercall = 0,
    /// By page state changes of the GHCB protocol, and PVALIDATE: SEV-SNP.
    PageStateChange = 1,
    /// By TDCALL, the function MapGPA, and TDG.MEM.PAGE.ACCEPT: TDX.
    MapGpa = 2,
}

impl Conversion {
    const fn decode(word: u64) -> Result<Self, DecodeError> {
        match word {
            0 => Ok(Self::Hypercall),
            1 => Ok(Self::PageStateChange),
            2 => Ok(Self::MapGpa),
            _ => Err(DecodeError::new(Field::Conversion, word)),
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
    /// How it asks for conversions.
    pub conversion: Conversion,
    /// Where its table of CPUID is, as GVA of a private mapping; 0 if it has none, and asks the host.
    pub cpuid: u64,
}

impl Start {
    pub(crate) fn encode(self) -> [u64; START_COUNT] {
        let AliasBits { private, shared } = self.aliases;
        [self.hypercall as u64, self.doorbell.encode(), private, shared, self.conversion as u64, self.cpuid]
    }

    pub(crate) fn decode(words: [u64; START_COUNT]) -> Result<Self, DecodeError> {
        let [hypercall, doorbell, private, shared, conversion, cpuid] = words;
        Ok(Self {
            hypercall: HypercallInstruction::decode(hypercall)?,
            doorbell: Doorbell::decode(doorbell)?,
            aliases: AliasBits { private, shared },
            conversion: Conversion::decode(conversion)?,
            cpuid,
        })
    }
}
