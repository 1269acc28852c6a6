//! What a VMPL may do with a page.

use privet_cpu::AccessKind;

/// Rights of one VMPL to one page (APM volume 2, 15.36.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions(u8);

impl Permissions {
    const READ: u8 = 1 << 0;
    const WRITE: u8 = 1 << 1;
    const EXECUTE_USER: u8 = 1 << 2;
    const EXECUTE_SUPERVISOR: u8 = 1 << 3;
    const MASK: u8 = 0xF;

    /// None: of every VMPL but 0 in a new entry.
    pub const NONE: Permissions = Permissions(0);
    /// All: of VMPL 0 in a new entry.
    pub const ALL: Permissions = Permissions(Self::MASK);
    /// Of VMPL 0 to 3 in a new entry.
    pub const INITIAL: [Permissions; 4] = [Self::ALL, Self::NONE, Self::NONE, Self::NONE];

    /// As RMPADJUST and SNP_LAUNCH_UPDATE have them: bit 0 read, 1 write, 2 execute at CPL 3, 3 execute below. Other
    /// bits are ignored.
    #[must_use]
    pub const fn of_bits(bits: u8) -> Permissions {
        Permissions(bits & Self::MASK)
    }

    /// As in [`Permissions::of_bits`].
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether there is no right in these that is not in `others`.
    #[must_use]
    pub const fn within(self, others: Permissions) -> bool {
        self.0 & !others.0 == 0
    }

    /// Whether an access is allowed; `user` is CPL 3.
    #[must_use]
    pub fn allow(self, kind: AccessKind, user: bool) -> bool {
        let needed = match kind {
            AccessKind::Read => Self::READ,
            AccessKind::Write => Self::READ | Self::WRITE,
            AccessKind::Fetch if user => Self::EXECUTE_USER,
            AccessKind::Fetch => Self::EXECUTE_SUPERVISOR,
        };
        self.0 & needed == needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_right_allows_its_access() {
        use AccessKind::{Fetch, Read, Write};
        assert!(Permissions::of_bits(1).allow(Read, false) && !Permissions::of_bits(1).allow(Write, false));
        assert!(Permissions::of_bits(3).allow(Write, true) && !Permissions::of_bits(2).allow(Write, true));
        assert!(Permissions::of_bits(4).allow(Fetch, true) && !Permissions::of_bits(4).allow(Fetch, false));
        assert!(Permissions::of_bits(8).allow(Fetch, false) && !Permissions::of_bits(8).allow(Fetch, true));
        assert!(!Permissions::NONE.allow(Read, false) && Permissions::ALL.allow(Write, false));
    }

    #[test]
    fn rights_are_compared_as_sets() {
        assert!(Permissions::of_bits(5).within(Permissions::of_bits(7)));
        assert!(!Permissions::of_bits(8).within(Permissions::of_bits(7)));
    }
}
