//! The S-EPT of a TD: which private page lies where, and in which state (TDX module base architecture, "Secure EPT").
//!
//! The format of its tables is the module's own business. Here an entry is a value, and one that is free is none. All
//! leaves are of 4 KiB: Linux makes no others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::{Code, Operand, Status};

/// An entry that is not free, with the address of its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SeptEntry {
    /// The TD's.
    Mapped(u64),
    /// Was mapped; the host takes it away.
    Blocked(u64),
    /// The host has given it, the TD has not accepted it.
    Pending(u64),
    /// Was pending; the host takes it away.
    PendingBlocked(u64),
    /// The next table.
    Table(u64),
    /// A table whose range the host takes away.
    TableBlocked(u64),
}

impl SeptEntry {
    /// The page.
    pub(super) fn page(self) -> u64 {
        use SeptEntry::*;
        let (Mapped(page) | Blocked(page) | Pending(page) | PendingBlocked(page) | Table(page) | TableBlocked(page)) =
            self;
        page
    }

    /// Its state as leaves show it (arch/x86/kvm/vmx/tdx_arch.h: enum tdx_sept_entry_state, and its two of tables).
    fn state(self) -> u64 {
        match self {
            SeptEntry::Blocked(_) => 1,
            SeptEntry::Pending(_) => 2,
            SeptEntry::PendingBlocked(_) => 3,
            SeptEntry::Mapped(_) => 4,
            SeptEntry::TableBlocked(_) => 0x81,
            SeptEntry::Table(_) => 0x84,
        }
    }

    /// What it becomes when the range is blocked.
    pub(super) fn blocked(self) -> Result<SeptEntry, Status> {
        match self {
            SeptEntry::Mapped(page) => Ok(SeptEntry::Blocked(page)),
            SeptEntry::Pending(page) => Ok(SeptEntry::PendingBlocked(page)),
            SeptEntry::Table(page) => Ok(SeptEntry::TableBlocked(page)),
            SeptEntry::Blocked(_) | SeptEntry::PendingBlocked(_) | SeptEntry::TableBlocked(_) => {
                Err(Code::GpaRangeAlreadyBlocked.on(Operand::Rcx))
            }
        }
    }

    /// What it becomes when the range is unblocked.
    pub(super) fn unblocked(self) -> Result<SeptEntry, Status> {
        match self {
            SeptEntry::Blocked(page) => Ok(SeptEntry::Mapped(page)),
            SeptEntry::PendingBlocked(page) => Ok(SeptEntry::Pending(page)),
            SeptEntry::TableBlocked(page) => Ok(SeptEntry::Table(page)),
            SeptEntry::Mapped(_) | SeptEntry::Pending(_) | SeptEntry::Table(_) => {
                Err(Code::GpaRangeNotBlocked.on(Operand::Rcx))
            }
        }
    }
}

/// An entry's place: the level (0 for one that maps 4 KiB) and the first GPA that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) level: u8,
    pub(super) gpa: u64,
}

impl Place {
    fn at(level: u8, gpa: u64) -> Place {
        Place { level, gpa: gpa & !(span(level) - 1) }
    }
}

/// Bytes that an entry of this level is about.
fn span(level: u8) -> u64 {
    4096 << (9 * u32::from(level))
}

/// Where a walk ended, and what was found there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) entry: Option<SeptEntry>,
}

impl Found {
    /// RCX and RDX of a leaf that tells where it stopped: the entry, and its level and state.
    pub(super) fn told(self) -> [u64; 2] {
        let state = self.entry.map_or(0, SeptEntry::state);
        [self.entry.map_or(0, SeptEntry::page), u64::from(self.place.level) | state << 8]
    }
}

/// The tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sept {
    /// Level of the entries in the root.
    top: u8,
    /// A GPA with it is shared.
    shared_bit: u64,
    entries: BTreeMap<Place, SeptEntry>,
}

impl Sept {
    /// Without any page: 5 levels or 4, and the shared bit as a mask.
    pub(super) fn new(five_levels: bool, shared_bit: u64) -> Sept {
        Sept { top: if five_levels { 4 } else { 3 }, shared_bit, entries: BTreeMap::new() }
    }

    /// The place that RCX of a leaf names: bits 2:0 the level, 51:12 the GPA, all others clear.
    pub(super) fn place(&self, rcx: u64, levels: std::ops::RangeInclusive<u8>) -> Result<Place, Status> {
        let (level, gpa) = ((rcx & 7) as u8, rcx & !7);
        let top = self.top.min(*levels.end());
        let sound = (*levels.start()..=top).contains(&level) && gpa.is_multiple_of(span(level)) && self.is_private(gpa);
        match sound {
            true => Ok(Place { level, gpa }),
            false => Err(Code::OperandInvalid.on(Operand::Rcx)),
        }
    }

    /// Whether a GPA is private: below the shared bit.
    pub(super) fn is_private(&self, gpa: u64) -> bool {
        gpa < self.shared_bit
    }

    /// Walks from the root to a place; ends early where there is no table.
    pub(super) fn walk(&self, to: Place) -> Found {
        let mut found = Found { place: Place::at(self.top, to.gpa), entry: None };
        for level in (to.level..=self.top).rev() {
            let place = Place::at(level, to.gpa);
            found = Found { place, entry: self.entries.get(&place).copied() };
            if level > to.level && !matches!(found.entry, Some(SeptEntry::Table(_))) {
                break;
            }
        }
        found
    }

    /// What a guest's access to a private GPA finds.
    pub(super) fn guest_walk(&self, gpa: u64) -> Found {
        self.walk(Place::at(0, gpa))
    }

    /// Replaces an entry.
    pub(super) fn set(&mut self, place: Place, entry: Option<SeptEntry>) {
        match entry {
            Some(entry) => self.entries.insert(place, entry),
            None => self.entries.remove(&place),
        };
    }

    /// Whether the table behind an entry is empty.
    pub(super) fn is_empty_table(&self, place: Place) -> bool {
        let Some(level) = place.level.checked_sub(1) else { return true };
        let last = place.gpa + (span(place.level) - 1);
        self.entries.range(Place { level, gpa: place.gpa }..=Place { level, gpa: last }).next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: u64 = 1 << 47;

    fn sept() -> Sept {
        let mut sept = Sept::new(false, SHARED);
        for level in 1..=3 {
            sept.set(Place { level, gpa: 0 }, Some(SeptEntry::Table(u64::from(level) << 12)));
        }
        sept
    }

    #[test]
    fn an_operand_names_level_and_gpa() {
        let sept = sept();
        assert_eq!(sept.place(0x20_0001, 0..=1), Ok(Place { level: 1, gpa: 0x20_0000 }));
        let invalid = Err(Code::OperandInvalid.on(Operand::Rcx));
        for rcx in [0x1001, 0x1008, SHARED, SHARED | 0x1000, 1 << 51, 2] {
            assert_eq!(sept.place(rcx, 0..=1), invalid, "{rcx:#x}");
        }
        assert_eq!(sept.place(4, 1..=4), invalid, "there is no such level");
        assert_eq!(sept.place(0, 1..=3), invalid);
    }

    #[test]
    fn a_walk_ends_where_there_is_no_table() {
        let sept = sept();
        let found = sept.walk(Place { level: 0, gpa: 0x40_0000 });
        assert_eq!(found.place, Place { level: 1, gpa: 0x40_0000 });
        assert_eq!(found.told(), [0, 1]);
        let found = sept.walk(Place { level: 0, gpa: 0x1000 });
        assert_eq!((found.place, found.entry), (Place { level: 0, gpa: 0x1000 }, None));
        assert_eq!(sept.walk(Place { level: 1, gpa: 0 }).told(), [0x1000, 0x8401]);
    }

    #[test]
    fn a_guest_reaches_nothing_behind_a_blocked_table() {
        let mut sept = sept();
        sept.set(Place { level: 0, gpa: 0x3000 }, Some(SeptEntry::Mapped(0x9000)));
        assert_eq!(sept.guest_walk(0x3123).entry, Some(SeptEntry::Mapped(0x9000)));
        sept.set(Place { level: 1, gpa: 0 }, Some(SeptEntry::TableBlocked(0x1000)));
        assert_eq!(sept.guest_walk(0x3123).entry, Some(SeptEntry::TableBlocked(0x1000)));
    }

    #[test]
    fn tables_know_whether_they_are_empty() {
        let mut sept = sept();
        assert!(sept.is_empty_table(Place { level: 1, gpa: 0 }));
        assert!(!sept.is_empty_table(Place { level: 2, gpa: 0 }));
        sept.set(Place { level: 0, gpa: 0x1F_F000 }, Some(SeptEntry::Pending(0x9000)));
        assert!(!sept.is_empty_table(Place { level: 1, gpa: 0 }));
        sept.set(Place { level: 0, gpa: 0x1F_F000 }, None);
        assert!(sept.is_empty_table(Place { level: 1, gpa: 0 }));
    }

    #[test]
    fn blocking_is_undone_by_unblocking_and_done_once() {
        for entry in [SeptEntry::Mapped(1), SeptEntry::Pending(1), SeptEntry::Table(1)] {
            let blocked = entry.blocked().unwrap();
            assert_eq!(blocked.unblocked(), Ok(entry));
            assert_eq!(blocked.blocked(), Err(Code::GpaRangeAlreadyBlocked.on(Operand::Rcx)));
            assert_eq!(entry.unblocked(), Err(Code::GpaRangeNotBlocked.on(Operand::Rcx)));
        }
    }
}
