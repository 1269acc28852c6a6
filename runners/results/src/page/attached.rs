//! What belongs to the verdicts: what upstream's tests say, truth tables, coverage, mutants.

use std::collections::HashSet;

use maud::{Markup, html};

use super::counted;
use crate::document::{CoveredFile, Document, MutantTrial, TruthTable};

pub(super) fn upstream(document: &Document) -> Markup {
    html! {
        table {
            thead { tr { th scope="col" { "the kernel's own test" } th scope="col" { "says" } th scope="col" { "relation" } th scope="col" class="count" { "rows" } } }
            tbody {
                @for test in &document.upstream {
                    @let name = test.test.split(": ").next().unwrap_or_default();
                    @let rows = document.rows.iter().filter(|row| row.upstream.iter().any(|of| of.test == name)).count();
                    tr {
                        th scope="row" { (test.test) }
                        td class=(test.verdict.as_deref().unwrap_or("none")) { (test.verdict.as_deref().unwrap_or("–")) }
                        td { b { (test.relation) } @if !test.reason.is_empty() { " " span class="quiet" { (test.reason) } } }
                        td class="count" { (rows) }
                    }
                }
            }
        }
    }
}

/// Truth tables. Where the last column has names of rows behind their type, a cell in the column of a type leads to its row.
pub(super) fn truth_tables(document: &Document) -> Markup {
    let ids: HashSet<&str> = document.rows.iter().map(|row| row.id.as_str()).collect();
    let row_of = |table: &TruthTable, column: usize, line: &[String]| {
        let (kind, name) = (table.columns.get(column)?, line.last()?);
        Some(format!("{kind}.{name}")).filter(|id| ids.contains(id.as_str()))
    };
    html! {
        @for table in &document.truth_tables {
            table {
                caption { (table.title) }
                thead { tr { @for column in &table.columns { th scope="col" { (column) } } } }
                tbody {
                    @for line in &table.lines {
                        tr {
                            @for (column, cell) in line.iter().enumerate() {
                                td {
                                    @match row_of(table, column, line) {
                                        Some(id) => { a href={ "#" (id) } { (cell) } }
                                        None => { (cell) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn coverage(files: &[CoveredFile]) -> Markup {
    let percent = |file: &CoveredFile| 100.0 * file.executed as f64 / file.lines.max(1) as f64;
    html! {
        table {
            thead { tr { th scope="col" { "file" } th scope="col" class="count" { "lines" } th scope="col" class="count" { "executed" } th scope="col" { "share" } } }
            tbody {
                @for file in files {
                    tr {
                        th scope="row" { code { (file.file) } }
                        td class="count" { (file.lines) }
                        td class="count" { (file.executed) }
                        td { meter min="0" max="100" value=(format!("{:.1}", percent(file))) {} " " (format!("{:.1} %", percent(file))) }
                    }
                }
            }
        }
    }
}

pub(super) fn mutants(trials: &[MutantTrial]) -> Markup {
    let with = |fates: &[&str]| trials.iter().filter(|trial| fates.contains(&trial.fate.as_str())).collect::<Vec<_>>();
    let (killed, survived) = (with(&["killed", "killed_at_boot"]), with(&["survived"]));
    let unreached = with(&["unreached"]);
    html! {
        p {
            (counted(trials.len(), "change")) " of the kernel's source: " (killed.len()) " noticed, "
            b { (survived.len()) " survived" } ", " (unreached.len()) " that no row reaches."
        }
        @for (title, trials) in [("Survivors", survived), ("Unreached", unreached)] {
            @if !trials.is_empty() {
                details open[title == "Survivors"] {
                    summary { (title) }
                    ul class="ids" { @for trial in trials { li { code { (trial.name) } } } }
                }
            }
        }
    }
}
