//! Which instructions of which functions each row executed.

use std::collections::BTreeMap;

use privet_sim::{Block, Record};

use crate::symbols::{Function, Symbols};

/// Instructions that were executed equally often, by linear address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// How many times.
    pub times: u64,
}

/// What a row executed of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed<'a> {
    /// The function.
    pub function: &'a Function,
    /// Of it, in order, without overlaps.
    pub ranges: Vec<Range>,
}

/// What rows have executed of one kernel.
#[derive(Debug, Default)]
pub struct Coverage {
    symbols: Symbols,
    rows: BTreeMap<String, Record>,
}

impl Coverage {
    /// Of a kernel with these functions, nothing yet.
    #[must_use]
    pub fn new(symbols: Symbols) -> Coverage {
        Coverage { symbols, rows: BTreeMap::new() }
    }

    /// A row has executed this, too.
    pub fn add(&mut self, row: &str, record: &Record) {
        self.rows.entry(row.to_owned()).or_default().add(record);
    }

    /// The kernel's functions.
    #[must_use]
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// The rows, in the order of their names.
    pub fn rows(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    /// What all rows executed together.
    #[must_use]
    pub fn sum(&self) -> Record {
        let mut sum = Record::default();
        self.rows.values().for_each(|record| sum.add(record));
        sum
    }

    /// What a row executed, function by function, in the order of their addresses.
    #[must_use]
    pub fn of(&self, row: &str) -> Vec<Executed<'_>> {
        let Some(record) = self.rows.get(row) else { return Vec::new() };
        let mut functions: Vec<Executed<'_>> = Vec::new();
        for mut range in disjoint(&record.kernel) {
            while range.start < range.end {
                let Some(function) = self.symbols.at(range.start) else { break };
                let here = Range { end: range.end.min(function.end), ..range };
                range.start = here.end;
                match functions.last_mut() {
                    Some(last) if last.function.start == function.start => last.ranges.push(here),
                    _ => functions.push(Executed { function, ranges: vec![here] }),
                }
            }
        }
        functions
    }

    /// The rows that executed anything of a function of this name, in the kernel or in any module.
    pub fn reaching<'a>(&'a self, function: &'a str) -> impl Iterator<Item = &'a str> {
        let named: Vec<&Function> = self.symbols.functions().filter(|known| known.name == function).collect();
        let reaches = move |record: &Record| {
            record.kernel.iter().any(|block| named.iter().any(|it| (it.start..it.end).contains(&block.start)))
        };
        self.rows.iter().filter(move |(_, record)| reaches(record)).map(|(row, _)| row.as_str())
    }
}

/// Blocks, which may overlap, as ranges that do not.
fn disjoint(blocks: &[Block]) -> Vec<Range> {
    let mut changes: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for block in blocks {
        changes.entry(block.start).or_default().0 += block.times;
        changes.entry(block.start.wrapping_add(block.bytes)).or_default().1 += block.times;
    }
    let mut ranges: Vec<Range> = Vec::new();
    let (mut start, mut times) = (0, 0);
    for (address, (begins, ends)) in changes {
        match ranges.last_mut() {
            _ if times == 0 => {}
            Some(last) if last.end == start && last.times == times => last.end = address,
            _ => ranges.push(Range { start, end: address, times }),
        }
        (start, times) = (address, times + begins - ends);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::tests::symbols;

    const DO_IT: u64 = 0xffff_ffff_8100_0100;
    const KVM_INIT: u64 = 0xffff_ffff_c000_0000;

    fn record(blocks: &[(u64, u64, u64)]) -> Record {
        let block = |&(start, bytes, times)| Block { start, bytes, times, instructions: 1 };
        Record { kernel: blocks.iter().map(block).collect(), ..Record::default() }
    }

    #[test]
    fn overlapping_blocks_become_ranges() {
        let record = record(&[(DO_IT, 0x10, 2), (DO_IT + 8, 0x10, 3), (DO_IT + 0x18, 8, 3)]);
        let range = |start, end, times| Range { start: DO_IT + start, end: DO_IT + end, times };
        assert_eq!(disjoint(&record.kernel), [range(0, 8, 2), range(8, 0x10, 5), range(0x10, 0x20, 3)]);
    }

    #[test]
    fn a_row_has_what_it_executed_function_by_function() {
        let mut coverage = Coverage::new(symbols());
        coverage.add("plain.a", &record(&[(0x100, 4, 1), (DO_IT + 0xfc, 8, 1)]));
        coverage.add("plain.a", &record(&[(KVM_INIT, 4, 1)]));
        coverage.add("plain.b", &record(&[(DO_IT, 4, 1)]));
        let names: Vec<_> = coverage.of("plain.a").iter().map(|it| it.function.name.clone()).collect();
        assert_eq!(names, ["do_it", "_etext", "kvm_init"]);
        assert_eq!(coverage.reaching("do_it").collect::<Vec<_>>(), ["plain.a", "plain.b"]);
        assert_eq!(coverage.reaching("kvm_init").collect::<Vec<_>>(), ["plain.a"]);
        assert_eq!(coverage.reaching("kvm_exit").count(), 0);
        assert!(coverage.of("plain.c").is_empty());
    }
}
