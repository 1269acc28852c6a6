//! The tables of a TD's shared addresses: the host's, below a root that TDH.VP.WR has named (SDM volume 3, 30.3.2).

use privet_cpu::{Access, AccessKind};

use crate::PhysicalMemory;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// An access that is not allowed leaves the guest, and is no #VE.
const SUPPRESS_VE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// What an access to a shared address finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    /// The page, by its system-physical address.
    Page(u64),
    /// An EPT violation: permissions of the entries on the way, and whether it is the TD's (#VE).
    Violation { permissions: u64, exception: bool },
}

/// What an access asks for.
fn wanted(kind: AccessKind) -> u64 {
    match kind {
        AccessKind::Read => READ,
        AccessKind::Write => WRITE,
        // A TD executes nothing that is shared.
        AccessKind::Fetch => EXECUTE,
    }
}

/// Walks four levels from `root` on.
pub(super) fn walk(memory: &mut (impl PhysicalMemory + ?Sized), root: u64, gpa: u64, access: Access) -> Shared {
    let (mut table, mut permissions) = (root & ADDRESS, READ | WRITE | EXECUTE);
    for level in (0..4).rev() {
        let at = table + (gpa >> (12 + 9 * level) & 0x1FF) * 8;
        let entry = crate::read_u64(memory, at);
        permissions &= entry;
        if entry & (READ | WRITE | EXECUTE) == 0 || permissions & wanted(access.kind) == 0 {
            let permissions = permissions & (READ | WRITE | EXECUTE);
            return Shared::Violation { permissions, exception: entry & SUPPRESS_VE == 0 };
        }
        let used = if access.kind == AccessKind::Write { ACCESSED | DIRTY } else { ACCESSED };
        let leaf = level == 0 || entry & LARGE != 0;
        let marked = entry | if leaf { used } else { ACCESSED };
        if marked != entry {
            crate::write_u64(memory, at, marked);
        }
        if leaf {
            let inside = (1 << (12 + 9 * level)) - 1;
            return Shared::Page(entry & ADDRESS & !inside | gpa & inside & !0xFFF);
        }
        table = entry & ADDRESS;
    }
    Shared::Violation { permissions: 0, exception: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::TestMemory;

    const GPA: u64 = 1 << 47 | 0x1234_5000;

    fn access(kind: AccessKind) -> Access {
        Access {
            linear: 0,
            kind,
            offset: 0,
            size: 4096,
            user: false,
            walk: false,
            private: false,
            emulated: false,
            next_rip: 0,
        }
    }

    /// Tables at 0x1000 to 0x4000, this entry at the end.
    fn tables(leaf: u64) -> TestMemory {
        let mut memory = TestMemory::new(0x8000);
        for (table, level) in [(0x1000, 3), (0x2000, 2), (0x3000, 1), (0x4000, 0)] {
            let at = table + (GPA >> (12 + 9 * level) & 0x1FF) * 8;
            crate::write_u64(&mut memory, at, if level == 0 { leaf } else { (table + 0x1000) | 7 });
        }
        memory
    }

    #[test]
    fn the_index_has_the_shared_bit() {
        let mut memory = tables(0x7000 | 3);
        assert_eq!(walk(&mut memory, 0x1000, GPA, access(AccessKind::Write)), Shared::Page(0x7000));
        let at = 0x4000 + (GPA >> 12 & 0x1FF) * 8;
        assert_eq!(crate::read_u64(&mut memory, at), 0x7000 | 3 | ACCESSED | DIRTY);
        let without = walk(&mut memory, 0x1000, GPA & !(1 << 47), access(AccessKind::Read));
        assert_eq!(without, Shared::Violation { permissions: 0, exception: true });
    }

    #[test]
    fn who_suppresses_ve_gets_the_violation() {
        let read = access(AccessKind::Read);
        let absent = Shared::Violation { permissions: 0, exception: false };
        assert_eq!(walk(&mut tables(SUPPRESS_VE), 0x1000, GPA, read), absent);
        let mmio = Shared::Violation { permissions: 0, exception: true };
        assert_eq!(walk(&mut tables(0), 0x1000, GPA, read), mmio);
        let read_only = Shared::Violation { permissions: READ, exception: false };
        let write = walk(&mut tables(SUPPRESS_VE | 0x7000 | READ), 0x1000, GPA, access(AccessKind::Write));
        assert_eq!(write, read_only);
    }
}
