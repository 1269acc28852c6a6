//! An entry of the RMP: what state a page is in, and with what.

use super::permissions::Permissions;

/// Size of a page as the RMP tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
}

impl PageSize {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            PageSize::Size4K => 1 << 12,
            PageSize::Size2M => 1 << 21,
        }
    }

    /// Pages of 4 KiB.
    #[must_use]
    pub const fn frames(self) -> u64 {
        self.bytes() >> 12
    }

    /// Whether `address` is one of such a page.
    #[must_use]
    pub const fn aligned(self, address: u64) -> bool {
        address & (self.bytes() - 1) == 0
    }

    /// As one bit says it: set for 2 MiB.
    #[must_use]
    pub const fn of_bit(bit: bool) -> PageSize {
        if bit { PageSize::Size2M } else { PageSize::Size4K }
    }
}

/// What the entry of a guest's page holds besides its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// Of the guest that owns it, not 0.
    pub asid: u16,
    /// Where the guest has it.
    pub gpa: u64,
    /// It may be run as a VMSA.
    pub vmsa: bool,
    /// Rights of VMPL 0 to 3.
    pub permissions: [Permissions; 4],
}

/// The state of a page (56860, table "Page States"). Default, a page without entry, is the absence of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// The hypervisor's, for everything.
    Hypervisor,
    /// The hypervisor's, and it cannot be given away.
    HvFixed,
    /// Back from the firmware: the hypervisor may take it again.
    Reclaim,
    /// The firmware's.
    Firmware,
    /// A guest's context, kept by the firmware.
    Context,
    /// Metadata about swapped pages, kept by the firmware.
    Metadata {
        /// Of the entry; tells this state from Firmware.
        gpa: u64,
    },
    /// Given to the firmware to become a guest's at launch.
    PreGuest(Owned),
    /// A guest's, which has not accepted it.
    GuestInvalid(Owned),
    /// A guest's, which has accepted it.
    GuestValid(Owned),
    /// A guest's, in the hands of the firmware to be swapped out.
    PreSwap(Owned),
}

impl PageState {
    /// The hypervisor may write it (`assigned` is clear).
    #[must_use]
    pub fn hypervisor_owned(&self) -> bool {
        matches!(self, PageState::Hypervisor | PageState::HvFixed)
    }

    /// RMPUPDATE may not change it.
    #[must_use]
    pub fn immutable(&self) -> bool {
        !matches!(
            self,
            PageState::Hypervisor | PageState::Reclaim | PageState::GuestInvalid(_) | PageState::GuestValid(_)
        )
    }

    /// What a guest's page holds, in whatever state.
    #[must_use]
    pub fn owned(&self) -> Option<&Owned> {
        match self {
            PageState::PreGuest(owned)
            | PageState::GuestInvalid(owned)
            | PageState::GuestValid(owned)
            | PageState::PreSwap(owned) => Some(owned),
            _ => None,
        }
    }

    /// The same state `offset` bytes further inside a page of 2 MiB.
    #[must_use]
    pub(super) fn advanced(self, offset: u64) -> PageState {
        let further = |owned: Owned| Owned { gpa: owned.gpa + offset, ..owned };
        match self {
            PageState::PreGuest(owned) => PageState::PreGuest(further(owned)),
            PageState::GuestInvalid(owned) => PageState::GuestInvalid(further(owned)),
            PageState::GuestValid(owned) => PageState::GuestValid(further(owned)),
            PageState::PreSwap(owned) => PageState::PreSwap(further(owned)),
            other => other,
        }
    }
}

/// One entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// State of the page.
    pub state: PageState,
    /// 2 MiB: this entry speaks for the 511 behind it as well.
    pub size: PageSize,
    /// A processor runs with the page as its VMCB or VMSA.
    pub in_use: bool,
}

// Layout of the first word as Linux reads it raw (arch/x86/virt/svm/sev.c: struct rmpentry_raw, Zen 3 and 4). The
// architecture hides it; where Linux does not look (bit 63, the second word) it is of our choice.
const ASSIGNED: u64 = 1 << 0;
const SIZE_2M: u64 = 1 << 1;
const IMMUTABLE: u64 = 1 << 2;
const GPA: u64 = 0x0007_FFFF_FFFF_F000;
const ASID_SHIFT: u32 = 51;
const ASID_MASK: u64 = 0x3FF;
const VMSA: u64 = 1 << 61;
const VALIDATED: u64 = 1 << 62;
const IN_USE: u64 = 1 << 63;

/// Largest ASID that an entry can hold.
pub const MAX_ASID: u16 = ASID_MASK as u16;

impl Entry {
    /// A page of the hypervisor's, as all are when the table is zeroed.
    pub const HYPERVISOR: Entry = Entry::of(PageState::Hypervisor);

    /// A page of 4 KiB in this state that no processor runs with.
    #[must_use]
    pub const fn of(state: PageState) -> Entry {
        Entry { state, size: PageSize::Size4K, in_use: false }
    }

    /// The entry that these 16 bytes are. Every pattern is one: bits that have no meaning in a state are ignored.
    #[must_use]
    pub fn decode(raw: [u64; 2]) -> Entry {
        let [low, high] = raw;
        let has = |bit| low & bit != 0;
        let gpa = low & GPA;
        let owned = Owned {
            asid: (low >> ASID_SHIFT & ASID_MASK) as u16,
            gpa,
            vmsa: has(VMSA),
            permissions: std::array::from_fn(|vmpl| Permissions::of_bits((high >> (8 * vmpl)) as u8)),
        };
        let state = match (has(ASSIGNED), owned.asid, has(IMMUTABLE), has(VALIDATED)) {
            (false, _, false, _) => PageState::Hypervisor,
            (false, _, true, _) => PageState::HvFixed,
            (true, 0, false, _) => PageState::Reclaim,
            (true, 0, true, _) if has(VMSA) => PageState::Context,
            (true, 0, true, _) if gpa != 0 => PageState::Metadata { gpa },
            (true, 0, true, _) => PageState::Firmware,
            (true, _, true, false) => PageState::PreGuest(owned),
            (true, _, true, true) => PageState::PreSwap(owned),
            (true, _, false, false) => PageState::GuestInvalid(owned),
            (true, _, false, true) => PageState::GuestValid(owned),
        };
        let size = PageSize::of_bit(has(SIZE_2M) && has(ASSIGNED));
        Entry { state, size, in_use: has(IN_USE) }
    }

    /// The 16 bytes of the entry.
    #[must_use]
    pub fn encode(&self) -> [u64; 2] {
        let with = |bits: u64, owned: &Owned| {
            let vmsa = if owned.vmsa { VMSA } else { 0 };
            let low = ASSIGNED | bits | vmsa | owned.gpa & GPA | u64::from(owned.asid) << ASID_SHIFT;
            (low, owned.permissions.iter().rev().fold(0, |high, rights| high << 8 | u64::from(rights.bits())))
        };
        let (mut low, high) = match &self.state {
            PageState::Hypervisor => (0, 0),
            PageState::HvFixed => (IMMUTABLE, 0),
            PageState::Reclaim => (ASSIGNED, 0),
            PageState::Firmware => (ASSIGNED | IMMUTABLE, 0),
            PageState::Context => (ASSIGNED | IMMUTABLE | VMSA, 0),
            PageState::Metadata { gpa } => (ASSIGNED | IMMUTABLE | gpa & GPA, 0),
            PageState::PreGuest(owned) => with(IMMUTABLE, owned),
            PageState::PreSwap(owned) => with(IMMUTABLE | VALIDATED, owned),
            PageState::GuestInvalid(owned) => with(0, owned),
            PageState::GuestValid(owned) => with(VALIDATED, owned),
        };
        if self.size == PageSize::Size2M {
            low |= SIZE_2M;
        }
        if self.in_use {
            low |= IN_USE;
        }
        [low, high]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned() -> Owned {
        Owned {
            asid: 5,
            gpa: 0x1_2345_6000,
            vmsa: true,
            permissions: [Permissions::ALL, Permissions::NONE, Permissions::of_bits(3), Permissions::NONE],
        }
    }

    /// Linux's words for what it reads raw: assigned, pagesize, immutable, gpa >> 12, asid, vmsa, validated.
    #[test]
    fn the_layout_is_the_one_that_linux_reads() {
        let raw = Entry { size: PageSize::Size2M, ..Entry::of(PageState::GuestValid(owned())) }.encode()[0];
        assert_eq!(raw & 1, 1);
        assert_eq!(raw >> 1 & 1, 1);
        assert_eq!(raw >> 2 & 1, 0);
        assert_eq!(raw >> 12 & 0x7F_FFFF_FFFF, 0x12_3456);
        assert_eq!(raw >> 51 & 0x3FF, 5);
        assert_eq!(raw >> 61 & 3, 3);
        assert_eq!(Entry::of(PageState::Firmware).encode()[0], 5);
        assert_eq!(Entry::of(PageState::Context).encode()[0], 0x2000_0000_0000_0005);
    }

    /// 56860, table "Page States".
    #[test]
    fn every_state_survives_the_table() {
        use PageState::*;
        let states = [
            Hypervisor,
            HvFixed,
            Reclaim,
            Firmware,
            Context,
            Metadata { gpa: 0x1000 },
            PreGuest(owned()),
            GuestInvalid(owned()),
            GuestValid(owned()),
            PreSwap(owned()),
        ];
        for state in states {
            for in_use in [false, true] {
                let entry = Entry { in_use, ..Entry::of(state) };
                assert_eq!(Entry::decode(entry.encode()), entry);
            }
        }
    }

    proptest! {
        #[test]
        fn every_pattern_is_an_entry_and_stays_it(raw: [u64; 2]) {
            let entry = Entry::decode(raw);
            prop_assert_eq!(Entry::decode(entry.encode()), entry);
        }
    }
}
