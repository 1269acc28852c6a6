//! What the module keeps of a TD: TDR and TDCS (TDX module base architecture, "TD Management").

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::cpuid::TdCpuid;
use super::measurement::{Digest384, Mrtd, Rtmrs, register};
use super::sept::Sept;
use super::status::{Code, Operand, Status};
use super::td_params::{Checked, FLEXIBLE_PENDING_VE, FREQUENCY_UNIT, GPAW_52, TdParams};
use super::tracking::Epochs;
use super::{SEPT_VE_DISABLE, TDCS_PAGES};
use crate::encryption::Key;

/// TD_CTLS: an access to a pending page leaves the TD and does not raise #VE.
pub(super) const PENDING_VE_DISABLE: u64 = 1 << 0;
/// TD_CTLS: CPUID tells x2APIC ids.
pub(super) const ENUM_TOPOLOGY: u64 = 1 << 1;

/// How far a TD has come in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lifecycle {
    /// It has an HKID; these packages have its key.
    HkidAssigned { packages: BTreeSet<usize> },
    /// All packages have its key.
    KeysConfigured,
    /// Nobody runs it any more.
    Blocked,
    /// It has no HKID: its pages can be reclaimed.
    Teardown,
}

/// A TD, from TDH.MNG.CREATE on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Td {
    pub(super) hkid: u16,
    pub(super) key: Key,
    pub(super) lifecycle: Lifecycle,
    /// Pages that are its own, besides the TDR.
    pub(super) children: u64,
    /// Control pages.
    pub(super) tdcx: u8,
    /// It has met an error after which nothing is good any more.
    pub(super) fatal: bool,
    /// From TDH.MNG.INIT on.
    pub(super) control: Option<Box<Control>>,
}

impl Td {
    pub(super) fn new(hkid: u16, key: Key) -> Td {
        let lifecycle = Lifecycle::HkidAssigned { packages: BTreeSet::new() };
        Td { hkid, key, lifecycle, children: 0, tdcx: 0, fatal: false, control: None }
    }

    /// Leaves about a TD whose memory can be reached.
    pub(super) fn require_keys(&self) -> Result<(), Status> {
        match self.lifecycle {
            _ if self.fatal => Err(Code::TdFatal.on(Operand::Tdr)),
            Lifecycle::KeysConfigured => Ok(()),
            Lifecycle::HkidAssigned { .. } => Err(Code::TdKeysNotConfigured.on(Operand::Tdr)),
            Lifecycle::Blocked | Lifecycle::Teardown => Err(Code::LifecycleStateIncorrect.on(Operand::Tdr)),
        }
    }

    /// The same, and all control pages are there.
    pub(super) fn require_tdcs(&self) -> Result<(), Status> {
        self.require_keys()?;
        match usize::from(self.tdcx) < TDCS_PAGES {
            true => Err(Code::TdcsNotAllocated.on(Operand::Tdr)),
            false => Ok(()),
        }
    }

    /// The same, and it is initialised.
    pub(super) fn control(&mut self) -> Result<&mut Control, Status> {
        self.require_tdcs()?;
        self.control.as_deref_mut().ok_or(Code::OpStateIncorrect.on(Operand::OpState))
    }
}

/// TDCS: what TDH.MNG.INIT makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Control {
    pub(super) attributes: u64,
    pub(super) xfam: u64,
    pub(super) max_vcpus: u16,
    pub(super) config_flags: u64,
    pub(super) td_ctls: u64,
    pub(super) notify_enables: u64,
    /// TSC of the TD is that of the host times this, 48 fraction bits, plus the offset.
    pub(super) tsc_multiplier: u64,
    pub(super) tsc_offset: u64,
    #[serde(with = "register")]
    pub(super) mrconfigid: Digest384,
    #[serde(with = "register")]
    pub(super) mrowner: Digest384,
    #[serde(with = "register")]
    pub(super) mrownerconfig: Digest384,
    pub(super) mrtd: Mrtd,
    pub(super) rtmrs: Rtmrs,
    pub(super) cpuid: TdCpuid,
    pub(super) sept: Sept,
    pub(super) epochs: Epochs,
    /// The roots of the vCPUs by index.
    pub(super) vcpus: Vec<u64>,
    pub(super) x2apic_ids: BTreeSet<u32>,
    /// How many vCPUs some processor is associated with.
    pub(super) associated: u32,
}

impl Control {
    /// Of these parameters. `host_khz` and `now` are the host's TSC: the TD's begins at 0.
    pub(super) fn new(params: &TdParams, checked: &Checked, cpuid: TdCpuid, host_khz: u64, now: u64) -> Control {
        let khz = u64::from(checked.tsc_frequency) * FREQUENCY_UNIT;
        let tsc_multiplier = ((u128::from(khz) << 48) / u128::from(host_khz.max(1))) as u64;
        let shared_bit = if checked.config_flags & GPAW_52 != 0 { 1 << 51 } else { 1 << 47 };
        Control {
            attributes: checked.attributes,
            xfam: checked.xfam,
            max_vcpus: checked.max_vcpus,
            config_flags: checked.config_flags,
            td_ctls: if checked.attributes & SEPT_VE_DISABLE != 0 { PENDING_VE_DISABLE } else { 0 },
            notify_enables: 0,
            tsc_multiplier,
            tsc_offset: scaled(now, tsc_multiplier).wrapping_neg(),
            mrconfigid: params.mrconfigid,
            mrowner: params.mrowner,
            mrownerconfig: params.mrownerconfig,
            mrtd: Mrtd::new(),
            rtmrs: Rtmrs::new(),
            cpuid,
            sept: Sept::new(checked.config_flags & GPAW_52 != 0, shared_bit),
            epochs: Epochs::new(),
            vcpus: Vec::new(),
            x2apic_ids: BTreeSet::new(),
            associated: 0,
        }
    }

    /// Width of its addresses, 48 or 52; the last bit is the shared one.
    pub(super) fn gpaw(&self) -> u8 {
        if self.config_flags & GPAW_52 != 0 { 52 } else { 48 }
    }

    /// Whether it is built, and runs.
    pub(super) fn is_runnable(&self) -> bool {
        self.mrtd.is_closed()
    }

    /// Leaves about a TD that runs.
    pub(super) fn require_runnable(&self) -> Result<(), Status> {
        match self.is_runnable() {
            true => Ok(()),
            false => Err(Code::OpStateIncorrect.on(Operand::OpState)),
        }
    }

    /// Leaves that build it.
    pub(super) fn require_building(&self) -> Result<(), Status> {
        match self.is_runnable() {
            false => Ok(()),
            true => Err(Code::OpStateIncorrect.on(Operand::OpState)),
        }
    }

    /// The TD's TSC when the host's is `now`.
    pub(super) fn tsc(&self, now: u64) -> u64 {
        scaled(now, self.tsc_multiplier).wrapping_add(self.tsc_offset)
    }

    /// Bits of TD_CTLS that the TD may write.
    pub(super) fn writable_controls(&self) -> u64 {
        let flexible = self.config_flags & FLEXIBLE_PENDING_VE != 0;
        ENUM_TOPOLOGY | if flexible { PENDING_VE_DISABLE } else { 0 }
    }
}

/// A TSC times a multiplier with 48 fraction bits (SDM volume 3, 27.6.5).
fn scaled(tsc: u64, multiplier: u64) -> u64 {
    ((u128::from(tsc) * u128::from(multiplier)) >> 48) as u64
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;
    use crate::tdx::cpuid::configurable;
    use crate::tdx::test_machine::{chip, cpuid, td_params};

    #[test]
    fn its_time_begins_at_0_and_has_its_own_speed() {
        let params = TdParams::read_from_bytes(&td_params()).unwrap();
        let checked = params.check(&chip()).unwrap();
        let values = vec![[0; 4]; configurable(&cpuid).len()];
        let table = TdCpuid::new(&cpuid, &values, 7).unwrap();
        // 1 GHz on a host of 2 GHz.
        let control = Control::new(&params, &checked, table, 2_000_000, 1 << 40);
        assert_eq!(control.tsc(1 << 40), 0);
        assert_eq!(control.tsc((1 << 40) + 2000), 1000);
        assert_eq!(control.gpaw(), 48);
        assert_eq!(control.td_ctls, PENDING_VE_DISABLE);
        assert_eq!(control.writable_controls(), ENUM_TOPOLOGY);
    }
}
