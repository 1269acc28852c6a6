//! Failures that a leaf answers although all is well: what KVM does about them is code, too.

use serde::{Deserialize, Serialize};

use super::leaf::HostLeaf;
use super::status::{Code, Operand, Status};

/// One call of a leaf that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fault {
    leaf: HostLeaf,
    /// How many more calls come first.
    after: u32,
    status: Status,
}

/// The failures to come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Injector {
    faults: Vec<Fault>,
}

impl Injector {
    /// Has the `nth` call of `leaf` from now on, counted from 1, answer `status` without doing anything.
    pub fn add(&mut self, leaf: HostLeaf, nth: u32, status: Status) {
        self.faults.push(Fault { leaf, after: nth.saturating_sub(1), status });
    }

    /// Reads `LEAF:NTH:CODE[:OPERAND]`, for example `TDH.MEM.PAGE.AUG:2:OPERAND_BUSY:SEPT`, and adds it.
    ///
    /// # Errors
    /// One line: which word means nothing.
    pub fn add_text(&mut self, text: &str) -> Result<(), String> {
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
        self.add(leaf, nth, status);
        Ok(())
    }

    /// `leaf` is called: what it answers instead, if this call fails.
    pub(super) fn called(&mut self, leaf: HostLeaf) -> Option<Status> {
        let due = self.faults.iter().position(|fault| fault.leaf == leaf && fault.after == 0);
        let status = due.map(|index| self.faults.remove(index).status);
        for fault in self.faults.iter_mut().filter(|fault| fault.leaf == leaf) {
            fault.after = fault.after.saturating_sub(1);
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
        injector.add_text("TDH.MEM.PAGE.AUG:2:OPERAND_BUSY:SEPT").unwrap();
        injector.add_text("TDH.MEM.TRACK:1:PREVIOUS_TLB_EPOCH_BUSY").unwrap();
        assert_eq!(injector.called(HostLeaf::MemPageAug), None);
        assert_eq!(injector.called(HostLeaf::MemPageAug), Some(Code::OperandBusy.on(Operand::Sept)));
        assert_eq!(injector.called(HostLeaf::MemPageAug), None);
        assert_eq!(injector.called(HostLeaf::MemTrack), Some(Code::PreviousTlbEpochBusy.into()));
        assert_eq!(injector.called(HostLeaf::MemTrack), None);
    }

    #[test]
    fn two_calls_in_a_row_may_fail() {
        let mut injector = Injector::default();
        injector.add(HostLeaf::MemPageRemove, 1, Code::OperandBusy.into());
        injector.add(HostLeaf::MemPageRemove, 2, Code::OperandBusy.into());
        let answers: Vec<bool> = (0..3).map(|_| injector.called(HostLeaf::MemPageRemove).is_some()).collect();
        assert_eq!(answers, [true, true, false]);
    }

    #[test]
    fn what_means_nothing_is_named() {
        let refused = |text: &str| Injector::default().add_text(text).unwrap_err();
        assert_eq!(refused("TDH.TEA:1:OPERAND_BUSY"), "TDH.TEA is no leaf of SEAMCALL");
        assert_eq!(refused("TDH.MEM.TRACK:0:OPERAND_BUSY"), "0 is no count from 1 on");
        assert_eq!(refused("TDH.MEM.TRACK:1:COLD"), "COLD is no completion status");
        assert_eq!(refused("TDH.MEM.TRACK:1:OPERAND_BUSY:TEA"), "TEA is no operand");
        assert!(refused("TDH.MEM.TRACK").starts_with("it is LEAF"));
    }
}
