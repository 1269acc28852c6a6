//! Coverage as lines of source, in lcov's format of trace files (geninfo(1)): each row is a test (`TN`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use crate::coverage::{Coverage, Executed};
use crate::lines::{Line, Lines};
use crate::symbols::Function;

/// What a row executed of a file.
#[derive(Default)]
struct Source {
    /// By line: how many times.
    lines: BTreeMap<u32, u64>,
    /// By name: where it begins, and how many times it was entered.
    functions: BTreeMap<String, (u32, u64)>,
}

/// Writes one section for each row and file of which it executed anything.
///
/// Lines that were not executed are told too, of functions that any row has reached and of all functions of modules,
/// but only in the first section that could: who reads the file adds up what sections say.
///
/// # Errors
/// Of `write(2)`.
pub fn write_lcov(coverage: &Coverage, lines: &Lines, out: &mut impl Write) -> io::Result<()> {
    let mut writer = Writer { lines, known: BTreeMap::new() };
    let mut first = true;
    for row in coverage.rows() {
        let mut sources = BTreeMap::new();
        for executed in coverage.of(row) {
            writer.add(&executed, &mut sources);
        }
        if std::mem::take(&mut first) {
            for function in coverage.symbols().functions().filter(|function| function.module.is_some()) {
                writer.add(&Executed { function, ranges: Vec::new() }, &mut sources);
            }
        }
        for (file, source) in sources {
            section(row, &file, &source, out)?;
        }
    }
    Ok(())
}

struct Writer<'a> {
    lines: &'a Lines,
    /// The lines of the functions that were met already, by address.
    known: BTreeMap<u64, Vec<Line>>,
}

impl Writer<'_> {
    /// Adds what was executed of a function, and, if it is the first time that it is met, what was not.
    fn add(&mut self, executed: &Executed<'_>, sources: &mut BTreeMap<String, Source>) {
        let Executed { function, ranges } = executed;
        let is_new = !self.known.contains_key(&function.start);
        let lines = self.known.entry(function.start).or_insert_with(|| self.lines.of(function));
        let mut without = BTreeSet::new();
        for line in lines.iter() {
            let of_line = ranges.iter().filter(|range| range.start < line.end && line.start < range.end);
            match of_line.map(|range| range.times).max() {
                Some(times) => {
                    let source = sources.entry(line.file.clone()).or_default();
                    let known = source.lines.entry(line.line).or_default();
                    *known = times.max(*known);
                }
                None => drop(without.insert((line.file.as_str(), line.line))),
            }
        }
        if is_new {
            for (file, line) in without {
                sources.entry(file.to_owned()).or_default().lines.entry(line).or_default();
            }
        }
        if (is_new || !ranges.is_empty())
            && let Some(line) = lines.first()
        {
            let times = entered(function, executed);
            let functions = &mut sources.entry(line.file.clone()).or_default().functions;
            functions.entry(function.name.clone()).or_insert((line.line, 0)).1 += times;
        }
    }
}

/// How many times a function was entered: as often as its first instruction was executed, or if that was before
/// recording began, as often as the first that was.
fn entered(function: &Function, executed: &Executed<'_>) -> u64 {
    let first = executed.ranges.iter().find(|range| range.start >= function.start);
    first.map_or(0, |range| range.times)
}

fn section(row: &str, file: &str, source: &Source, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "TN:{row}\nSF:{file}")?;
    for (name, (line, _)) in &source.functions {
        writeln!(out, "FN:{line},{name}")?;
    }
    for (name, (_, times)) in &source.functions {
        writeln!(out, "FNDA:{times},{name}")?;
    }
    let entered = source.functions.values().filter(|(_, times)| *times > 0).count();
    writeln!(out, "FNF:{}\nFNH:{entered}", source.functions.len())?;
    for (line, times) in &source.lines {
        writeln!(out, "DA:{line},{times}")?;
    }
    let hit = source.lines.values().filter(|times| **times > 0).count();
    writeln!(out, "LF:{}\nLH:{hit}\nend_of_record", source.lines.len())
}
