//! Segment registers with their hidden parts, and the descriptor tables they are loaded from.

use serde::{Deserialize, Serialize};

/// The index of a segment register, in the order in which instructions encode them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Seg {
    /// Extra segment: destination of string instructions.
    Es = 0,
    /// Code segment.
    Cs = 1,
    /// Stack segment.
    Ss = 2,
    /// Data segment.
    Ds = 3,
    /// First free segment: base from `FS_BASE` in long mode.
    Fs = 4,
    /// Second free segment: base from `GS_BASE` in long mode.
    Gs = 5,
}

impl Seg {
    /// The segment register that an instruction encodes as `index`.
    ///
    /// # Panics
    /// Never for 0 to 5; the decoder yields no other index.
    #[must_use]
    pub fn from_index(index: usize) -> Seg {
        [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs][index]
    }
}

/// A segment register: the selector and what the processor remembers of its descriptor.
///
/// The fields are those of `struct kvm_segment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte, in bytes (granularity applied).
    pub limit: u32,
    /// The selector as loaded.
    pub selector: u16,
    /// Type field of the descriptor, 4 bits.
    pub kind: u8,
    /// Present.
    pub present: bool,
    /// Descriptor privilege level. That of SS is the CPL.
    pub dpl: u8,
    /// Default operation size: 32 bits (`D`/`B`).
    pub db: bool,
    /// Code or data (`S`), not a system segment.
    pub code_or_data: bool,
    /// 64-bit code (`L`).
    pub long: bool,
    /// Limit counted in pages (`G`).
    pub granularity: bool,
    /// Bit for software (`AVL`).
    pub available: bool,
    /// Loaded with a null selector: any use faults. KVM says the same.
    pub unusable: bool,
}

/// Type of a code segment that is execute/read and accessed.
pub const CODE_EXEC_READ_ACCESSED: u8 = 0xb;
/// Type of a data segment that is read/write and accessed.
pub const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
/// Type of a busy TSS (32-bit or 64-bit).
pub const TSS_BUSY: u8 = 0xb;
/// Type of an LDT.
pub const LDT: u8 = 0x2;

impl Segment {
    /// A segment as it is in real mode: base 16 times the selector, limit 64 KiB.
    #[must_use]
    pub fn real_mode(selector: u16, code: bool) -> Segment {
        Segment {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            kind: if code { CODE_EXEC_READ_ACCESSED } else { DATA_READ_WRITE_ACCESSED },
            present: true,
            code_or_data: true,
            ..Segment::default()
        }
    }

    /// The flat 64-bit code segment with this selector; its two low bits are the DPL.
    #[must_use]
    pub fn code64(selector: u16) -> Segment {
        Segment { long: true, db: false, ..Segment::code32(selector) }
    }

    /// The flat 32-bit code segment with this selector; its two low bits are the DPL.
    #[must_use]
    pub fn code32(selector: u16) -> Segment {
        Segment { kind: CODE_EXEC_READ_ACCESSED, ..Segment::data(selector) }
    }

    /// The flat data segment with this selector; its two low bits are the DPL.
    #[must_use]
    pub fn data(selector: u16) -> Segment {
        Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            kind: DATA_READ_WRITE_ACCESSED,
            present: true,
            dpl: (selector & 3) as u8,
            db: true,
            code_or_data: true,
            long: false,
            granularity: true,
            available: false,
            unusable: false,
        }
    }

    /// What an 8-byte descriptor says, loaded through `selector`. System descriptors of long mode
    /// have 8 more bytes, of which the caller adds the upper half of the base.
    #[must_use]
    pub fn from_descriptor(selector: u16, raw: u64) -> Segment {
        let granularity = raw >> 55 & 1 != 0;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        Segment {
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if granularity { limit << 12 | 0xfff } else { limit },
            selector,
            kind: (raw >> 40 & 0xf) as u8,
            present: raw >> 47 & 1 != 0,
            dpl: (raw >> 45 & 3) as u8,
            db: raw >> 54 & 1 != 0,
            code_or_data: raw >> 44 & 1 != 0,
            long: raw >> 53 & 1 != 0,
            granularity,
            available: raw >> 52 & 1 != 0,
            unusable: false,
        }
    }

    /// The state after a null selector was loaded.
    #[must_use]
    pub fn null(selector: u16) -> Segment {
        Segment { selector, unusable: true, ..Segment::default() }
    }

    /// Whether the segment holds code.
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.code_or_data && self.kind & 8 != 0
    }

    /// Whether the segment is a conforming code segment.
    #[must_use]
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.kind & 4 != 0
    }

    /// Whether data can be read through the segment.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.code_or_data && (self.kind & 8 == 0 || self.kind & 2 != 0)
    }

    /// Whether data can be written through the segment.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.code_or_data && self.kind & 8 == 0 && self.kind & 2 != 0
    }

    /// Whether the segment grows down: valid offsets are those above the limit.
    #[must_use]
    pub fn is_expand_down(&self) -> bool {
        self.code_or_data && self.kind & 8 == 0 && self.kind & 4 != 0
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}
