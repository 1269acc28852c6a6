//! The check of an access against the RMP (APM volume 2, 15.36.10 and table 15-39).
//!
//! It follows ordinary paging: asked only where the host's or the nested page tables allow the access. Its answer
//! depends on nothing but the entry, so it may be remembered with a translation until the entry changes.

use privet_cpu::AccessKind;

use super::entry::{Entry, Owned, PageSize, PageState};
use super::table::Rmp;
use crate::{KeyedMemory, Rule, Rules};

/// Bits of a page fault's error code and of EXITINFO1 of an NPF that say it was the RMP's.
pub mod error_code {
    /// The RMP refused.
    pub const RMP: u64 = 1 << 31;
    /// The access was encrypted: private (NPF only).
    pub const ENC: u64 = 1 << 34;
    /// Nested page, operand and RMP entry differ in size (NPF only).
    pub const SIZEM: u64 = 1 << 35;
    /// The VMPL lacks the right (NPF only).
    pub const VMPL: u64 = 1 << 36;
}

/// Error code of the #VC that an access to a page raises which the guest has not validated.
pub const PAGE_NOT_VALIDATED: u32 = 0x404;

/// An access of an SNP guest to private memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrivateAccess {
    /// Of the guest.
    pub asid: u16,
    /// The virtual machine privilege level that it runs at.
    pub vmpl: u8,
    /// Guest-physical address, without C-bit.
    pub gpa: u64,
    /// What the nested page tables map it with (1 GiB counts as 2 MiB).
    pub mapping: PageSize,
    /// Read, write or fetch; a walk that sets accessed bits is a write.
    pub kind: AccessKind,
    /// At CPL 3, and no walk.
    pub user: bool,
}

/// Why an access to private memory is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// #VMEXIT(NPF) with these bits of [`error_code`] besides those of paging.
    Nested(u64),
    /// #VC with error code [`PAGE_NOT_VALIDATED`].
    NotValidated,
}

impl Refusal {
    const RMP: Refusal = Refusal::Nested(error_code::RMP);
}

/// Whether a write to the page at `pa` is allowed that is no private one of an SNP guest: a host's (else #PF with
/// [`error_code::RMP`]), another guest's, an SNP guest's to shared memory (else NPF with it), of data or of accessed
/// and dirty bits. `mapping` is what the page tables map it with: every page of it has to be the hypervisor's.
pub fn may_write_shared(rmp: &Rmp, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, mapping: PageSize) -> bool {
    if !rmp.rules.hold(Rule::HostWrites) {
        return true;
    }
    let entry = rmp.own_entry(memory, pa);
    let owned = entry.is_none_or(|entry| entry.state.hypervisor_owned());
    owned && (mapping == PageSize::Size4K || rmp.assigned_nearby(memory, pa) == 0)
}

/// The check of an SNP guest's access to private memory at system-physical address `pa`: data behind a C-bit,
/// every fetch and every page walk.
///
/// # Errors
/// The first check that fails: covered, owned, at its place, mutable, of the mapping's size, validated, VMPL.
pub fn check_private(
    rmp: &Rmp,
    memory: &mut (impl KeyedMemory + ?Sized),
    pa: u64,
    access: &PrivateAccess,
) -> Result<(), Refusal> {
    let entry = rmp.lookup(memory, pa).ok_or(Refusal::RMP)?;
    let (owned, valid) = ownership(&entry, access, rmp.rules)?;
    if rmp.rules.hold(Rule::AccessSize) {
        size(&entry, access.mapping)?;
    }
    if !valid && rmp.rules.hold(Rule::AccessValidated) {
        return Err(Refusal::NotValidated);
    }
    let rights = owned.permissions[usize::from(access.vmpl & 3)];
    if !rights.allow(access.kind, access.user) && rmp.rules.hold(Rule::AccessVmpl) {
        return Err(Refusal::Nested(error_code::RMP | error_code::VMPL));
    }
    Ok(())
}

/// Owned, at its place and mutable. What the guest has of the page, and whether it has validated it.
pub(super) fn ownership(entry: &Entry, access: &PrivateAccess, rules: Rules) -> Result<(Owned, bool), Refusal> {
    let (owned, valid) = match entry.state {
        PageState::GuestInvalid(owned) => (owned, false),
        PageState::GuestValid(owned) => (owned, true),
        PageState::PreGuest(owned) | PageState::PreSwap(owned) if !rules.hold(Rule::AccessMutable) => (owned, true),
        _ => return Err(Refusal::RMP),
    };
    let place = access.gpa & !(entry.size.bytes() - 1);
    if owned.asid != access.asid && rules.hold(Rule::AccessOwner) {
        return Err(Refusal::RMP);
    }
    if owned.gpa != place && rules.hold(Rule::AccessPlace) {
        return Err(Refusal::RMP);
    }
    Ok((owned, valid))
}

/// A mapping and the entry have to be of one size. AMD's table has the RMP bit for it; bit SIZEM is for instructions
/// whose operand names a size (15.36.11).
fn size(entry: &Entry, mapping: PageSize) -> Result<(), Refusal> {
    if entry.size == mapping { Ok(()) } else { Err(Refusal::RMP) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmp::Permissions;
    use crate::test_memory::TestMemory;

    const LARGE: u64 = 0x20_0000;

    fn fixture() -> (Rmp, TestMemory) {
        (Rmp::new(0x40_0000, 0x40_7FFF).unwrap(), TestMemory::new(0x41_0000))
    }

    fn owned() -> Owned {
        Owned { asid: 7, gpa: 0x9000, vmsa: false, permissions: Permissions::INITIAL }
    }

    fn access() -> PrivateAccess {
        PrivateAccess { asid: 7, vmpl: 0, gpa: 0x9123, mapping: PageSize::Size4K, kind: AccessKind::Write, user: false }
    }

    fn checked(state: PageState, access: &PrivateAccess) -> Result<(), Refusal> {
        let (rmp, mut memory) = fixture();
        rmp.store(&mut memory, 0x3000, &Entry::of(state));
        check_private(&rmp, &mut memory, 0x3000, access)
    }

    #[test]
    fn the_hypervisor_writes_its_own_pages_and_those_without_entry_only() {
        let (rmp, mut memory) = fixture();
        let states = [
            (PageState::Hypervisor, true),
            (PageState::HvFixed, true),
            (PageState::Reclaim, false),
            (PageState::Firmware, false),
            (PageState::Context, false),
            (PageState::PreGuest(owned()), false),
            (PageState::GuestInvalid(owned()), false),
            (PageState::GuestValid(owned()), false),
            (PageState::PreSwap(owned()), false),
        ];
        for (state, allowed) in states {
            rmp.store(&mut memory, 0x3000, &Entry::of(state));
            assert_eq!(may_write_shared(&rmp, &mut memory, 0x3008, PageSize::Size4K), allowed, "{state:?}");
        }
        assert!(may_write_shared(&rmp, &mut memory, 0x40_0000, PageSize::Size4K));
    }

    #[test]
    fn one_page_of_a_guest_spoils_a_large_mapping() {
        let (rmp, mut memory) = fixture();
        rmp.store(&mut memory, LARGE + 0x1F_F000, &Entry::of(PageState::GuestValid(owned())));
        assert!(!may_write_shared(&rmp, &mut memory, LARGE, PageSize::Size2M));
        assert!(may_write_shared(&rmp, &mut memory, LARGE, PageSize::Size4K));
    }

    #[test]
    fn a_guest_uses_what_it_owns_and_has_validated() {
        assert_eq!(checked(PageState::GuestValid(owned()), &access()), Ok(()));
    }

    #[test]
    fn a_page_of_nobody_or_of_another_guest_is_refused() {
        assert_eq!(checked(PageState::Hypervisor, &access()), Err(Refusal::RMP));
        assert_eq!(checked(PageState::GuestValid(Owned { asid: 8, ..owned() }), &access()), Err(Refusal::RMP));
    }

    #[test]
    fn a_page_mapped_elsewhere_is_refused() {
        let moved = PrivateAccess { gpa: 0xA000, ..access() };
        assert_eq!(checked(PageState::GuestValid(owned()), &moved), Err(Refusal::RMP));
    }

    #[test]
    fn an_immutable_page_is_refused() {
        assert_eq!(checked(PageState::PreGuest(owned()), &access()), Err(Refusal::RMP));
        assert_eq!(checked(PageState::PreSwap(owned()), &access()), Err(Refusal::RMP));
    }

    #[test]
    fn a_page_not_validated_is_a_vc() {
        assert_eq!(checked(PageState::GuestInvalid(owned()), &access()), Err(Refusal::NotValidated));
    }

    #[test]
    fn a_page_outside_the_rmp_is_refused() {
        let (rmp, mut memory) = fixture();
        assert_eq!(check_private(&rmp, &mut memory, 0x40_0000, &access()), Err(Refusal::RMP));
    }

    #[test]
    fn sizes_have_to_agree() {
        let large = PrivateAccess { mapping: PageSize::Size2M, ..access() };
        assert_eq!(checked(PageState::GuestValid(owned()), &large), Err(Refusal::RMP));
        let (rmp, mut memory) = fixture();
        let state = PageState::GuestValid(Owned { gpa: 0x60_0000, ..owned() });
        rmp.store(&mut memory, LARGE, &Entry { size: PageSize::Size2M, ..Entry::of(state) });
        let inside = PrivateAccess { gpa: 0x60_5000, mapping: PageSize::Size2M, ..access() };
        assert_eq!(check_private(&rmp, &mut memory, LARGE + 0x5000, &inside), Ok(()));
        let small = PrivateAccess { mapping: PageSize::Size4K, ..inside };
        assert_eq!(check_private(&rmp, &mut memory, LARGE + 0x5000, &small), Err(Refusal::RMP));
    }

    #[test]
    fn each_vmpl_has_rights_of_its_own() {
        let mut owned = owned();
        owned.permissions[2] = Permissions::of_bits(1);
        let read = PrivateAccess { vmpl: 2, kind: AccessKind::Read, ..access() };
        let refused = Err(Refusal::Nested(error_code::RMP | error_code::VMPL));
        assert_eq!(checked(PageState::GuestValid(owned), &read), Ok(()));
        assert_eq!(checked(PageState::GuestValid(owned), &PrivateAccess { vmpl: 1, ..read }), refused);
        let write = PrivateAccess { kind: AccessKind::Write, ..read };
        assert_eq!(checked(PageState::GuestValid(owned), &write), refused);
    }
}
