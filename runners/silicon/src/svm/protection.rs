//! What VMRUN makes of the SEV bits of a VMCB (APM volume 2, 15.34.3, 15.35.3 and table 15-41).

use privet_cpu::vector;
use serde::{Deserialize, Serialize};

use super::control::Control;
use super::sev_features::SevFeatures;
use super::vmcb::{misc, misc2};
use super::vmsa::Vmsa;
use crate::board::Board;
use crate::encryption::Key;
use crate::event::{KIND_EXCEPTION, KIND_SOFTWARE, VALID};
use crate::rmp::{Entry, PageState};
use crate::{Rule, Rules};

/// How much of the guest that runs is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Protection {
    pub(super) asid: u16,
    /// The guest's key.
    pub(super) key: Key,
    /// Of SEV-ES and SNP guests.
    pub(super) registers: Option<EncryptedRegisters>,
}

/// What a guest has whose registers are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EncryptedRegisters {
    /// System-physical address of the VMSA.
    pub(super) vmsa: u64,
    /// SEV_FEATURES of the VMSA.
    pub(super) sev_features: u64,
    /// MSR GHCB.
    pub(super) ghcb: u64,
    /// Of an SNP guest: the virtual machine privilege level.
    pub(super) vmpl: Option<u8>,
}

/// SEV_FEATURES: the guest's memory is under the RMP.
const SNP_ACTIVE: u64 = 1 << 0;

/// Why VMRUN does not enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// VMEXIT_INVALID.
    Invalid,
    /// VMEXIT_BUSY: the VMSA runs already.
    Busy,
}

impl Protection {
    /// How VMRUN of this VMCB protects the guest; none with the SEV bits clear.
    pub(super) fn of(
        board: &mut impl Board,
        control: &Control,
        features: &SevFeatures,
        rules: Rules,
    ) -> Result<Option<Protection>, Refused> {
        if control.misc & misc::SEV == 0 {
            // SEV_ES without SEV means nothing that could be entered.
            return if control.misc & misc::SEV_ES == 0 { Ok(None) } else { Err(Refused::Invalid) };
        }
        let asid = encrypted_asid(control, features, rules).ok_or(Refused::Invalid)?;
        let key = board.guest_key(asid).ok_or(Refused::Invalid)?;
        let registers = match control.misc & misc::SEV_ES {
            0 => None,
            _ => Some(encrypted_registers(board, control, (asid, key), rules)?),
        };
        Ok(Some(Protection { asid, key, registers }))
    }

    /// SNP is active in the guest, at this VMPL.
    pub(super) fn vmpl(&self) -> Option<u8> {
        self.registers.and_then(|registers| registers.vmpl)
    }

    pub(super) fn vmsa(&self) -> Option<Vmsa> {
        self.registers.map(|registers| Vmsa { pa: registers.vmsa, key: self.key })
    }

    /// MSR SEV_STATUS as the guest reads it (15.34.10).
    pub(super) fn sev_status(&self) -> u64 {
        1 | self.registers.map_or(0, |registers| 1 << 1 | registers.sev_features << 2)
    }
}

/// The ASID, if it is one of those for such guests and nested paging is on (15.34.3).
fn encrypted_asid(control: &Control, features: &SevFeatures, rules: Rules) -> Option<u16> {
    let asid = u16::try_from(control.asid).ok().filter(|&asid| asid >= 1 && asid <= features.asids.max)?;
    let with_es = control.misc & misc::SEV_ES != 0;
    let fits = with_es == (asid < features.asids.min_sev) || !rules.hold(Rule::AsidKind);
    (control.nested_paging() && fits && (features.encrypted_state || !with_es)).then_some(asid)
}

fn encrypted_registers(
    board: &mut impl Board,
    control: &Control,
    (asid, key): (u16, Key),
    rules: Rules,
) -> Result<EncryptedRegisters, Refused> {
    let vmsa = Vmsa { pa: control.vmsa, key };
    let valid = vmsa.pa & 0xfff == 0
        && vmsa.pa.saturating_add(0x1000) <= board.size()
        // LBR virtualization has to be on (15.35.3).
        && (control.misc2 & misc2::LBR != 0 || !rules.hold(Rule::LbrVirtualization))
        && (!injects_software_event(control) || !rules.hold(Rule::InjectedSoftware));
    if !valid {
        return Err(Refused::Invalid);
    }
    let sev_features = vmsa.features(board);
    if sev_features & !SNP_ACTIVE != 0 && rules.hold(Rule::VmsaFeatures) {
        return Err(Refused::Invalid);
    }
    let snp = sev_features & SNP_ACTIVE != 0;
    check_vmsa_page(board, vmsa.pa, snp.then_some(asid), rules)?;
    let vmpl = snp.then(|| vmsa.vmpl(board) & 3);
    Ok(EncryptedRegisters { vmsa: vmsa.pa, sev_features, ghcb: control.ghcb, vmpl })
}

/// The host cannot know where a software event would go on (15.35.7).
fn injects_software_event(control: &Control) -> bool {
    let event = control.event_injection;
    let of_instruction = matches!(event as u8, vector::BP | vector::OF);
    event & VALID != 0
        && match event >> 8 & 7 {
            KIND_SOFTWARE => true,
            KIND_EXCEPTION => of_instruction,
            _ => false,
        }
}

/// A VMSA is the hypervisor's page, or for an SNP guest the guest's own, mutable and marked as VMSA (table 15-41). Its
/// guest-physical address is nothing that VMRUN knows.
fn check_vmsa_page(board: &mut impl Board, vmsa: u64, owner: Option<u16>, rules: Rules) -> Result<(), Refused> {
    let Some(rmp) = board.rmp() else {
        return if owner.is_some() { Err(Refused::Invalid) } else { Ok(()) };
    };
    let entry = rmp.lookup(board, vmsa);
    let allowed = match (owner, entry.map(|entry| entry.state)) {
        (None, state) => state.is_none_or(|state| state.hypervisor_owned()),
        (Some(asid), Some(PageState::GuestValid(owned))) => {
            (owned.vmsa || !rules.hold(Rule::VmsaMarked)) && (owned.asid == asid || !rules.hold(Rule::VmsaOwner))
        }
        (Some(_), _) => false,
    };
    match entry {
        _ if !allowed => Err(Refused::Invalid),
        Some(Entry { in_use: true, .. }) if rules.hold(Rule::VmsaBusy) => Err(Refused::Busy),
        _ => Ok(()),
    }
}
