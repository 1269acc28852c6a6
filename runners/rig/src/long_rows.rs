//! Rows that take long: a run begins with them, so that no machine is still at one when the others have nothing left.
//! Which they are is kept beside the snapshots.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::plan::CaseRun;

const FILE: &str = "long-rows.json";

/// Whoever takes so many microseconds by the guest's clock takes long.
const LONG: u64 = 1_000_000;

/// The rows that took long when they ran last, with how long that was, in microseconds.
#[derive(Debug)]
pub(crate) struct LongRows {
    path: PathBuf,
    known: BTreeMap<String, u64>,
}

impl LongRows {
    /// Those that are kept in this directory; none where nobody kept any.
    pub(crate) fn kept_in(directory: &Path) -> LongRows {
        let path = directory.join(FILE);
        let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        LongRows { path, known }
    }

    /// The numbers of these rows as they are to be run: those first that take long, the longest of them at the very
    /// beginning.
    pub(crate) fn first(&self, cases: &[CaseRun]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        order.sort_by_key(|case| Reverse(self.known.get(&cases[*case].id)));
        order
    }

    /// A row has ended, so long after it started.
    pub(crate) fn ended(&mut self, case: &CaseRun, duration_us: u64) {
        let once = duration_us / case.schedules.len().max(1) as u64;
        if once >= LONG {
            self.known.insert(case.id.clone(), once);
        } else {
            self.known.remove(&case.id);
        }
    }

    /// Keeps them for other runs. Where that cannot be done, those take a little longer.
    pub(crate) fn keep(&self) {
        let unfinished = self.path.parent().map(tempfile::NamedTempFile::new_in);
        let Some(Ok(mut file)) = unfinished else { return };
        if serde_json::to_writer(&mut file, &self.known).is_ok() {
            let _ = file.persist(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_comes_first_the_next_time() {
        let directory = tempfile::tempdir().unwrap();
        let case = |id: &str| CaseRun {
            id: id.into(),
            label: id.into(),
            seed: 1,
            limit_ms: 1,
            keep: false,
            schedules: Vec::new(),
        };
        let cases = ["a", "b", "c", "d"].map(case);
        let mut rows = LongRows::kept_in(directory.path());
        assert_eq!(rows.first(&cases), [0, 1, 2, 3]);
        for (case, seconds) in cases.iter().zip([0, 2, 0, 3]) {
            rows.ended(case, seconds * 1_000_000);
        }
        // Twelve schedules of a quarter of a second.
        rows.ended(&CaseRun { schedules: vec![0; 12], ..cases[2].clone() }, 3_000_000);
        rows.keep();
        let mut rows = LongRows::kept_in(directory.path());
        assert_eq!(rows.first(&cases), [3, 1, 0, 2]);
        rows.ended(&cases[3], 500_000);
        assert_eq!(rows.first(&cases), [1, 0, 2, 3]);
    }
}
