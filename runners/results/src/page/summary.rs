//! What came of it, in one look: a card for each place.

use maud::{Markup, html};

use super::{Page, counted, took};
use crate::difference::counts_in;
use crate::document::{Counts, Outcome, ShardState, Word};

impl Page<'_> {
    pub(super) fn summary(&self) -> Markup {
        let document = self.document;
        let counts = document.counts();
        let hardware = document.places.iter().filter(|seat| seat.is_hardware()).count();
        let lost: Vec<_> = document.shards.iter().filter(|shard| shard.state != ShardState::Whole).collect();
        let disagreeing = document.disagreeing().len();
        html! {
            p class={ "verdict " (if document.is_red() { "bad" } else { "good" }) } {
                (if document.is_red() { "Something is red" } else { "Nothing is red" })
                span { ": " (counted(document.rows.len(), "row")) " in " (counted(document.places.len(), "place")) ", " (counts.in_words()) "." }
            }
            ul class="remarks" {
                @if hardware < document.places.len() {
                    li {
                        @if hardware == 0 { "No verdict here was obtained on hardware. " }
                        "A pass on simulated silicon or on the model is no pass on hardware."
                    }
                }
                @if disagreeing > 0 {
                    li { (counted(disagreeing, "row")) " passed in one place and not in another: choose “differ” below." }
                }
                @for shard in &lost {
                    li {
                        b class="word missing" { (shard.state.name()) } " " code { (shard.name) } ": "
                        @if shard.planned == 0 { "nothing came back, and nobody knows of which rows" }
                        @else { (counted(shard.missing, "row")) " of " (shard.planned) " without a verdict" }
                    }
                }
                @for shard in document.shards.iter().filter(|shard| shard.trouble.is_some()) {
                    li { b class="word error" { "trouble" } " " code { (shard.name) } ": " (shard.trouble.as_deref().unwrap_or_default()) }
                }
                @if counts.flaky > 0 {
                    li { (counted(counts.flaky, "pass")) " came at a second attempt only." }
                }
            }
            ul class="places" {
                @for (number, seat) in document.places.iter().enumerate() {
                    @let counts = counts_in(document, number);
                    @let of_place = document.results.iter().filter(|result| result.place == number);
                    @let time: u64 = of_place.map(|result| result.duration_us).sum();
                    li class="card" {
                        h3 { span class="number" { (number + 1) } " " (seat.name()) }
                        (bar(&counts))
                        p { (counts.in_words()) span class="quiet" { ", " (took(time)) " in all" } }
                        @if !seat.module_params.is_empty() {
                            p class="quiet params" { (seat.module_params.join(" ")) }
                        }
                    }
                }
            }
        }
    }
}

/// The counts as a bar. What it shows stands beside it in words.
pub(super) fn bar(counts: &Counts) -> Markup {
    let mut parts: Vec<(usize, &str)> = Word::ALL.iter().map(|word| (counts.with(*word), word.name())).collect();
    parts.insert(parts.len() - 1, (counts.quarantined, "excused"));
    html! {
        div class="bar" aria-hidden="true" {
            @for (count, class) in parts.iter().filter(|(count, _)| *count > 0) {
                i class=(class) style={ "flex-grow:" (count) } {}
            }
        }
    }
}

/// The counts of these.
pub(super) fn counts<'a>(results: impl IntoIterator<Item = &'a Outcome>) -> Counts {
    Counts::of(results)
}
