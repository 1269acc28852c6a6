//! The hypervisor's instructions: RMPUPDATE, PSMASH and RMPREAD (APM volume 3).
//!
//! The caller has checked what makes them #UD or #GP: 64-bit mode, SYSCFG.SecureNestedPagingEn, CPL 0.

use super::code::Code;
use super::entry::{Entry, MAX_ASID, Owned, PageSize, PageState};
use super::permissions::Permissions;
use super::table::Rmp;
use crate::{KeyedMemory, Rule, Rules};

/// The 16 bytes in memory that RMPUPDATE takes and RMPREAD gives (arch/x86/include/asm/sev.h: struct rmp_state).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RmpState {
    /// Where the guest has the page.
    pub gpa: u64,
    /// Owned by a guest or the firmware.
    pub assigned: bool,
    /// Size of the page.
    pub size: PageSize,
    /// RMPUPDATE may not change it again.
    pub immutable: bool,
    /// Of the guest, or 0.
    pub asid: u32,
}

impl RmpState {
    /// Reads it; none if a bit is set that has no meaning.
    #[must_use]
    pub fn decode(bytes: [u8; 16]) -> Option<RmpState> {
        let (gpa, rest) = bytes.split_first_chunk::<8>()?;
        let ([assigned, size, immutable, reserved], asid) = rest.split_first_chunk::<4>()?;
        let known = assigned | size | immutable | 1 == 1 && *reserved == 0;
        known.then_some(RmpState {
            gpa: u64::from_le_bytes(*gpa),
            assigned: *assigned == 1,
            size: PageSize::of_bit(*size == 1),
            immutable: *immutable == 1,
            asid: u32::from_le_bytes(asid.try_into().ok()?),
        })
    }

    /// The bytes in memory.
    #[must_use]
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.gpa.to_le_bytes());
        bytes[8..11].copy_from_slice(&[
            self.assigned.into(),
            (self.size == PageSize::Size2M).into(),
            self.immutable.into(),
        ]);
        bytes[12..].copy_from_slice(&self.asid.to_le_bytes());
        bytes
    }

    /// The entry that it asks for, with validated and VMSA clear and all rights VMPL 0's; none if there is none.
    fn entry(&self, rules: Rules) -> Option<Entry> {
        let asid = u16::try_from(self.asid).ok().filter(|&asid| asid <= MAX_ASID)?;
        let owned = Owned { asid, gpa: self.gpa, vmsa: false, permissions: Permissions::INITIAL };
        let state = match (self.assigned, asid, self.immutable) {
            (false, 0, false) => PageState::Hypervisor,
            (false, ..) => return None,
            (true, 0, false) => PageState::Reclaim,
            (true, 0, true) if self.gpa == 0 => PageState::Firmware,
            (true, 0, true) => PageState::Metadata { gpa: self.gpa },
            (true, _, false) if !rules.hold(Rule::UpdateInvalidates) => PageState::GuestValid(owned),
            (true, _, false) => PageState::GuestInvalid(owned),
            (true, _, true) => PageState::PreGuest(owned),
        };
        // An unassigned entry has no size: all of it becomes pages of 4 KiB.
        let size = if self.assigned { self.size } else { PageSize::Size4K };
        Some(Entry { state, size, in_use: false })
    }
}

/// RMPUPDATE of the page at `pa` (APM volume 3, RMPUPDATE).
pub fn rmpupdate(rmp: &Rmp, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, state: Option<RmpState>) -> Code {
    let Some(state) = state else { return Code::FailInput };
    let Some(new) = state.entry(rmp.rules) else { return Code::FailInput };
    let last = pa.saturating_add(state.size.bytes() - 1);
    let sound = state.size.aligned(pa) && state.size.aligned(state.gpa) && rmp.covers(memory, last);
    if !sound && rmp.rules.hold(Rule::UpdateInput) {
        return Code::FailInput;
    }
    let Some(old) = rmp.own_entry(memory, pa) else { return Code::FailInput };
    if let Some(code) = refusal(rmp, memory, pa, state.size, &old) {
        return code;
    }
    match state.assigned {
        true => rmp.store(memory, pa, &new),
        false => rmp.fill(memory, pa, state.size, new.state),
    }
    Code::Success
}

/// Why the entries of a page may not be replaced by one of `size`.
fn refusal(rmp: &Rmp, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, size: PageSize, old: &Entry) -> Option<Code> {
    if old.state.immutable() && rmp.rules.hold(Rule::UpdateImmutable) {
        return Some(Code::FailPermission);
    }
    if old.in_use && rmp.rules.hold(Rule::UpdateInUse) {
        return Some(Code::FailInUse);
    }
    if !rmp.rules.hold(Rule::UpdateOverlap) {
        return None;
    }
    let large = rmp.own_entry(memory, pa & !(PageSize::Size2M.bytes() - 1))?;
    match (size, large.size) {
        (PageSize::Size4K, PageSize::Size2M) => Some(Code::FailOverlap),
        (PageSize::Size4K, PageSize::Size4K) | (PageSize::Size2M, PageSize::Size2M) => None,
        (PageSize::Size2M, PageSize::Size4K) => {
            let mut found = None;
            for frame in 0..size.frames() {
                let entry = rmp.own_entry(memory, pa + (frame << 12))?;
                match entry {
                    Entry { state: PageState::Hypervisor, in_use: false, .. } => {}
                    Entry { in_use: true, .. } => return Some(Code::FailInUse),
                    // What is assigned lies across; what is fixed can be given to nobody.
                    Entry { state: PageState::HvFixed, .. } => return Some(Code::FailPermission),
                    _ => found = Some(Code::FailOverlap),
                }
            }
            found
        }
    }
}

/// PSMASH of the 2 MiB at `pa`: one entry becomes 512 with the same content (APM volume 3, PSMASH).
pub fn psmash(rmp: &Rmp, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Code {
    if !PageSize::Size2M.aligned(pa) {
        return Code::FailBadAddress;
    }
    let Some(entry) = rmp.own_entry(memory, pa) else { return Code::FailBadAddress };
    if entry.size != PageSize::Size2M {
        return Code::FailInput;
    }
    if entry.state.immutable() && rmp.rules.hold(Rule::SmashImmutable) {
        return Code::FailPermission;
    }
    if entry.in_use && rmp.rules.hold(Rule::SmashInUse) {
        return Code::FailInUse;
    }
    smash(rmp, memory, pa, &entry);
    Code::Success
}

/// Gives each 4 KiB of a page of 2 MiB an entry of its own.
pub(super) fn smash(rmp: &Rmp, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, entry: &Entry) {
    for frame in 0..PageSize::Size2M.frames() {
        let offset = frame << 12;
        let inside = if rmp.rules.hold(Rule::SmashPlaces) { offset } else { 0 };
        rmp.store(memory, pa + offset, &Entry::of(entry.state.advanced(inside)));
    }
}

/// RMPREAD of the page at `pa` (APM volume 3, RMPREAD): what RMPUPDATE would have had to be told.
///
/// # Errors
/// FAIL_INPUT for an address that is not a page's or has no entry.
pub fn rmpread(rmp: &Rmp, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Result<RmpState, Code> {
    if !PageSize::Size4K.aligned(pa) {
        return Err(Code::FailInput);
    }
    let entry = rmp.lookup(memory, pa).ok_or(Code::FailInput)?;
    let owned = entry.state.owned();
    Ok(RmpState {
        gpa: owned.map_or(0, |owned| owned.gpa),
        assigned: !entry.state.hypervisor_owned(),
        size: entry.size,
        immutable: entry.state.immutable(),
        asid: owned.map_or(0, |owned| owned.asid.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::TestMemory;

    const LARGE: u64 = 0x20_0000;

    /// 4 MiB that have entries, the table behind them.
    fn fixture() -> (Rmp, TestMemory) {
        (Rmp::new(0x40_0000, 0x40_7FFF).unwrap(), TestMemory::new(0x41_0000))
    }

    fn guest(gpa: u64, size: PageSize) -> RmpState {
        RmpState { gpa, assigned: true, size, immutable: false, asid: 7 }
    }

    const SHARED: RmpState = RmpState { gpa: 0, assigned: false, size: PageSize::Size4K, immutable: false, asid: 0 };

    fn update(rmp: &Rmp, memory: &mut TestMemory, pa: u64, state: RmpState) -> Code {
        rmpupdate(rmp, memory, pa, Some(state))
    }

    #[test]
    fn a_page_goes_to_a_guest_and_back() {
        let (rmp, mut memory) = fixture();
        assert_eq!(update(&rmp, &mut memory, 0x3000, guest(0x9000, PageSize::Size4K)), Code::Success);
        let expected = Owned { asid: 7, gpa: 0x9000, vmsa: false, permissions: Permissions::INITIAL };
        assert_eq!(rmp.lookup(&mut memory, 0x3000).unwrap().state, PageState::GuestInvalid(expected));
        assert_eq!(update(&rmp, &mut memory, 0x3000, SHARED), Code::Success);
        assert_eq!(rmp.lookup(&mut memory, 0x3000), Some(Entry::HYPERVISOR));
    }

    /// 56860, page states that RMPUPDATE can reach.
    #[test]
    fn every_state_that_the_hypervisor_may_ask_for() {
        let (rmp, mut memory) = fixture();
        let firmware = RmpState { assigned: true, immutable: true, ..SHARED };
        assert_eq!(update(&rmp, &mut memory, 0x1000, firmware), Code::Success);
        assert_eq!(rmp.lookup(&mut memory, 0x1000).unwrap().state, PageState::Firmware);
        let pre_guest = RmpState { immutable: true, ..guest(0x5000, PageSize::Size4K) };
        assert_eq!(update(&rmp, &mut memory, 0x2000, pre_guest), Code::Success);
        assert!(matches!(rmp.lookup(&mut memory, 0x2000).unwrap().state, PageState::PreGuest(_)));
    }

    #[test]
    fn input_that_means_nothing_is_fail_input() {
        let (rmp, mut memory) = fixture();
        let mut refused = |pa, state| assert_eq!(update(&rmp, &mut memory, pa, state), Code::FailInput, "{state:?}");
        refused(0x3001, guest(0, PageSize::Size4K));
        refused(0x3000, guest(0, PageSize::Size2M));
        refused(LARGE, guest(0x1000, PageSize::Size2M));
        refused(0x40_0000, guest(0, PageSize::Size4K));
        refused(!0xFFF, SHARED);
        refused(0x3000, RmpState { immutable: true, ..SHARED });
        refused(0x3000, RmpState { asid: 1, ..SHARED });
        refused(0x3000, RmpState { asid: 0x400, ..guest(0, PageSize::Size4K) });
        assert_eq!(RmpState::decode([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), None, "reserved byte");
        assert_eq!(rmpupdate(&rmp, &mut memory, 0x3000, None), Code::FailInput);
    }

    #[test]
    fn an_immutable_page_is_fail_permission() {
        let (rmp, mut memory) = fixture();
        rmp.store(&mut memory, 0x3000, &Entry::of(PageState::Firmware));
        assert_eq!(update(&rmp, &mut memory, 0x3000, SHARED), Code::FailPermission);
        rmp.store(&mut memory, LARGE + 0x5000, &Entry::of(PageState::HvFixed));
        assert_eq!(update(&rmp, &mut memory, LARGE, guest(0, PageSize::Size2M)), Code::FailPermission);
    }

    #[test]
    fn a_page_that_a_processor_runs_with_is_fail_in_use() {
        let (rmp, mut memory) = fixture();
        rmp.store(&mut memory, 0x3000, &Entry { in_use: true, ..Entry::HYPERVISOR });
        assert_eq!(update(&rmp, &mut memory, 0x3000, guest(0, PageSize::Size4K)), Code::FailInUse);
    }

    #[test]
    fn sizes_that_lie_across_are_fail_overlap() {
        let (rmp, mut memory) = fixture();
        assert_eq!(update(&rmp, &mut memory, LARGE + 0x1000, guest(0, PageSize::Size4K)), Code::Success);
        assert_eq!(update(&rmp, &mut memory, LARGE, guest(0, PageSize::Size2M)), Code::FailOverlap);
        assert_eq!(update(&rmp, &mut memory, LARGE + 0x1000, SHARED), Code::Success);
        assert_eq!(update(&rmp, &mut memory, LARGE, guest(0, PageSize::Size2M)), Code::Success);
        assert_eq!(update(&rmp, &mut memory, LARGE + 0x1000, SHARED), Code::FailOverlap);
        assert_eq!(update(&rmp, &mut memory, LARGE, guest(0, PageSize::Size4K)), Code::FailOverlap);
        let large = RmpState { size: PageSize::Size2M, ..SHARED };
        assert_eq!(update(&rmp, &mut memory, LARGE, large), Code::Success);
        assert_eq!(rmp.lookup(&mut memory, LARGE + 0x1F_F000), Some(Entry::HYPERVISOR));
    }

    #[test]
    fn psmash_keeps_all_but_the_size() {
        let (rmp, mut memory) = fixture();
        let owned = Owned {
            asid: 7,
            gpa: 0x60_0000,
            vmsa: false,
            permissions: [Permissions::ALL, Permissions::of_bits(1), Permissions::NONE, Permissions::NONE],
        };
        let large = Entry { size: PageSize::Size2M, ..Entry::of(PageState::GuestValid(owned)) };
        rmp.store(&mut memory, LARGE, &large);
        assert_eq!(psmash(&rmp, &mut memory, LARGE), Code::Success);
        let expected = Entry::of(PageState::GuestValid(Owned { gpa: 0x7F_F000, ..owned }));
        assert_eq!(rmp.lookup(&mut memory, LARGE + 0x1F_F000), Some(expected));
        assert_eq!(psmash(&rmp, &mut memory, LARGE), Code::FailInput, "it is no large page any more");
    }

    #[test]
    fn psmash_says_why_not() {
        let (rmp, mut memory) = fixture();
        assert_eq!(psmash(&rmp, &mut memory, 0x1000), Code::FailBadAddress);
        assert_eq!(psmash(&rmp, &mut memory, 0x4000_0000), Code::FailBadAddress);
        assert_eq!(psmash(&rmp, &mut memory, LARGE), Code::FailInput);
        let entry = Entry { state: PageState::Firmware, size: PageSize::Size2M, in_use: false };
        rmp.store(&mut memory, LARGE, &entry);
        assert_eq!(psmash(&rmp, &mut memory, LARGE), Code::FailPermission);
        rmp.store(&mut memory, LARGE, &Entry { state: PageState::Reclaim, in_use: true, ..entry });
        assert_eq!(psmash(&rmp, &mut memory, LARGE), Code::FailInUse);
    }

    #[test]
    fn rmpread_gives_what_rmpupdate_took() {
        let (rmp, mut memory) = fixture();
        let state = RmpState { immutable: true, ..guest(0x40_0000, PageSize::Size2M) };
        assert_eq!(update(&rmp, &mut memory, LARGE, state), Code::Success);
        assert_eq!(rmpread(&rmp, &mut memory, LARGE), Ok(state));
        assert_eq!(RmpState::decode(state.encode()), Some(state));
        assert_eq!(rmpread(&rmp, &mut memory, 0x123), Err(Code::FailInput));
        assert_eq!(rmpread(&rmp, &mut memory, 0x40_0000), Err(Code::FailInput));
    }
}
