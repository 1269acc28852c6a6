//! The red rows, each with all that explains it.

use maud::{Markup, html};

use super::matrix::facts;
use super::picture::picture;
use super::{Page, class_of, red_anchor, took, word_of};
use crate::document::{Outcome, Word};
use crate::timeline::{EventKind, Timeline};

/// So many are open from the beginning.
const OPEN: usize = 3;

/// Missing rows of a run are told together if they are more than these.
const ONE_BY_ONE: usize = 20;

impl Page<'_> {
    pub(super) fn red(&self) -> Markup {
        let mut results: Vec<(usize, &Outcome)> = self.document.results.iter().enumerate().collect();
        results.retain(|(_, result)| result.is_red() || result.quarantined.is_some());
        results.sort_by_key(|(_, result)| (result.quarantined.is_some(), result.verdict));
        let (missing, seen): (Vec<_>, Vec<_>) =
            results.into_iter().partition(|(_, result)| result.verdict == Word::Missing);
        html! {
            @for (nth, (number, result)) in seen.into_iter().enumerate() { (self.article(nth, number, result)) }
            @for shard in 0..self.document.shards.len() {
                @let of_shard: Vec<_> = missing.iter().filter(|(_, result)| result.shard == shard).collect();
                @if !of_shard.is_empty() { (self.missing(shard, &of_shard)) }
            }
        }
    }

    /// All about a red row, which is the `nth` here and this number among all results.
    fn article(&self, nth: usize, number: usize, result: &Outcome) -> Markup {
        let row = self.document.rows.iter().find(|row| row.id == result.id);
        let timeline = Timeline::of(&result.details);
        let anchor = red_anchor(number);
        let others: Vec<&Outcome> = self
            .document
            .results
            .iter()
            .filter(|other| other.id == result.id && !std::ptr::eq(*other, result))
            .collect();
        html! {
            details class="red card" open[nth < OPEN] {
                summary {
                    h3 { span class={ "word " (class_of(result)) } { (word_of(result)) } " " code { (result.label) } }
                    p class="quiet" { (result.reason) }
                }
                // Whoever comes here by a link finds it open.
                div id=(anchor) class="inside" {
                p {
                    span class="number" { (result.place + 1) } " " (self.document.places[result.place].name())
                    ", " (took(result.duration_us)) ", " (result.exits) " exits, seed " (result.seed)
                    @if let Some(schedule) = result.schedule { ", schedule " (schedule) }
                }
                @if let Some(row) = row { p { (row.about) } }
                (step(&result.reason, &timeline))
                @if let Some(excuse) = &result.quarantined {
                    p { "Quarantined until " (excuse.until) ": " (excuse.reason) }
                }
                @for (attempt, earlier) in result.earlier.iter().enumerate() {
                    p class="quiet" { "Attempt " (attempt + 1) ": " (earlier.verdict.to_string()) ": " (earlier.reason) }
                }
                @if !others.is_empty() {
                    p {
                        "Elsewhere: "
                        @for other in &others {
                            span class={ "word " (class_of(other)) } { (word_of(other)) }
                            " " span class="number" { (other.place + 1) } " "
                        }
                    }
                }
                @if !timeline.events.is_empty() {
                    (picture(&timeline, &anchor, &result.label))
                }
                div class="columns" {
                    @if !timeline.events.is_empty() {
                        div { h4 { "Exits and host steps" } (events(&timeline)) }
                    }
                    @if !timeline.kernel_log.is_empty() {
                        div { h4 { "Kernel log" } pre tabindex="0" { (timeline.kernel_log.join("\n")) } }
                    }
                    @if !timeline.other.is_empty() {
                        div { h4 { "What else was said" } pre tabindex="0" { (timeline.other.join("\n")) } }
                    }
                }
                @if !result.repro.is_empty() {
                    h4 { "To see it again" }
                    pre class="command" tabindex="0" { (result.repro) }
                }
                @if let Some(row) = row { details { summary { "What it is based on, and what upstream has" } (facts(row, &self.document.upstream)) } }
                }
            }
        }
    }

    /// The rows of a run that did not come back.
    fn missing(&self, shard: usize, results: &[&(usize, &Outcome)]) -> Markup {
        let anchor = |number: usize| red_anchor(number);
        let list = html! {
            ul class="ids" { @for (number, result) in results { li id=(anchor(*number)) { code { (result.label) } } } }
        };
        let shard = &self.document.shards[shard];
        html! {
            article class="red card" {
                h3 { span class="word missing" { "missing" } " " code { (shard.name) } }
                p { (results[0].1.reason) ": " (super::counted(results.len(), "row")) " without a verdict." }
                @if results.len() > ONE_BY_ONE { details { summary { "Which rows" } (list) } } @else { (list) }
            }
        }
    }
}

/// The step that failed: what was expected, and what was seen. Reasons are sentences of rows: `STEP: SEEN, expected
/// EXPECTED; MORE`. Where there is no step in it, it is what the guest was told last.
fn step(reason: &str, timeline: &Timeline) -> Markup {
    let Some((before, expected)) = reason.split_once(", expected ") else {
        return html! { p class="reason" { (reason) } };
    };
    let (expected, more) =
        expected.split_once("; ").map_or((expected, None), |(expected, more)| (expected, Some(more)));
    let (step, seen) = before.rsplit_once(": ").map_or((None, before), |(step, seen)| (Some(step.to_owned()), seen));
    let last = || timeline.events.iter().rev().find(|event| event.vcpu.is_some()).map(|event| event.what.clone());
    html! {
        dl class="step" {
            @if let Some(step) = step.or_else(last) { dt { "step" } dd { (step) } }
            dt { "expected" } dd class="good" { (expected) }
            dt { "seen" } dd class="bad" { (seen) }
            @if let Some(more) = more { dt { "besides" } dd { (more) } }
        }
    }
}

fn events(timeline: &Timeline) -> Markup {
    let first = timeline.events.first().map_or(0, |event| event.at_us);
    html! {
        div class="events" role="region" aria-label="Exits and host steps" tabindex="0" {
            table {
                thead { tr { th scope="col" { "after" } th scope="col" { "where" } th scope="col" { "what" } th scope="col" { "instruction" } } }
                tbody {
                    @for event in &timeline.events {
                        tr class=(kind_class(event.kind)) {
                            td class="time" { "+" (took(event.at_us - first)) }
                            td {
                                @match event.vcpu.map(|lane| timeline.vcpus[lane]) {
                                    Some((vm, vcpu)) => { "vm " (vm) " vcpu " (vcpu) @if let Some(number) = event.number { ", exit " (number) } }
                                    None => { "host" }
                                }
                            }
                            td { (event.what) }
                            td { @if let Some(instruction) = &event.instruction { code { (instruction) } } }
                        }
                    }
                }
            }
        }
    }
}

/// The class of events of this kind.
pub(super) fn kind_class(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Conversion => "conversion",
        EventKind::MemoryFault => "memory-fault",
        EventKind::Done => "done",
        EventKind::Exit => "exit",
        EventKind::HostStep => "host-step",
    }
}
