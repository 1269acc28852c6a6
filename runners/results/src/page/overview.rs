//! The table seen from far: groups by VM types, each a bar that leads to its rows.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::summary::{bar, counts};
use super::{Page, parts};
use crate::document::{Outcome, Word};

impl Page<'_> {
    pub(super) fn overview(&self) -> Markup {
        let mut vms: Vec<&str> = Vec::new();
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.document.rows {
            let (vm, group, _) = parts(&row.id);
            if !vms.contains(&vm) {
                vms.push(vm);
            }
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let mut cells: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
        for result in &self.document.results {
            let (vm, group, _) = parts(&result.id);
            cells.entry((group, vm)).or_default().push(result);
        }
        html! {
            div class="wide" role="region" aria-label="Groups by VM types" tabindex="0" {
                table class="overview" {
                    caption { "Results by group and VM type" }
                    thead { tr { th scope="col" { "group" } @for vm in &vms { th scope="col" { (vm) } } } }
                    tbody {
                        @for group in &groups {
                            tr {
                                th scope="row" { (group) }
                                @for vm in &vms {
                                    td { @if let Some(results) = cells.get(&(*group, *vm)) { (cell(vm, group, results)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cell(vm: &str, group: &str, results: &[&Outcome]) -> Markup {
    let counts = counts(results.iter().copied());
    let skips = counts.with(Word::Skip);
    let ran = results.len() - skips;
    html! {
        a href={ "#" (vm) "." (group) } aria-label={ (vm) " " (group) ": " (counts.in_words()) } {
            (bar(&counts))
            span {
                @if counts.red() > 0 { b class="bad" { (counts.red()) " red" } " of " }
                (if ran == 0 { format!("{skips} skipped") } else { ran.to_string() })
            }
        }
    }
}
