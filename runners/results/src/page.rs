//! The page that people look at: `report.html`, one file that needs no network, and no script for its tables.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::document::{Document, Outcome, Word};
use crate::skips::{SkipReason, skip_reasons};

mod attached;
mod matrix;
mod overview;
mod picture;
mod red;
mod runs;
mod skipped;
mod summary;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/filter.js");

/// A document with what all parts of the page ask of it.
struct Page<'a> {
    document: &'a Document,
    /// Why rows were skipped, the weightiest first; cells point at them.
    reasons: Vec<SkipReason>,
}

/// The page.
pub fn page(document: &Document) -> String {
    let page = Page { document, reasons: skip_reasons(document) };
    let title = format!("privet: {}", document.counts().in_words());
    let sections = page.sections();
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                // Without an icon of its own a browser asks for one.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                a class="jump" href="#rows" { "To the rows" }
                header {
                    h1 { "privet " span class="quiet" { "private memory of confidential VMs on KVM" } }
                    nav aria-label="Parts of this page" {
                        @for Section { id, name, count, .. } in &sections {
                            a href={ "#" (id) } { (name) @if let Some(count) = count { " " span class="count" { (count) } } }
                        }
                    }
                }
                main {
                    @for Section { id, name, markup, .. } in &sections {
                        section id=(id) aria-labelledby={ (id) "-title" } {
                            h2 id={ (id) "-title" } { (name) }
                            (markup)
                        }
                    }
                }
                footer { "Made by privet " (document.privet) ", " (when(&document.made)) "." }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

/// A part of the page.
struct Section {
    id: &'static str,
    name: &'static str,
    /// How many of its things there are, if that is worth a word.
    count: Option<usize>,
    markup: Markup,
}

impl Page<'_> {
    /// The parts that have something to say.
    fn sections(&self) -> Vec<Section> {
        let Document { upstream, truth_tables, coverage, mutants, .. } = self.document;
        let red = self.document.counts().red();
        let section = |id, name, count, markup| Section { id, name, count, markup };
        let mut sections = vec![section("summary", "Summary", None, self.summary())];
        if red > 0 || self.document.results.iter().any(|result| result.quarantined.is_some()) {
            sections.push(section("red", "Red rows", Some(red), self.red()));
        }
        sections.push(section("rows", "Rows", Some(self.document.rows.len()), self.matrix()));
        if !self.reasons.is_empty() {
            sections.push(section("skips", "Skips", Some(self.reasons.len()), self.skips()));
        }
        if !upstream.is_empty() {
            sections.push(section(
                "upstream",
                "Upstream's tests",
                Some(upstream.len()),
                attached::upstream(self.document),
            ));
        }
        if !truth_tables.is_empty() {
            sections.push(section("truth-tables", "Truth tables", None, attached::truth_tables(self.document)));
        }
        if !coverage.is_empty() {
            sections.push(section("coverage", "Coverage", None, attached::coverage(coverage)));
        }
        if !mutants.is_empty() {
            sections.push(section("mutants", "Mutants", None, attached::mutants(mutants)));
        }
        sections.push(section("runs", "Runs", Some(self.document.shards.len()), self.runs()));
        sections
    }

    /// The number of the reason for which this one was skipped, from 1 on.
    fn reason_number(&self, result: &Outcome) -> Option<usize> {
        self.reasons.iter().position(|reason| reason.reason == result.reason).map(|index| index + 1)
    }
}

/// What colour a result has, which its text says, too.
fn class_of(result: &Outcome) -> &'static str {
    match result.verdict {
        _ if result.quarantined.is_some() => "excused",
        Word::Pass if result.is_flaky() => "flaky",
        verdict => verdict.name(),
    }
}

/// What a result is called.
fn word_of(result: &Outcome) -> &'static str {
    match class_of(result) {
        "excused" => "quarantined",
        class => class,
    }
}

/// The place of a red result on the page.
fn red_anchor(number: usize) -> String {
    format!("red-{number}")
}

/// VM type, group, and the rest of an id.
fn parts(id: &str) -> (&str, &str, &str) {
    let mut parts = id.splitn(3, '.');
    let mut next = || parts.next().unwrap_or_default();
    (next(), next(), next())
}

/// A time span as people read it.
fn took(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        _ => format!("{} min {} s", us / 60_000_000, us / 1_000_000 % 60),
    }
}

/// A time of RFC 3339 without its fractions.
fn when(time: &str) -> String {
    let seconds = time.get(..19).unwrap_or(time);
    let zone = if time.ends_with('Z') || time.ends_with("+00:00") { " UTC" } else { "" };
    format!("{}{zone}", seconds.replace('T', " "))
}

/// So many, with the word in the right number.
fn counted(count: usize, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    }
}

#[cfg(test)]
mod tests;
