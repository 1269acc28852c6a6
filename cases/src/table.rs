//! The table: every row for each of its VM types.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use privet_harness::case::{Case, PayloadFile};
use privet_harness::host::Host;
use privet_harness::leaks::Holdings;
use privet_harness::need::Need;
use privet_harness::outcome::{Lack, LackOf, Outcome, Stop};
use privet_harness::platform::Platform;
use privet_harness::vm_type::VmType;

use crate::row::Row;

/// A row for one of its VM types: what has an id and a verdict. All else is the row's.
pub struct Entry {
    /// `<vm>.<group>.<name>[.<variant>]`, stable.
    pub id: String,
    /// The type of its VMs.
    pub vm: VmType,
    platform: Platform,
    row: Arc<Row>,
}

impl Deref for Entry {
    type Target = Row;

    fn deref(&self) -> &Row {
        &self.row
    }
}

/// What came of telling a row.
pub struct Ran {
    /// How it ended.
    pub outcome: Outcome,
    /// What it was told in; none if it was not.
    case: Option<Case>,
}

impl Ran {
    /// How often KVM_RUN returned.
    pub fn exits(&self) -> u64 {
        self.case.as_ref().map_or(0, |case| case.trace().exits())
    }

    /// What helps to understand the outcome: the last exits, one line each.
    pub fn details(&self) -> Vec<String> {
        self.case.as_ref().map(Case::exit_lines).unwrap_or_default()
    }
}

impl Entry {
    /// `row` for each of its types.
    pub fn all_of(row: Row) -> Vec<Entry> {
        let row = Arc::new(row);
        let platforms = Platform::ALL.into_iter().filter(|platform| row.types.contain(*platform));
        let entry = |platform: Platform| {
            let vm = platform.vm_type();
            Entry { id: format!("{vm}.{}", row.name), vm, platform, row: Arc::clone(&row) }
        };
        platforms.map(entry).collect()
    }

    /// Why `host` cannot run this row, if it cannot.
    pub fn unmet(&self, host: &Host) -> Option<Lack> {
        // Without it a VM that can have private memory has none.
        let own = self.platform.has_private_memory().then_some(&Need::GuestMemfd);
        let needs = || own.into_iter().chain(&self.needs);
        // What is about the other vendor is that first of all, whatever this one lacks.
        let vendor = needs().filter(|need| matches!(need, Need::Vendor(..))).find_map(|need| need.unmet(host, self.vm));
        let of_type = || host.why_not(self.vm).map(|reason| Lack { of: LackOf::VmType, reason });
        vendor.or_else(of_type).or_else(|| needs().find_map(|need| need.unmet(host, self.vm)))
    }

    /// Tells the story once, in this process, and holds it to leaving nothing behind.
    pub fn run(&self, host: Arc<Host>, seed: u64, limit: Duration) -> Ran {
        if let Some(lack) = self.unmet(&host) {
            return Ran { outcome: Err(Stop::Skip(lack)), case: None };
        }
        let before = Holdings::now();
        let payload = PayloadFile { name: privet_payloads::GENERAL.name, elf: privet_payloads::GENERAL.elf };
        let case = Case::new(host, self.platform, payload, seed, limit);
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.story)(&case)))
            .unwrap_or_else(|panic| Err(Stop::Error(format!("the row panicked: {}", panic_text(panic.as_ref())))));
        let outcome = outcome.and_then(|()| match before.more_now() {
            None => Ok(()),
            Some(more) => Err(Stop::Error(format!("the row passed and left behind: {more}"))),
        });
        Ran { outcome, case: Some(case) }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::Types;

    #[test]
    fn a_row_has_an_id_for_each_of_its_types() {
        let ids = |types| {
            let row = Row::new("slots.row.variant", types, "A row.", |_| Ok(()));
            Entry::all_of(row).into_iter().map(|entry| entry.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(Types::ALL).len(), Platform::ALL.len());
        assert_eq!(ids(Types::TDX), ["tdx.slots.row.variant"]);
        assert_eq!(ids(Types::UNENCRYPTED), ["plain.slots.row.variant", "upm.slots.row.variant"]);
        assert_eq!(
            ids(Types::WITH_PRIVATE_MEMORY),
            ["upm.slots.row.variant", "snp.slots.row.variant", "tdx.slots.row.variant"]
        );
        assert_eq!(ids(Types::PLAIN), ["plain.slots.row.variant"]);
    }

    #[test]
    fn ids_are_unique_and_safe_in_shells_and_reports() {
        let mut seen = BTreeSet::new();
        for Entry { id, vm, .. } in crate::table() {
            let segments: Vec<&str> = id.split('.').collect();
            let is_safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
            assert!(segments.len() >= 3 && segments[0] == vm.name(), "{id}");
            assert!(segments.iter().all(|segment| !segment.is_empty() && segment.chars().all(is_safe)), "{id}");
            assert!(seen.insert(id.clone()), "{id} is there twice");
        }
    }
}
