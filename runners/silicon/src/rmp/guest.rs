//! The guest's instructions: PVALIDATE, RMPADJUST and RMPQUERY (APM volume 3).
//!
//! The caller has checked what makes them #UD or #GP (64-bit mode, an SNP guest, CPL 0), has translated the operand
//! by the guest's and the nested page tables, and has raised what came of that.

use super::access::{PrivateAccess, Refusal, error_code, ownership};
use super::code::Code;
use super::entry::{Entry, Owned, PageSize, PageState};
use super::permissions::Permissions;
use super::table::Rmp;
use crate::{KeyedMemory, Rule};

/// The page that the operand of such an instruction names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// System-physical address.
    pub pa: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// What the nested page tables map it with.
    pub mapping: PageSize,
    /// Size that the instruction names.
    pub size: PageSize,
}

/// Who executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Of the guest.
    pub asid: u16,
    /// Virtual machine privilege level.
    pub vmpl: u8,
}

/// What PVALIDATE leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pvalidated {
    /// EAX.
    pub code: Code,
    /// CF: the page was in that state already.
    pub unchanged: bool,
}

/// What RMPADJUST is to do (RDX).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adjustment {
    /// Whose rights.
    pub target: u8,
    /// Which they become.
    pub permissions: Permissions,
    /// Whether the page becomes one that VMRUN takes as VMSA.
    pub vmsa: bool,
}

impl Adjustment {
    /// Reads RDX; none with a VMPL that does not exist or a reserved bit.
    #[must_use]
    pub fn decode(rdx: u64) -> Option<Adjustment> {
        let [target, rights, flags, ..] = rdx.to_le_bytes();
        let known = target <= 3 && rights <= 0xF && flags <= 1 && rdx >> 24 == 0;
        known.then_some(Adjustment { target, permissions: Permissions::of_bits(rights), vmsa: flags == 1 })
    }
}

/// The entry of the operand, after the checks that all of these instructions share.
fn entry(
    rmp: &Rmp,
    memory: &mut (impl KeyedMemory + ?Sized),
    caller: Caller,
    operand: &Operand,
) -> Result<Result<Entry, Code>, Refusal> {
    let entry = rmp.lookup(memory, operand.pa).ok_or(Refusal::Nested(error_code::RMP))?;
    let access = PrivateAccess {
        asid: caller.asid,
        vmpl: caller.vmpl,
        gpa: operand.gpa,
        mapping: operand.mapping,
        kind: privet_cpu::AccessKind::Read,
        user: false,
    };
    ownership(&entry, &access, rmp.rules)?;
    if !rmp.rules.hold(Rule::ValidateSize) {
        return Ok(Ok(entry));
    }
    match (operand.size, entry.size) {
        // Part of a large page: the hypervisor has to smash it (15.36.11).
        (PageSize::Size4K, PageSize::Size2M) => Err(Refusal::Nested(error_code::RMP | error_code::SIZEM)),
        (PageSize::Size2M, PageSize::Size4K) => Ok(Err(Code::FailSizeMismatch)),
        (PageSize::Size2M, PageSize::Size2M) if operand.mapping == PageSize::Size4K => Ok(Err(Code::FailSizeMismatch)),
        _ => Ok(Ok(entry)),
    }
}

fn owned_page(state: PageState) -> Option<(Owned, bool)> {
    match state {
        PageState::GuestValid(owned) => Some((owned, true)),
        PageState::GuestInvalid(owned) => Some((owned, false)),
        _ => None,
    }
}

/// PVALIDATE (APM volume 3, PVALIDATE): the guest accepts a page, or gives it back.
///
/// # Errors
/// The exit that the operand's page causes.
pub fn pvalidate(
    rmp: &Rmp,
    memory: &mut (impl KeyedMemory + ?Sized),
    caller: Caller,
    operand: &Operand,
    validate: bool,
) -> Result<Pvalidated, Refusal> {
    let failed = |code| Ok(Pvalidated { code, unchanged: false });
    if caller.vmpl != 0 && rmp.rules.hold(Rule::ValidateVmpl) {
        return failed(Code::FailPermission);
    }
    if !operand.size.aligned(operand.gpa) {
        return failed(Code::FailInput);
    }
    let entry = match entry(rmp, memory, caller, operand)? {
        Ok(entry) => entry,
        Err(code) => return failed(code),
    };
    let Some((owned, was)) = owned_page(entry.state) else { return failed(Code::FailInput) };
    if was != validate {
        let state = if validate { PageState::GuestValid(owned) } else { PageState::GuestInvalid(owned) };
        rmp.store(memory, operand.pa & !(entry.size.bytes() - 1), &Entry { state, ..entry });
    }
    let unchanged = was == validate && rmp.rules.hold(Rule::ValidateCarry);
    Ok(Pvalidated { code: Code::Success, unchanged })
}

/// RMPADJUST (APM volume 3, RMPADJUST): a VMPL gives rights to those below it, or makes a page a VMSA.
///
/// # Errors
/// The exit or #VC that the operand's page causes.
pub fn rmpadjust(
    rmp: &Rmp,
    memory: &mut (impl KeyedMemory + ?Sized),
    caller: Caller,
    operand: &Operand,
    adjustment: Option<Adjustment>,
) -> Result<Code, Refusal> {
    let Some(adjustment) = adjustment else { return Ok(Code::FailInput) };
    if !operand.size.aligned(operand.gpa) {
        return Ok(Code::FailInput);
    }
    if adjustment.target <= caller.vmpl && rmp.rules.hold(Rule::AdjustDown) {
        return Ok(Code::FailPermission);
    }
    let entry = match entry(rmp, memory, caller, operand)? {
        Ok(entry) => entry,
        Err(code) => return Ok(code),
    };
    let Some((mut owned, valid)) = owned_page(entry.state) else { return Err(Refusal::NotValidated) };
    if !valid && rmp.rules.hold(Rule::AdjustValidated) {
        return Err(Refusal::NotValidated);
    }
    if entry.in_use && rmp.rules.hold(Rule::AdjustInUse) {
        return Ok(Code::FailInUse);
    }
    let own = owned.permissions[usize::from(caller.vmpl & 3)];
    if !adjustment.permissions.within(own) && rmp.rules.hold(Rule::AdjustWithin) {
        return Ok(Code::FailPermission);
    }
    let makes_vmsas = caller.vmpl == 0 || !rmp.rules.hold(Rule::AdjustVmsa);
    if adjustment.vmsa && !makes_vmsas {
        return Ok(Code::FailPermission);
    }
    owned.permissions[usize::from(adjustment.target)] = adjustment.permissions;
    // Nobody else has a say in whether a page is a VMSA.
    if makes_vmsas {
        owned.vmsa = adjustment.vmsa;
    }
    let state = PageState::GuestValid(owned);
    rmp.store(memory, operand.pa & !(entry.size.bytes() - 1), &Entry { state, ..entry });
    Ok(Code::Success)
}

/// What RMPQUERY tells: rights of the target VMPL, whether the page is a VMSA, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queried {
    /// Of the VMPL in question.
    pub permissions: Permissions,
    /// It may be run as a VMSA.
    pub vmsa: bool,
    /// Of the entry.
    pub size: PageSize,
}

/// RMPQUERY (APM volume 3, RMPQUERY): reads the rights of a VMPL below the caller's.
///
/// # Errors
/// The exit or #VC that the operand's page causes.
pub fn rmpquery(
    rmp: &Rmp,
    memory: &mut (impl KeyedMemory + ?Sized),
    caller: Caller,
    operand: &Operand,
    target: u8,
) -> Result<Result<Queried, Code>, Refusal> {
    if target > 3 {
        return Ok(Err(Code::FailInput));
    }
    if target <= caller.vmpl {
        return Ok(Err(Code::FailPermission));
    }
    let page = Operand { size: PageSize::Size4K, ..*operand };
    let found = rmp.lookup(memory, page.pa).ok_or(Refusal::Nested(error_code::RMP))?;
    let entry = match entry(rmp, memory, caller, &Operand { size: found.size, ..page })? {
        Ok(entry) => entry,
        Err(code) => return Ok(Err(code)),
    };
    let PageState::GuestValid(owned) = entry.state else { return Err(Refusal::NotValidated) };
    let permissions = owned.permissions[usize::from(target)];
    Ok(Ok(Queried { permissions, vmsa: owned.vmsa, size: entry.size }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmp::{RmpState, psmash, rmpupdate};
    use crate::test_memory::TestMemory;

    const CALLER: Caller = Caller { asid: 7, vmpl: 0 };
    const SMALL: Operand = Operand { pa: 0x3000, gpa: 0x9000, mapping: PageSize::Size4K, size: PageSize::Size4K };
    const LARGE: Operand = Operand { pa: 0x20_0000, gpa: 0x60_0000, mapping: PageSize::Size2M, size: PageSize::Size2M };

    /// A page of each size that belongs to ASID 7.
    fn fixture() -> (Rmp, TestMemory) {
        let (rmp, mut memory) = (Rmp::new(0x40_0000, 0x40_7FFF).unwrap(), TestMemory::new(0x41_0000));
        for Operand { pa, gpa, size, .. } in [SMALL, LARGE] {
            let state = RmpState { gpa, assigned: true, size, immutable: false, asid: 7 };
            assert_eq!(rmpupdate(&rmp, &mut memory, pa, Some(state)), Code::Success);
        }
        (rmp, memory)
    }

    fn done(unchanged: bool) -> Result<Pvalidated, Refusal> {
        Ok(Pvalidated { code: Code::Success, unchanged })
    }

    fn failed(code: Code) -> Result<Pvalidated, Refusal> {
        Ok(Pvalidated { code, unchanged: false })
    }

    #[test]
    fn pvalidate_tells_by_carry_that_nothing_changed() {
        let (rmp, mut memory) = fixture();
        for operand in [SMALL, LARGE] {
            assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &operand, false), done(true));
            assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &operand, true), done(false));
            assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &operand, true), done(true));
            assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &operand, false), done(false));
        }
    }

    #[test]
    fn pvalidate_minds_sizes() {
        let (rmp, mut memory) = fixture();
        let part = Operand { size: PageSize::Size4K, pa: 0x20_1000, gpa: 0x60_1000, ..LARGE };
        let sizem = Err(Refusal::Nested(error_code::RMP | error_code::SIZEM));
        assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &part, true), sizem);
        let mapped_small = Operand { mapping: PageSize::Size4K, ..LARGE };
        assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &mapped_small, true), failed(Code::FailSizeMismatch));
        assert_eq!(psmash(&rmp, &mut memory, LARGE.pa), Code::Success);
        assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &LARGE, true), failed(Code::FailSizeMismatch));
        let part = Operand { mapping: PageSize::Size4K, ..part };
        assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &part, true), done(false));
    }

    #[test]
    fn pvalidate_is_for_vmpl_0_and_the_owner() {
        let (rmp, mut memory) = fixture();
        let low = Caller { vmpl: 1, ..CALLER };
        assert_eq!(pvalidate(&rmp, &mut memory, low, &SMALL, true), failed(Code::FailPermission));
        let other = Caller { asid: 8, ..CALLER };
        let refused = Err(Refusal::Nested(error_code::RMP));
        assert_eq!(pvalidate(&rmp, &mut memory, other, &SMALL, true), refused);
        let elsewhere = Operand { gpa: 0xA000, ..SMALL };
        assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &elsewhere, true), refused);
        let misaligned = Operand { gpa: 0x60_1000, ..LARGE };
        assert_eq!(pvalidate(&rmp, &mut memory, CALLER, &misaligned, true), failed(Code::FailInput));
    }

    #[test]
    fn rmpadjust_gives_no_more_than_one_has() {
        let (rmp, mut memory) = fixture();
        pvalidate(&rmp, &mut memory, CALLER, &SMALL, true).unwrap();
        let mut adjust =
            |vmpl, rdx| rmpadjust(&rmp, &mut memory, Caller { vmpl, ..CALLER }, &SMALL, Adjustment::decode(rdx));
        assert_eq!(adjust(0, 0x0301), Ok(Code::Success));
        assert_eq!(adjust(1, 0x0302), Ok(Code::Success));
        assert_eq!(adjust(1, 0x0402), Ok(Code::FailPermission), "execute, which it lacks");
        assert_eq!(adjust(1, 0x0301), Ok(Code::FailPermission), "its own rights");
        assert_eq!(adjust(1, 0x0300), Ok(Code::FailPermission), "those above it");
        assert_eq!(adjust(0, 0x0304), Ok(Code::FailInput), "no such VMPL");
        let query = rmpquery(&rmp, &mut memory, CALLER, &SMALL, 2).unwrap().unwrap();
        assert_eq!(query.permissions.bits(), 3);
    }

    #[test]
    fn only_vmpl_0_makes_a_vmsa() {
        let (rmp, mut memory) = fixture();
        pvalidate(&rmp, &mut memory, CALLER, &SMALL, true).unwrap();
        let vmsa = Adjustment::decode(0x1_0001);
        assert_eq!(rmpadjust(&rmp, &mut memory, CALLER, &SMALL, vmsa), Ok(Code::Success));
        assert!(rmpquery(&rmp, &mut memory, CALLER, &SMALL, 1).unwrap().unwrap().vmsa);
        let low = Caller { vmpl: 1, ..CALLER };
        let refused = rmpadjust(&rmp, &mut memory, low, &SMALL, Adjustment::decode(0x1_0002));
        assert_eq!(refused, Ok(Code::FailPermission));
    }

    #[test]
    fn rmpadjust_of_a_page_that_is_not_validated_is_a_vc() {
        let (rmp, mut memory) = fixture();
        let adjusted = rmpadjust(&rmp, &mut memory, CALLER, &SMALL, Adjustment::decode(1));
        assert_eq!(adjusted, Err(Refusal::NotValidated));
        assert_eq!(rmpquery(&rmp, &mut memory, CALLER, &SMALL, 1), Err(Refusal::NotValidated));
    }

    #[test]
    fn rmpquery_looks_down_only() {
        let (rmp, mut memory) = fixture();
        pvalidate(&rmp, &mut memory, CALLER, &LARGE, true).unwrap();
        assert_eq!(rmpquery(&rmp, &mut memory, CALLER, &LARGE, 0), Ok(Err(Code::FailPermission)));
        assert_eq!(rmpquery(&rmp, &mut memory, CALLER, &LARGE, 9), Ok(Err(Code::FailInput)));
        let expected = Queried { permissions: Permissions::NONE, vmsa: false, size: PageSize::Size2M };
        assert_eq!(rmpquery(&rmp, &mut memory, CALLER, &LARGE, 3), Ok(Ok(expected)));
    }
}
