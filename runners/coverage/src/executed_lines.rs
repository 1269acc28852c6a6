//! The lines of source that a row executed, for those who want to know no more.

use std::collections::{BTreeMap, BTreeSet};

use crate::coverage::Coverage;
use crate::lines::{Line, Lines};

/// A file, as the compiler was given it, and a line of it, from 1.
pub type SourceLine = (String, u32);

/// By row, the lines of which it executed an instruction, as far as there is debug info. What the compiler has inlined
/// counts where it was written.
#[must_use]
pub fn executed_lines(coverage: &Coverage, lines: &Lines) -> BTreeMap<String, BTreeSet<SourceLine>> {
    let mut known: BTreeMap<u64, Vec<Line>> = BTreeMap::new();
    let mut of_row = |row: &str| {
        let mut found = BTreeSet::new();
        for executed in coverage.of(row) {
            let lines = known.entry(executed.function.start).or_insert_with(|| lines.of(executed.function));
            let reached = lines
                .iter()
                .filter(|line| executed.ranges.iter().any(|range| range.start < line.end && line.start < range.end));
            found.extend(reached.map(|line| (line.file.clone(), line.line)));
        }
        found
    };
    coverage.rows().map(|row| (row.to_owned(), of_row(row))).collect()
}
