//! What operations say beside addresses and numbers: lengths, widths, conversions.

/// How many bytes [`Op::ReadBytes`](crate::Op::ReadBytes) and [`Op::WriteBytes`](crate::Op::WriteBytes) move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Length(pub u64);

impl Length {
    /// The most.
    pub const MAX: Self = Self(2048);
}

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
