//! Failures that a leaf answers although all is well: what KVM does about them is code, too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::leaf::HostLeaf;
use super::status::{Code, Operand, Status};

/// One call of a leaf that fails: `LEAF:NTH:CODE[:OPERAND]`, for example `TDH.MEM.PAGE.AUG:2:OPERAND_BUSY:SEPT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which leaf.
    pub leaf: HostLeaf,
    /// Which call of it, counted from 1.
    pub nth: u32,
    /// What it answers, without doing anything.
    pub status: Status,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let words: Vec<&str> = text.split(':').collect();
        let (&[leaf, nth, code], rest) = words.split_first_chunk().ok_or("it is LEAF:NTH:CODE[:OPERAND]")?;
        let leaf = HostLeaf::named(leaf).ok_or_else(|| format!("{leaf} is no leaf of SEAMCALL"))?;
        let nth: u32 = nth.parse().ok().filter(|&nth| nth > 0).ok_or_else(|| format!("{nth} is no count from 1 on"))?;
        let code = Code::named(code).ok_or_else(|| format!("{code} is no completion status"))?;
        let status = match rest {
            [] => code.into(),
            [name] => code.on(Operand::named(name).ok_or_else(|| format!("{name} is no operand"))?),
            _ => return Err("it is LEAF:NTH:CODE[:OPERAND]".into()),
        };
        Ok(Fault { leaf, nth, status })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.leaf.name(), self.nth, self.status.code.name())?;
        match Operand::ALL.iter().find(|&&operand| operand as u32 == self.status.detail && self.status.detail != 0) {
            Some(operand) => write!(f, ":{}", operand.name()),
            None => Ok(()),
        }
    }
}

/// The failures to come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Injector {
    faults: Vec<Fault>,
}

impl Injector {
    /// One more; its calls are counted from now on.
    pub fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// `leaf` is called: what it answers instead, if this call fails.
    pub(super) fn called(&mut self, leaf: HostLeaf) -> Option<Status> {
        let due = self.faults.iter().position(|fault| fault.leaf == leaf && fault.nth <= 1);
        let status = due.map(|index| self.faults.remove(index).status);
        for fault in self.faults.iter_mut().filter(|fault| fault.leaf == leaf) {
            fault.nth = fault.nth.saturating_sub(1);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_and_no_other() {
        let mut injector = Injector::default();
        injector.add("TDH.MEM.PAGE.AUG:2:OPERAND_BUSY:SEPT".parse().unwrap());
        injector.add("TDH.MEM.TRACK:1:PREVIOUS_TLB_EPOCH_BUSY".parse().unwrap());
        assert_eq!(injector.called(HostLeaf::MemPageAug), None);
        assert_eq!(injector.called(HostLeaf::MemPageAug), Some(Code::OperandBusy.on(Operand::Sept)));
        assert_eq!(injector.called(HostLeaf::MemPageAug), None);
        assert_eq!(injector.called(HostLeaf::MemTrack), Some(Code::PreviousTlbEpochBusy.into()));
        assert_eq!(injector.called(HostLeaf::MemTrack), None);
    }

    #[test]
    fn two_calls_in_a_row_may_fail() {
        let mut injector = Injector::default();
        for nth in [1, 2] {
            injector.add(Fault { leaf: HostLeaf::MemPageRemove, nth, status: Code::OperandBusy.into() });
        }
        let answers: Vec<bool> = (0..3).map(|_| injector.called(HostLeaf::MemPageRemove).is_some()).collect();
        assert_eq!(answers, [true, true, false]);
    }

    #[test]
    fn a_fault_is_told_as_it_is_read() {
        for text in ["TDH.MEM.PAGE.AUG:2:OPERAND_BUSY:SEPT", "TDH.SYS.DISABLE:1:SYS_BUSY"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_means_nothing_is_named() {
        let refused = |text: &str| text.parse::<Fault>().unwrap_err();
        assert_eq!(refused("TDH.TEA:1:OPERAND_BUSY"), "TDH.TEA is no leaf of SEAMCALL");
        assert_eq!(refused("TDH.MEM.TRACK:0:OPERAND_BUSY"), "0 is no count from 1 on");
        assert_eq!(refused("TDH.MEM.TRACK:1:COLD"), "COLD is no completion status");
        assert_eq!(refused("TDH.MEM.TRACK:1:OPERAND_BUSY:TEA"), "TEA is no operand");
        assert!(refused("TDH.MEM.TRACK").starts_with("it is LEAF"));
    }
}
