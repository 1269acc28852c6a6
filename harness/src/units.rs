//! Addresses and sizes, each with a type of its own.

use std::fmt;
use std::ops::Add;

/// Bytes in a page, the unit of memslots, attributes and guest_memfd offsets.
pub const PAGE_SIZE: u64 = 4096;

/// A guest physical address in bytes, without any C-bit or shared bit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A guest virtual address in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gva(pub u64);

/// A number of 4 KiB pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageCount(pub u64);

impl PageCount {
    /// The pages of `bytes`, which must be a multiple of the page size.
    ///
    /// # Panics
    /// If it is not: a length that is not whole pages is an error in the row, not in the kernel.
    pub const fn of_bytes(bytes: u64) -> Self {
        assert!(bytes.is_multiple_of(PAGE_SIZE));
        Self(bytes / PAGE_SIZE)
    }

    /// The length in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 * PAGE_SIZE
    }
}

impl Gpa {
    /// The guest frame number: the address in pages.
    pub const fn gfn(self) -> u64 {
        self.0 / PAGE_SIZE
    }

    /// The start of the page that this address lies in.
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }
}

impl Add<PageCount> for Gpa {
    type Output = Gpa;
    fn add(self, pages: PageCount) -> Gpa {
        Gpa(self.0 + pages.bytes())
    }
}

impl Add<u64> for Gpa {
    type Output = Gpa;
    fn add(self, bytes: u64) -> Gpa {
        Gpa(self.0 + bytes)
    }
}

impl Add<u64> for Gva {
    type Output = Gva;
    fn add(self, bytes: u64) -> Gva {
        Gva(self.0 + bytes)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gva {:#x}", self.0)
    }
}

impl fmt::Display for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
