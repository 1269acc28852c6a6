//! Coverage of this very program, which has debug info, as an independent reader of the format sees it.

use lcov::Reader;
use lcov::record::Record as Entry;
use object::{Object, ObjectSymbol};
use privet_coverage::{Coverage, Lines, Symbols, write_lcov};
use privet_sim::{Block, Record};

#[inline(never)]
fn covered_by_a_row(number: u64) -> u64 {
    std::hint::black_box(number) + 1
}

/// The line that the function above begins in.
const COVERED: u32 = line!() - 5;

#[inline(never)]
fn covered_by_no_row(number: u64) -> u64 {
    std::hint::black_box(number) + 2
}

/// /proc/kallsyms of a kernel that is this program, and the size of each of its functions.
fn kallsyms(elf: &[u8]) -> (String, Vec<(String, u64, u64)>) {
    let file = object::File::parse(elf).unwrap();
    let named = file.symbols().filter(|symbol| symbol.size() > 0 && symbol.address() != 0);
    let functions: Vec<_> =
        named.map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address(), symbol.size())).collect();
    let text = functions.iter().map(|(name, address, _)| format!("{address:x} t {name}\n")).collect();
    (text, functions)
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "needs debug info, which only a build for development has")]
fn lines_that_a_row_executed_are_told_apart_from_others() {
    assert_eq!(covered_by_a_row(1) + covered_by_no_row(1), 5, "both are in this program");
    let elf = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let (text, functions) = kallsyms(&elf);
    let symbols = Symbols::parse(&text);
    let mut lines = Lines::new();
    lines.add(None, &elf, &symbols).unwrap();
    assert!(!lines.is_empty(), "tests are built with debug info");

    let (_, start, bytes) = functions.iter().find(|(name, ..)| name.contains("covered_by_a_row")).unwrap();
    let block = Block { start: *start, bytes: *bytes, times: 7, instructions: 1 };
    let mut coverage = Coverage::new(symbols);
    coverage.add("plain.a", &Record { kernel: vec![block], ..Record::default() });
    let mut trace = Vec::new();
    write_lcov(&coverage, &lines, &mut trace).unwrap();

    let entries: Vec<Entry> = Reader::new(trace.as_slice()).collect::<Result<_, _>>().unwrap();
    assert!(entries.contains(&Entry::TestName { name: "plain.a".into() }));
    let is_here = |entry: &Entry| matches!(entry, Entry::SourceFile { path } if path.ends_with("tests/lcov.rs"));
    assert!(entries.iter().any(is_here));
    let is_entered =
        |entry: &Entry| matches!(entry, Entry::FunctionData { name, count: 7 } if name.contains("covered_by_a_row"));
    assert!(entries.iter().any(is_entered));
    let is_hit = |entry: &Entry| matches!(entry, Entry::LineData { line, count: 7, .. } if *line >= COVERED && *line < COVERED + 4);
    assert!(entries.iter().any(is_hit));
    assert!(
        !entries
            .iter()
            .any(|entry| matches!(entry, Entry::FunctionName { name, .. } if name.contains("covered_by_no_row")))
    );
}
