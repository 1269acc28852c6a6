//! The operations that the host sends.

use crate::layout::ARG_COUNT;
use crate::mailbox::{DecodeError, Field};
use crate::pattern::Pattern;

/// Most bytes that [`Op::ReadBytes`] and [`Op::WriteBytes`] move.
pub const MAX_BYTES: usize = 2048;

/// Width of one memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Width {
    /// 1 byte.
    B1 = 1,
    /// 2 bytes.
    B2 = 2,
    /// 4 bytes.
    B4 = 4,
    /// 8 bytes.
    B8 = 8,
}

impl Width {
    /// All widths, narrow to wide.
    pub const ALL: [Self; 4] = [Self::B1, Self::B2, Self::B4, Self::B8];

    /// The bytes of the access.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// `value` cut to this width.
    pub const fn truncate(self, value: u64) -> u64 {
        match self {
            Width::B8 => value,
            _ => value & ((1 << (self.bytes() * 8)) - 1),
        }
    }

    fn decode(word: u64) -> Result<Self, DecodeError> {
        Self::ALL.into_iter().find(|w| w.bytes() == word).ok_or(DecodeError::new(Field::Width, word))
    }
}

/// What a page is converted to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Sharing {
    /// Backed by the host's view of the slot.
    Shared = 0,
    /// Backed by the guest_memfd.
    Private = 1,
}

/// In which order a conversion touches page tables and host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Order {
    /// Clear PRESENT, flush the TLB, ask the host, set PRESENT again: no stray access can hit the window.
    NotPresentFirst = 0,
    /// Ask the host while the mapping is present, as Linux did first: stray accesses hit the window.
    InPlace = 1,
}

/// An explicit conversion of a range of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Convert {
    /// Start of the range in the mapping that the conversion protocol protects.
    pub gva: u64,
    /// Start of the range as the host is told it.
    pub gpa: u64,
    /// Pages of 4 KiB.
    pub pages: u64,
    /// What the pages become.
    pub to: Sharing,
    /// In which order.
    pub order: Order,
}

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
    pub(crate) fn decode(word: u64) -> Result<Self, DecodeError> {
        match word {
            0 => Ok(Self::Vmcall),
            1 => Ok(Self::Vmmcall),
            _ => Err(DecodeError::new(Field::Hypercall, word)),
        }
    }
}

/// One operation of the general payload. Addresses are GVAs; a fault in an access that an operation makes on
/// behalf of the host is a result ([`Reply::Fault`](crate::Reply::Fault)), not a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Nothing: the guest just answers.
    Nop,
    /// One load. Values: the value, zero-extended.
    Read {
        /// Address, of any alignment.
        gva: u64,
        /// Width.
        width: Width,
    },
    /// One store.
    Write {
        /// Address, of any alignment.
        gva: u64,
        /// Width.
        width: Width,
        /// Value, of which the low bytes are stored.
        value: u64,
    },
    /// Loads `len` bytes, one by one, into the text of the reply.
    ReadBytes {
        /// Address.
        gva: u64,
        /// At most [`MAX_BYTES`].
        len: u64,
    },
    /// Stores the first `len` bytes of the request's text, one by one.
    WriteBytes {
        /// Address.
        gva: u64,
        /// At most [`MAX_BYTES`].
        len: u64,
    },
    /// Fills whole pages: every 8-byte word of page `i` becomes `pattern.word(first + i)`.
    Fill {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Pattern.
        pattern: Pattern,
        /// Index of the first page in the pattern.
        first: u64,
    },
    /// Compares whole pages with what [`Op::Fill`] would have written. Values: words that differ; if any,
    /// the address of the first, what it should have been and what it was.
    Check {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Pattern.
        pattern: Pattern,
        /// Index of the first page in the pattern.
        first: u64,
    },
    /// `lock cmpxchg` of 8 bytes. Values: what was there before.
    CompareExchange {
        /// Address.
        gva: u64,
        /// Stored only if this was there.
        expected: u64,
        /// The new value.
        new: u64,
    },
    /// Calls a function `extern "C" fn(u64) -> u64` at an address. Values: what it returned.
    Execute {
        /// Address of the code.
        gva: u64,
        /// Its argument (RDI).
        argument: u64,
    },
    /// The hypercall KVM_HC_MAP_GPA_RANGE and nothing else. Values: RAX afterwards.
    MapGpaRange {
        /// RBX: the first byte.
        gpa: u64,
        /// RCX: 4 KiB pages.
        pages: u64,
        /// RDX: size hint and encrypted bit, as the row wants them.
        attributes: u64,
    },
    /// An arbitrary hypercall with RAX, RBX, RCX, RDX, RSI. Values: RAX afterwards.
    Hypercall {
        /// RAX, RBX, RCX, RDX, RSI.
        registers: [u64; 5],
    },
    /// A conversion as guest kernels do it. Values: RAX of the hypercall; pages whose page-table entry is
    /// present afterwards.
    Convert(Convert),
    /// Sets or clears PRESENT in the 4 KiB page-table entries of a range and flushes the TLBs, as
    /// in a conversion.
    SetPresent {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// Set or clear.
        present: bool,
    },
    /// CPUID. Values: EAX, EBX, ECX, EDX.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// RDMSR. Values: the value.
    ReadMsr {
        /// ECX.
        msr: u32,
    },
    /// WRMSR.
    WriteMsr {
        /// ECX.
        msr: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// An 8-byte load as by Linux's `load_unaligned_zeropad()`: on #PF in the second page the missing bytes
    /// read as zero. Values: the value; the vector of the fault, or [`Op::NO_FAULT`]; its error code; CR2.
    LoadZeropad {
        /// Address.
        gva: u64,
    },
    /// [`Op::LoadZeropad`] until told to stop or `limit` times. Each value must be one of `allowed`. Values:
    /// loads; loads that were padded; faults other than #PF; values that were not allowed and the last such.
    HammerZeropad {
        /// Address.
        gva: u64,
        /// At most so many loads; 0: no limit but the stop.
        limit: u64,
        /// The values that a load may give.
        allowed: [u64; 3],
    },
    /// `lock xadd 1` to the first word of every page, round after round, until told to stop or `limit`
    /// rounds. Values: rounds done.
    HammerAdd {
        /// Address, page-aligned.
        gva: u64,
        /// Pages.
        pages: u64,
        /// At most so many rounds; 0: no limit but the stop.
        limit: u64,
    },
    /// Panics in the guest with a message that has [`Op::PANIC_ARGUMENT_PREFIX`] and this number in it.
    Panic {
        /// The number.
        argument: u64,
    },
    /// Fails an assertion in the guest: `left == right`.
    AssertEqual {
        /// Left side.
        left: u64,
        /// Right side.
        right: u64,
    },
    /// Raises #UD outside every probe: an exception that nobody expects.
    Crash,
}

impl Op {
    /// In place of a vector: there was no fault.
    pub const NO_FAULT: u64 = u64::MAX;

    /// How the message of [`Op::Panic`] begins.
    pub const PANIC_ARGUMENT_PREFIX: &'static str = "the host asked for a panic with ";

    /// Code and arguments, as they are written into a mailbox.
    pub const fn encode(self) -> (u64, [u64; ARG_COUNT]) {
        match self {
            Op::Nop => (1, [0; ARG_COUNT]),
            Op::Read { gva, width } => (2, args([gva, width as u64])),
            Op::Write { gva, width, value } => (3, args([gva, width as u64, value])),
            Op::ReadBytes { gva, len } => (4, args([gva, len])),
            Op::WriteBytes { gva, len } => (5, args([gva, len])),
            Op::Fill { gva, pages, pattern, first } => (6, args([gva, pages, pattern.0, first])),
            Op::Check { gva, pages, pattern, first } => (7, args([gva, pages, pattern.0, first])),
            Op::CompareExchange { gva, expected, new } => (8, args([gva, expected, new])),
            Op::Execute { gva, argument } => (9, args([gva, argument])),
            Op::MapGpaRange { gpa, pages, attributes } => (10, args([gpa, pages, attributes])),
            Op::Hypercall { registers } => (11, args(registers)),
            Op::Convert(Convert { gva, gpa, pages, to, order }) => {
                (12, args([gva, gpa, pages, to as u64, order as u64]))
            }
            Op::SetPresent { gva, pages, present } => (13, args([gva, pages, present as u64])),
            Op::Cpuid { leaf, subleaf } => (14, args([leaf as u64, subleaf as u64])),
            Op::ReadMsr { msr } => (15, args([msr as u64])),
            Op::WriteMsr { msr, value } => (16, args([msr as u64, value])),
            Op::LoadZeropad { gva } => (17, args([gva])),
            Op::HammerZeropad { gva, limit, allowed: [a, b, c] } => (18, args([gva, limit, a, b, c])),
            Op::HammerAdd { gva, pages, limit } => (19, args([gva, pages, limit])),
            Op::Panic { argument } => (20, args([argument])),
            Op::AssertEqual { left, right } => (21, args([left, right])),
            Op::Crash => (22, [0; ARG_COUNT]),
        }
    }

    /// The operation of a code and its arguments.
    pub fn decode(code: u64, args: [u64; ARG_COUNT]) -> Result<Self, DecodeError> {
        let [a, b, c, d, e, ..] = args;
        Ok(match code {
            1 => Op::Nop,
            2 => Op::Read { gva: a, width: Width::decode(b)? },
            3 => Op::Write { gva: a, width: Width::decode(b)?, value: c },
            4 => Op::ReadBytes { gva: a, len: byte_count(b)? },
            5 => Op::WriteBytes { gva: a, len: byte_count(b)? },
            6 => Op::Fill { gva: a, pages: b, pattern: Pattern(c), first: d },
            7 => Op::Check { gva: a, pages: b, pattern: Pattern(c), first: d },
            8 => Op::CompareExchange { gva: a, expected: b, new: c },
            9 => Op::Execute { gva: a, argument: b },
            10 => Op::MapGpaRange { gpa: a, pages: b, attributes: c },
            11 => Op::Hypercall { registers: [a, b, c, d, e] },
            12 => Op::Convert(Convert {
                gva: a,
                gpa: b,
                pages: c,
                to: flag(d, Sharing::Shared, Sharing::Private, Field::Sharing)?,
                order: flag(e, Order::NotPresentFirst, Order::InPlace, Field::Order)?,
            }),
            13 => Op::SetPresent { gva: a, pages: b, present: flag(c, false, true, Field::Present)? },
            14 => Op::Cpuid { leaf: narrow(a)?, subleaf: narrow(b)? },
            15 => Op::ReadMsr { msr: narrow(a)? },
            16 => Op::WriteMsr { msr: narrow(a)?, value: b },
            17 => Op::LoadZeropad { gva: a },
            18 => Op::HammerZeropad { gva: a, limit: b, allowed: [c, d, e] },
            19 => Op::HammerAdd { gva: a, pages: b, limit: c },
            20 => Op::Panic { argument: a },
            21 => Op::AssertEqual { left: a, right: b },
            22 => Op::Crash,
            _ => return Err(DecodeError::new(Field::Op, code)),
        })
    }
}

const fn args<const N: usize>(given: [u64; N]) -> [u64; ARG_COUNT] {
    let mut all = [0; ARG_COUNT];
    let mut i = 0;
    while i < N {
        all[i] = given[i];
        i += 1;
    }
    all
}

fn byte_count(word: u64) -> Result<u64, DecodeError> {
    if word <= MAX_BYTES as u64 { Ok(word) } else { Err(DecodeError::new(Field::Len, word)) }
}

fn flag<T>(word: u64, zero: T, one: T, field: Field) -> Result<T, DecodeError> {
    match word {
        0 => Ok(zero),
        1 => Ok(one),
        _ => Err(DecodeError::new(field, word)),
    }
}

fn narrow(word: u64) -> Result<u32, DecodeError> {
    u32::try_from(word).map_err(|_| DecodeError::new(Field::Register, word))
}
