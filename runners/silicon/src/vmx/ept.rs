//! Extended page tables (SDM volume 3, 30.3): guest-physical to physical addresses.
//!
//! Memory types are checked and not simulated: there are no caches that they could matter to.

use privet_cpu::{Access, AccessKind};
use serde::{Deserialize, Serialize};

use super::features::Features;
use crate::Rule;
use crate::memory::{PhysicalMemory, read_u64, write_u64};

/// Rights of an entry.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const RIGHTS: u64 = READ | WRITE | EXECUTE;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of the qualification of a violation (table 28-7).
const LINEAR_VALID: u64 = 1 << 7;
const FINAL: u64 = 1 << 8;

/// Bits of an EPT pointer (table 25-9).
mod pointer {
    pub(super) const MEMORY_TYPE: u64 = 7;
    pub(super) const WRITE_BACK: u64 = 6;
    pub(super) const WALK_LENGTH: u64 = 7 << 3;
    pub(super) const FOUR_LEVELS: u64 = 3 << 3;
    pub(super) const ACCESSED_DIRTY: u64 = 1 << 6;
    pub(super) const RESERVED: u64 = 0xf80;
}

/// The EPT of a guest, and how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ept {
    pointer: u64,
    physical_bits: u8,
    pages_1g: bool,
    execute_only: bool,
    minds_reserved: bool,
    minds_writes: bool,
}

/// Why an access does not get to its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// With this qualification.
    Violation(u64),
    Misconfiguration,
    /// A page would become dirty, and the log of them is full.
    LogFull,
}

/// Where a walk has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Physical address of the page of 4 KiB.
    pub(super) page: u64,
    /// The access has made it dirty.
    pub(super) made_dirty: bool,
}

/// Whether VM entry and INVEPT take this EPT pointer.
pub(super) fn is_pointer(value: u64, features: &Features) -> bool {
    value & pointer::MEMORY_TYPE == pointer::WRITE_BACK
        && value & pointer::WALK_LENGTH == pointer::FOUR_LEVELS
        && (value & pointer::ACCESSED_DIRTY == 0 || features.ept_accessed_dirty)
        && value & pointer::RESERVED == 0
        && value >> features.address_bits() == 0
}

impl Ept {
    /// The tables that a valid pointer names.
    pub(super) fn new(pointer: u64, features: &Features) -> Ept {
        Ept {
            pointer,
            physical_bits: features.address_bits(),
            pages_1g: features.ept_1g,
            execute_only: features.ept_execute_only,
            minds_reserved: features.rules.hold(Rule::EptReserved),
            minds_writes: features.rules.hold(Rule::EptWrites),
        }
    }

    pub(super) fn pointer(&self) -> u64 {
        self.pointer
    }

    fn marks(&self) -> bool {
        self.pointer & pointer::ACCESSED_DIRTY != 0
    }

    /// Whether an access writes: with accessed and dirty flags the walk of the guest's own tables does, too (30.3.3.2).
    pub(super) fn writes(&self, access: Access) -> bool {
        access.kind == AccessKind::Write || access.walk && self.marks()
    }

    /// The page at `gpa`; with `may_dirty` false nothing is made dirty, and the walk says so.
    pub(super) fn walk(
        &self,
        memory: &mut (impl PhysicalMemory + ?Sized),
        gpa: u64,
        access: Access,
        may_dirty: bool,
    ) -> Result<Found, Fault> {
        let wanted = self.wanted(access);
        let mut table = self.pointer & ADDRESS;
        let mut rights = RIGHTS;
        for level in (1..=4).rev() {
            let at = table + (gpa >> shift(level) & 0x1ff) * 8;
            let entry = read_u64(memory, at);
            if entry & RIGHTS == 0 {
                return Err(Fault::Violation(self.qualification(access, 0)));
            }
            let leaf = level == 1 || level <= 3 && entry & LARGE != 0;
            if self.is_misconfigured(entry, level, leaf) {
                return Err(Fault::Misconfiguration);
            }
            rights &= entry;
            if !leaf {
                self.mark(memory, at, entry, ACCESSED);
                table = entry & ADDRESS;
                continue;
            }
            if rights & wanted != wanted {
                return Err(Fault::Violation(self.qualification(access, rights)));
            }
            let made_dirty = self.marks() && self.writes(access) && entry & DIRTY == 0;
            if made_dirty && !may_dirty {
                return Err(Fault::LogFull);
            }
            self.mark(memory, at, entry, if self.writes(access) { ACCESSED | DIRTY } else { ACCESSED });
            let mask = (1 << shift(level)) - 1;
            return Ok(Found { page: (entry & ADDRESS & !mask | gpa & mask) & ADDRESS, made_dirty });
        }
        Err(Fault::Misconfiguration)
    }

    /// The page at `gpa`, looked up without a trace; `None` if reading it would fault.
    pub(super) fn peek(&self, memory: &mut (impl PhysicalMemory + ?Sized), gpa: u64) -> Option<u64> {
        let without_marks = Ept { pointer: self.pointer & !pointer::ACCESSED_DIRTY, ..*self };
        without_marks.walk(memory, gpa, READING, true).ok().map(|found| found.page)
    }

    fn mark(&self, memory: &mut (impl PhysicalMemory + ?Sized), at: u64, entry: u64, flags: u64) {
        if self.marks() && entry & flags != flags {
            write_u64(memory, at, entry | flags);
        }
    }

    fn wanted(&self, access: Access) -> u64 {
        match access.kind {
            AccessKind::Fetch => EXECUTE,
            _ if self.writes(access) && self.minds_writes => WRITE,
            _ => READ,
        }
    }

    /// Section 30.3.3.1.
    fn is_misconfigured(&self, entry: u64, level: u32, leaf: bool) -> bool {
        let writable_only = entry & (READ | WRITE) == WRITE;
        let executable_only = entry & RIGHTS == EXECUTE && !self.execute_only;
        if writable_only || executable_only {
            return true;
        }
        let beyond = ADDRESS & !(u64::MAX >> (64 - self.physical_bits));
        let reserved = match (level, leaf) {
            (4, _) => 0xf8,
            (3, true) if !self.pages_1g => LARGE,
            (_, true) => ((1 << shift(level)) - 1) & ADDRESS,
            (_, false) => 0x78,
        };
        self.minds_reserved && (entry & (beyond | reserved) != 0 || leaf && matches!(entry >> 3 & 7, 2 | 3 | 7))
    }

    /// What a violation tells: what the access wanted, what the tables allow, and what the linear address is about.
    fn qualification(&self, access: Access, rights: u64) -> u64 {
        let kind = match access.kind {
            AccessKind::Read => READ,
            AccessKind::Write => WRITE,
            AccessKind::Fetch => EXECUTE,
        };
        let of_walk = if access.walk && self.marks() { READ | WRITE } else { 0 };
        kind | of_walk | (rights & RIGHTS) << 3 | LINEAR_VALID | if access.walk { 0 } else { FINAL }
    }
}

/// A read of a page that nobody asked for.
const READING: Access = Access {
    linear: 0,
    kind: AccessKind::Read,
    offset: 0,
    size: 0x1000,
    user: false,
    walk: false,
    private: false,
    emulated: false,
    next_rip: 0,
};

fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}
