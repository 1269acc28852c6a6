//! `privet list --upstream`: the kernel's own selftests, function by function, and the rows that cover them.

use std::io::Write;

use privet_cases::Entry;
use privet_kselftest::catalogue::{Function, Origin, Standing, TESTS, Test};
use serde::Serialize;

use super::show::show;
use crate::args::{List, ListFormat};
use crate::exit::{Early, Status};
use crate::selection::{names_among, no_such};

/// A function as `--format json` shows it.
#[derive(Serialize)]
struct Listed<'a> {
    test: &'a str,
    function: &'a str,
    /// The series that it was posted in, if it is not merged.
    series: Option<&'a str>,
    rows: Vec<&'a str>,
    /// The rows among them that check more.
    exceeded_by: Vec<&'a str>,
    not_covered: Option<&'a str>,
    /// The function that it is a step of.
    part_of: Option<&'a str>,
}

/// Writes what is covered to `out`.
///
/// # Errors
/// If a filter matches nothing.
pub fn list(args: &List, out: impl Write) -> Result<Status, Early> {
    let table = privet_cases::table();
    let names: Vec<String> = TESTS.iter().map(|test| test.name.to_owned()).collect();
    let selected = names_among(&names, &args.selection.filters, false).map_err(|filter| {
        no_such("no test of upstream's matches the filter", &names, filter, "privet list --upstream")
    })?;
    let tests: Vec<&Test> = TESTS.iter().filter(|test| selected.iter().any(|name| name == test.name)).collect();
    let text = match args.format {
        ListFormat::Pretty => pretty(&tests, &table),
        ListFormat::Json => json(&tests, &table),
    };
    show(&text, out)
}

/// The rows that name this function, and whether they exceed it.
fn rows<'a>(table: &'a [Entry], test: &Test, function: &Function) -> Vec<(&'a str, bool)> {
    let names = |row: &'a Entry| {
        let counterpart = row.upstream.iter().find(|c| c.test == test.name && c.function == function.name)?;
        Some((row.id.as_str(), counterpart.is_exceeded))
    };
    table.iter().filter_map(names).collect()
}

fn pretty(tests: &[&Test], table: &[Entry]) -> String {
    let mut text = String::new();
    let (mut covered, mut functions) = (0, 0);
    for test in tests {
        let origin = match test.origin {
            Origin::Merged => String::new(),
            Origin::Series(series) => format!(" (not merged: {series})"),
        };
        text += &format!("{}{origin}\n", test.name);
        let width = test.functions.iter().map(|function| function.name.len()).max().unwrap_or_default();
        for function in test.functions {
            let rows = rows(table, test, function);
            let by = match function.standing {
                Standing::Covered => stems(&rows),
                Standing::NotCovered(why) => format!("not covered: {why}"),
                Standing::PartOf(whole) => format!("a part of {whole}"),
            };
            functions += usize::from(!matches!(function.standing, Standing::PartOf(_)));
            covered += usize::from(function.standing == Standing::Covered);
            text += &format!("    {:width$}  {by}\n", function.name);
        }
    }
    text + &format!(
        "{covered} of {functions} functions of {} tests are covered; + marks rows that check more\n",
        tests.len()
    )
}

/// Rows by what their variants have in common, each with the number of its variants.
fn stems(rows: &[(&str, bool)]) -> String {
    let stem = |id: &str| id.splitn(4, '.').take(3).collect::<Vec<_>>().join(".");
    let groups = rows.chunk_by(|(a, _), (b, _)| stem(a) == stem(b));
    let named = groups.map(|group| {
        let more = if group.iter().any(|(_, exceeds)| *exceeds) { "+" } else { "" };
        match group {
            [(id, _)] => format!("{id}{more}"),
            _ => format!("{}{more} ({})", stem(group[0].0), group.len()),
        }
    });
    named.collect::<Vec<_>>().join(", ")
}

fn json(tests: &[&Test], table: &[Entry]) -> String {
    let functions = tests.iter().flat_map(|test| test.functions.iter().map(move |function| (test, function)));
    let lines = functions.map(|(test, function)| {
        let rows = rows(table, test, function);
        let series = match test.origin {
            Origin::Merged => None,
            Origin::Series(series) => Some(series),
        };
        let listed = Listed {
            test: test.name,
            function: function.name,
            series,
            exceeded_by: rows.iter().filter(|(_, exceeds)| *exceeds).map(|(id, _)| *id).collect(),
            not_covered: match function.standing {
                Standing::NotCovered(why) => Some(why),
                Standing::Covered | Standing::PartOf(_) => None,
            },
            part_of: match function.standing {
                Standing::PartOf(whole) => Some(whole),
                Standing::Covered | Standing::NotCovered(_) => None,
            },
            rows: rows.into_iter().map(|(id, _)| id).collect(),
        };
        format!("{}\n", serde_json::json!(listed))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use privet_kselftest::catalogue;

    use super::*;

    #[test]
    fn every_counterpart_of_a_row_is_in_the_catalogue() {
        for row in privet_cases::table() {
            for counterpart in &row.upstream {
                let known = catalogue::test(counterpart.test).and_then(|test| test.function(counterpart.function));
                assert!(known.is_some(), "{}: the catalogue has no {counterpart}", row.id);
            }
        }
    }

    #[test]
    fn every_function_is_covered_or_says_why_it_is_not() {
        let table = privet_cases::table();
        for test in TESTS {
            for function in test.functions {
                let has_rows = !rows(&table, test, function).is_empty();
                assert_eq!(has_rows, function.standing == Standing::Covered, "{}: {function:?}", test.name);
            }
        }
    }

    #[test]
    fn variants_are_counted() {
        let rows = [("upm.a.b", false), ("upm.c.d.x", true), ("upm.c.d.y", false)];
        assert_eq!(stems(&rows), "upm.a.b, upm.c.d+ (2)");
    }
}
