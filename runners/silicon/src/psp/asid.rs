//! Whose each ASID is, and what has to be flushed before it can be another's (55766, "Guest lifecycle").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Status;
use crate::encryption::Key;
use crate::{Rule, Rules};

/// An ASID that is not clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Asid {
    /// A guest's: its key is in the memory controller. Its processors run only after its launch is finished.
    Owned { key: Key, runnable: bool },
    /// Was a guest's; caches and data fabric may hold data of it.
    Dirty,
}

/// Which ASIDs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsidRange {
    /// First of plain SEV guests; those below are for SEV-ES and SNP guests (CPUID 8000001F EDX).
    pub min_sev: u16,
    /// Last (CPUID 8000001F ECX).
    pub max: u16,
}

/// What the secure processor and the memory controllers know of ASIDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asids {
    range: AsidRange,
    used: BTreeMap<u16, Asid>,
    /// For each processor whether it has executed WBINVD since an ASID became dirty.
    written_back: Vec<bool>,
    rules: Rules,
}

impl Asids {
    pub(super) fn new(range: AsidRange, processors: usize) -> Asids {
        Asids { range, used: BTreeMap::new(), written_back: vec![false; processors], rules: Rules::default() }
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Gives `asid` and its key to a guest: `encrypted_state` for SEV-ES and SNP.
    pub(super) fn activate(
        &mut self,
        asid: u32,
        key: Key,
        encrypted_state: bool,
        runnable: bool,
    ) -> Result<u16, Status> {
        let asid = u16::try_from(asid).map_err(|_| Status::InvalidAsid)?;
        let range = match encrypted_state {
            true => 1..self.range.min_sev.min(self.range.max + 1),
            false => self.range.min_sev.max(1)..self.range.max + 1,
        };
        match self.used.get(&asid) {
            _ if !range.contains(&asid) && self.rules.hold(Rule::AsidRange) => Err(Status::InvalidAsid),
            Some(Asid::Owned { .. }) if self.rules.hold(Rule::AsidOwned) => Err(Status::AsidOwned),
            Some(Asid::Dirty) if self.rules.hold(Rule::DirtyAsid) => Err(Status::DfFlushRequired),
            _ => {
                self.used.insert(asid, Asid::Owned { key, runnable });
                Ok(asid)
            }
        }
    }

    /// Takes it from its guest. Its data may still be in caches anywhere.
    pub(super) fn deactivate(&mut self, asid: u16) {
        self.used.insert(asid, Asid::Dirty);
        self.written_back.fill(false);
    }

    /// The guest's launch is finished: VMRUN takes the ASID.
    pub(super) fn make_runnable(&mut self, asid: u16) {
        if let Some(Asid::Owned { runnable, .. }) = self.used.get_mut(&asid) {
            *runnable = true;
        }
    }

    /// SNP_INIT: no ASID may be trusted to be clean.
    pub(super) fn dirty_all(&mut self) {
        for asid in 1..=self.range.max {
            self.deactivate(asid);
        }
    }

    /// A processor executed WBINVD.
    pub(super) fn written_back(&mut self, processor: usize) {
        if let Some(done) = self.written_back.get_mut(processor) {
            *done = true;
        }
    }

    /// DF_FLUSH: makes dirty ASIDs clean (55766, DF_FLUSH; 56860, SNP_DF_FLUSH).
    pub(super) fn flush(&mut self) -> Result<(), Status> {
        if self.written_back.contains(&false) && self.rules.hold(Rule::WriteBack) {
            return Err(Status::WbinvdRequired);
        }
        self.used.retain(|_, asid| *asid != Asid::Dirty);
        Ok(())
    }

    /// Whether an ASID waits for a flush.
    pub(super) fn any_dirty(&self) -> bool {
        self.used.values().any(|asid| *asid == Asid::Dirty)
    }

    /// The key of an ASID.
    #[cfg(test)]
    pub(super) fn key(&self, asid: u16) -> Option<Key> {
        match self.used.get(&asid) {
            Some(&Asid::Owned { key, .. }) => Some(key),
            _ => None,
        }
    }

    /// The key of an ASID with which VMRUN may be executed.
    pub(super) fn runnable_key(&self, asid: u16) -> Option<Key> {
        match self.used.get(&asid) {
            Some(&Asid::Owned { key, runnable }) if runnable || !self.rules.hold(Rule::RunnableGuest) => Some(key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::numbered(1);

    fn asids() -> Asids {
        Asids::new(AsidRange { min_sev: 16, max: 31 }, 2)
    }

    #[test]
    fn each_kind_of_guest_has_its_range() {
        let mut asids = asids();
        for (asid, encrypted_state) in [(0, true), (16, true), (15, false), (32, false), (0x1_0010, false)] {
            assert_eq!(asids.activate(asid, KEY, encrypted_state, true), Err(Status::InvalidAsid), "{asid}");
        }
        for (asid, encrypted_state) in [(1, true), (15, true), (16, false), (31, false)] {
            assert_eq!(asids.activate(asid, KEY, encrypted_state, true), Ok(asid as u16));
            assert_eq!(asids.activate(asid, KEY, encrypted_state, true), Err(Status::AsidOwned));
        }
    }

    #[test]
    fn a_used_asid_comes_back_after_wbinvd_everywhere_and_a_flush() {
        let mut asids = asids();
        asids.activate(1, KEY, true, true).unwrap();
        asids.written_back(0);
        asids.written_back(1);
        asids.deactivate(1);
        assert_eq!(asids.activate(1, KEY, true, true), Err(Status::DfFlushRequired));
        assert_eq!(asids.flush(), Err(Status::WbinvdRequired));
        asids.written_back(0);
        assert_eq!(asids.flush(), Err(Status::WbinvdRequired));
        asids.written_back(1);
        assert_eq!(asids.flush(), Ok(()));
        assert_eq!(asids.activate(1, KEY, true, true), Ok(1));
    }

    #[test]
    fn the_key_is_there_for_guests_that_may_run() {
        let mut asids = asids();
        asids.activate(1, KEY, true, false).unwrap();
        assert_eq!(asids.runnable_key(1), None);
        asids.make_runnable(1);
        assert_eq!(asids.runnable_key(1), Some(KEY));
        asids.deactivate(1);
        assert_eq!(asids.runnable_key(1), None);
    }
}
