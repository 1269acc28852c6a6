//! Rows by places: the whole table, group by group.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::{Page, class_of, parts, red_anchor, took, word_of};
use crate::document::{Outcome, UpstreamVerdict, Word};
use crate::run_file::{Counterpart, RowFacts};

/// The results of a row, by place.
type Cells<'a> = BTreeMap<usize, Vec<&'a Outcome>>;

impl Page<'_> {
    pub(super) fn matrix(&self) -> Markup {
        let matrix = self.document.matrix();
        let disagreeing = self.document.disagreeing();
        let nothing = Cells::new();
        let same_group = |a: &RowFacts, b: &RowFacts| {
            let ((vm, group, _), (other_vm, other_group, _)) = (parts(&a.id), parts(&b.id));
            (vm, group) == (other_vm, other_group)
        };
        let mut rows: Vec<&RowFacts> = self.document.rows.iter().collect();
        // Groups of the table are not always in one piece.
        let mut order: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for row in &rows {
            let (vm, group, _) = parts(&row.id);
            let next = order.len();
            order.entry((vm, group)).or_insert(next);
        }
        rows.sort_by_key(|row| {
            let (vm, group, _) = parts(&row.id);
            order[&(vm, group)]
        });
        html! {
            (self.overview())
            (filter())
            div id="matrix" {
                @for group in rows.chunk_by(|a, b| same_group(a, b)) {
                    (self.group(group, |id| matrix.get(id).unwrap_or(&nothing), &disagreeing))
                }
            }
        }
    }

    fn group<'a>(
        &self,
        rows: &[&RowFacts],
        cells: impl Fn(&str) -> &'a Cells<'a>,
        disagreeing: &BTreeSet<&str>,
    ) -> Markup {
        let (vm, group, _) = parts(&rows[0].id);
        // What is below the fold is laid out when somebody comes there; until then its height is guessed.
        let height = 90 + 29 * rows.len();
        html! {
            section class="group" id={ (vm) "." (group) } style={ "contain-intrinsic-size:auto " (height) "px" } aria-label={ (vm) "." (group) } {
                table class="rows" {
                    caption { (vm) "." b { (group) } }
                    colgroup {
                        col class="name"; col class="about";
                        @for _ in &self.document.places { col class="place"; }
                    }
                    thead {
                        tr {
                            th scope="col" { "row" }
                            th scope="col" { "what it checks" }
                            @for (number, seat) in self.document.places.iter().enumerate() {
                                th scope="col" class="place" title=(seat.name()) { span class="number" { (number + 1) } " " (seat.short_name()) }
                            }
                        }
                    }
                    tbody {
                        @for row in rows {
                            (self.row(row, cells(&row.id), disagreeing.contains(row.id.as_str())))
                        }
                    }
                }
            }
        }
    }

    fn row(&self, row: &RowFacts, cells: &Cells<'_>, differs: bool) -> Markup {
        let (_, _, name) = parts(&row.id);
        let all = || cells.values().flatten();
        let mut classes: Vec<&str> = Vec::new();
        classes.extend(all().any(|result| result.is_red() || result.quarantined.is_some()).then_some("is-red"));
        classes.extend(all().any(|result| result.verdict == Word::Skip).then_some("is-skip"));
        classes.extend(all().any(|result| result.verdict == Word::Pass).then_some("is-pass"));
        classes.extend(differs.then_some("is-differ"));
        html! {
            tr id=(row.id) class=(classes.join(" ")) {
                th scope="row" { (breakable(name)) }
                td {
                    details {
                        summary { (row.about) }
                        (facts(row, &self.document.upstream))
                    }
                }
                @for place in 0..self.document.places.len() {
                    @match cells.get(&place) {
                        Some(results) => { (self.cell(results)) }
                        None => { td class="none" { "–" } }
                    }
                }
            }
        }
    }

    fn cell(&self, results: &[&Outcome]) -> Markup {
        let worst = results[0];
        let more = results.len() - 1;
        html! {
            td class=(class_of(worst)) {
                @match worst.verdict {
                    Word::Pass => { (word_of(worst)) " " small { (took(worst.duration_us)) } }
                    Word::Skip => {
                        @let number = self.reason_number(worst).unwrap_or_default();
                        a href={ "#skip-" (number) } title=(worst.reason) { "skip " small { (number) } }
                    }
                    _ => { a href={ "#" (red_anchor(self.number_of(worst))) } { (word_of(worst)) } }
                }
                @if more > 0 {
                    @let same = results.iter().filter(|result| result.verdict == worst.verdict).count();
                    small { " " (same) " of " (results.len()) }
                }
            }
        }
    }

    /// The number of a result among all.
    pub(super) fn number_of(&self, result: &Outcome) -> usize {
        self.document.results.iter().position(|other| std::ptr::eq(other, result)).unwrap_or_default()
    }
}

/// What decides which rows are shown. The choice needs no script; the text does, and is hidden without one.
fn filter() -> Markup {
    let choices = [
        ("all", "all"),
        ("red", "red"),
        ("differ", "differ"),
        ("skip", "skipped somewhere"),
        ("pass", "passed somewhere"),
    ];
    html! {
        form class="filter" role="search" aria-label="Rows to show" {
            fieldset {
                legend { "Show rows that are" }
                @for (value, name) in choices {
                    label { input type="radio" name="show" id={ "show-" (value) } value=(value) checked[value == "all"]; " " (name) }
                }
            }
            label class="text" hidden { "whose id or sentence has " input type="search" id="words" autocomplete="off" placeholder="upm convert"; }
            output id="shown" aria-live="polite" {}
        }
    }
}

/// What the table says of a row, and what upstream's tests of the same say, if they have run.
pub(super) fn facts(row: &RowFacts, upstream: &[UpstreamVerdict]) -> Markup {
    html! {
        dl class="facts" {
            dt { "id" } dd { code { (row.id) } }
            @if !row.basis.is_empty() {
                dt { "based on" }
                @for basis in &row.basis { dd { (basis) } }
            }
            dt { "upstream has" }
            @if row.upstream.is_empty() { dd { "nothing of the kind" } }
            @for counterpart in &row.upstream {
                dd {
                    (in_words(counterpart))
                    @if let Some(said) = said_by(counterpart, upstream) { ": " b { (said) } }
                }
            }
            @if !row.needs.is_empty() {
                dt { "needs" }
                @for need in &row.needs { dd { (need) } }
            }
        }
    }
}

/// What the counterpart says, or else the whole test that it is a part of.
fn said_by<'a>(counterpart: &Counterpart, upstream: &'a [UpstreamVerdict]) -> Option<&'a str> {
    let Counterpart { test, function, .. } = counterpart;
    let own = format!("{test}: {function}");
    let of = |name: &str| upstream.iter().find(|said| said.test == name)?.verdict.as_deref();
    of(&own).or_else(|| of(test))
}

fn in_words(counterpart: &Counterpart) -> String {
    let Counterpart { test, function, exceeded } = counterpart;
    format!("{test}: {function}{}", if *exceeded { " (which checks less)" } else { "" })
}

/// A name that can be broken where its words end, if it is too long for a line.
fn breakable(name: &str) -> Markup {
    const LINE: usize = 40;
    if name.len() <= LINE {
        return html! { (name) };
    }
    html! { @for word in name.split_inclusive(['.', '_']) { (word) wbr; } }
}
