//! What rows take of this host while they run beside others, in this process or another: key ids, and the host itself.

use std::collections::BTreeMap;
use std::io;

use privet_cases::Entry;
use privet_fleet::{Held, NoTokens, Node, Tokens, Wanted};
use privet_harness::outcome::LackOf;

use crate::interrupt::Interrupt;
use crate::plan::Job;

/// The slots of this host.
#[derive(Debug)]
pub struct Slots {
    tokens: Tokens,
    claims: BTreeMap<String, Claim>,
}

/// What a row takes.
#[derive(Clone, Debug, Default)]
struct Claim {
    alone: bool,
    wanted: Vec<Wanted>,
}

/// Why a row got no slot.
#[derive(Debug)]
pub enum NoSlot {
    /// The run has ended.
    Interrupted,
    /// This host never has what it takes.
    Lacks(LackOf, String),
    /// The files of slots cannot be used.
    Broken(io::Error),
}

impl Slots {
    /// The slots of this host for the rows of this table.
    ///
    /// # Errors
    /// If there is no place for files of slots.
    pub fn of_this_host(table: &[Entry]) -> io::Result<Self> {
        Ok(Self::new(Tokens::of_this_machine()?, &Node::here(Vec::new()).key_ids, table))
    }

    /// Slots with these tokens on a host that has so many key ids.
    pub fn new(tokens: Tokens, key_ids: &BTreeMap<String, u64>, table: &[Entry]) -> Self {
        let claim = |row: &Entry| {
            // A host that does not count them says nothing about how many there are.
            let counted = row.vm.key_ids().and_then(|kind| Some((kind, *key_ids.get(kind)?)));
            let wanted = counted.map(|(kind, of)| Wanted {
                kind: kind.to_owned(),
                count: row.guests,
                of: usize::try_from(of).unwrap_or(usize::MAX),
            });
            Claim { alone: row.is_alone || row.is_risky, wanted: wanted.into_iter().collect() }
        };
        Self { tokens, claims: table.iter().map(|row| (row.id.clone(), claim(row))).collect() }
    }

    /// Takes what the row of this job needs, as soon as others have given it back.
    ///
    /// # Errors
    /// If it will never be there, or the run ends first.
    pub fn take(&self, job: &Job, interrupt: &Interrupt) -> Result<Held, NoSlot> {
        let claim = self.claims.get(&job.id).cloned().unwrap_or_default();
        let taken = self.tokens.take(claim.alone, &claim.wanted, &|| interrupt.cause().is_some());
        taken.map_err(|why| match why {
            NoTokens::Stopped => NoSlot::Interrupted,
            NoTokens::Io(error) => NoSlot::Broken(error),
            NoTokens::TooFew(Wanted { kind, count, of }) => NoSlot::Lacks(
                LackOf::Resource,
                format!(
                    "needs {count} key ids of `{kind}` at a time, this host has {of}: see /sys/fs/cgroup/misc.capacity"
                ),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan;

    #[test]
    fn a_row_takes_what_it_says_and_waits_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let table = privet_cases::table();
        let row = |is: &dyn Fn(&&Entry) -> bool| table.iter().find(is).unwrap();
        let snp = row(&|row| row.vm.key_ids() == Some("sev_es") && row.guests == 1 && !row.is_alone && !row.is_risky);
        let plain = row(&|row| row.vm.key_ids().is_none() && !row.is_risky);
        let risky = row(&|row| row.is_risky);
        let alone = row(&|row| row.is_alone);
        let slots = |count| {
            let tokens = Tokens::within(dir.path()).unwrap();
            Slots::new(tokens, &BTreeMap::from([("sev_es".to_owned(), count)]), &table)
        };
        let job = |row: &Entry| plan::jobs(std::slice::from_ref(&row.id), 1, 7, Duration::ZERO).remove(0);
        let interrupt = Interrupt::new().unwrap();
        let held = slots(1).take(&job(snp), &interrupt).unwrap();
        drop(slots(1).take(&job(plain), &interrupt).unwrap());
        interrupt.end(crate::interrupt::Cause::Unwritable);
        // Others would have to wait: for a key id, and for the host.
        assert!(matches!(slots(1).take(&job(snp), &interrupt), Err(NoSlot::Interrupted)));
        assert!(matches!(slots(1).take(&job(risky), &interrupt), Err(NoSlot::Interrupted)));
        assert!(matches!(slots(1).take(&job(alone), &interrupt), Err(NoSlot::Interrupted)));
        drop(held);
        drop(slots(1).take(&job(snp), &interrupt).unwrap());
        assert!(matches!(slots(0).take(&job(snp), &interrupt), Err(NoSlot::Lacks(LackOf::Resource, _))));
    }
}
