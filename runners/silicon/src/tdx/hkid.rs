//! Whose each HKID is, and what has to be flushed before it can be another's (the KOT; TDX module base architecture,
//! "Key Management Tables").

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::status::{Code, Operand, Status};

/// An HKID that is not free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Hkid {
    /// The module's own.
    Reserved,
    /// A TD's.
    Assigned,
    /// Was a TD's; the caches of these packages may hold data of it.
    Flushed { packages: BTreeSet<usize> },
}

/// The HKIDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hkids {
    first: u16,
    count: u16,
    used: BTreeMap<u16, Hkid>,
}

impl Hkids {
    pub(super) fn new(first: u16, count: u16) -> Hkids {
        Hkids { first, count, used: BTreeMap::new() }
    }

    /// The HKID in a register, if the module has it.
    fn known(&self, value: u64, operand: Operand) -> Result<u16, Status> {
        let range = u64::from(self.first)..u64::from(self.first) + u64::from(self.count);
        match range.contains(&value) {
            true => Ok(value as u16),
            false => Err(Code::OperandInvalid.on(operand)),
        }
    }

    /// SYS.CONFIG: the module keeps one for itself.
    pub(super) fn reserve(&mut self, value: u64, operand: Operand) -> Result<u16, Status> {
        let hkid = self.known(value, operand)?;
        self.used.insert(hkid, Hkid::Reserved);
        Ok(hkid)
    }

    /// MNG.CREATE: a TD gets one that nobody has.
    pub(super) fn assign(&mut self, value: u64, operand: Operand) -> Result<u16, Status> {
        let hkid = self.known(value, operand)?;
        if self.used.contains_key(&hkid) {
            return Err(Code::HkidNotFree.on(operand));
        }
        self.used.insert(hkid, Hkid::Assigned);
        Ok(hkid)
    }

    /// VPFLUSHDONE: nobody uses it any more, but all packages' caches may hold its data.
    pub(super) fn retire(&mut self, hkid: u16, packages: BTreeSet<usize>) {
        self.used.insert(hkid, Hkid::Flushed { packages });
    }

    /// CACHE.WB on a package.
    pub(super) fn written_back(&mut self, package: usize) -> Result<(), Status> {
        let mut any = false;
        for hkid in self.used.values_mut() {
            if let Hkid::Flushed { packages } = hkid {
                any |= packages.remove(&package);
            }
        }
        if any { Ok(()) } else { Err(Code::NoHkidReadyToWbcache.into()) }
    }

    /// KEY.FREEID: it is nobody's.
    pub(super) fn free(&mut self, hkid: u16) -> Result<(), Status> {
        match self.used.get(&hkid) {
            Some(Hkid::Flushed { packages }) if packages.is_empty() => {
                self.used.remove(&hkid);
                Ok(())
            }
            Some(Hkid::Flushed { .. }) => Err(Code::WbcacheNotComplete.on(Operand::Wbcache)),
            _ => Err(Code::KeyStateIncorrect.on(Operand::Kot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hkids() -> Hkids {
        let mut hkids = Hkids::new(32, 4);
        assert_eq!(hkids.reserve(32, Operand::R8), Ok(32));
        hkids
    }

    #[test]
    fn an_hkid_has_one_owner() {
        let mut hkids = hkids();
        assert_eq!(hkids.assign(33, Operand::Rdx), Ok(33));
        assert_eq!(hkids.assign(33, Operand::Rdx), Err(Code::HkidNotFree.on(Operand::Rdx)));
        assert_eq!(hkids.assign(32, Operand::Rdx), Err(Code::HkidNotFree.on(Operand::Rdx)), "the module's");
    }

    #[test]
    fn the_hosts_keyids_are_nobodys() {
        for value in [0, 31, 36, 1 << 32] {
            assert_eq!(hkids().assign(value, Operand::Rdx), Err(Code::OperandInvalid.on(Operand::Rdx)), "{value}");
        }
    }

    #[test]
    fn each_package_is_written_back_before_another_gets_it() {
        let mut hkids = hkids();
        hkids.assign(33, Operand::Rdx).unwrap();
        assert_eq!(hkids.free(33), Err(Code::KeyStateIncorrect.on(Operand::Kot)), "it is in use");
        assert_eq!(hkids.written_back(0), Err(Code::NoHkidReadyToWbcache.into()));
        hkids.retire(33, BTreeSet::from([0, 1]));
        assert_eq!(hkids.written_back(0), Ok(()));
        assert_eq!(hkids.written_back(0), Err(Code::NoHkidReadyToWbcache.into()), "once is enough");
        assert_eq!(hkids.free(33), Err(Code::WbcacheNotComplete.on(Operand::Wbcache)));
        assert_eq!(hkids.assign(33, Operand::Rdx), Err(Code::HkidNotFree.on(Operand::Rdx)));
        assert_eq!(hkids.written_back(1), Ok(()));
        assert_eq!(hkids.free(33), Ok(()));
        assert_eq!(hkids.assign(33, Operand::Rdx), Ok(33));
    }
}
