//! Why rows were skipped, and what would enable most.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::{Page, counted};

impl Page<'_> {
    pub(super) fn skips(&self) -> Markup {
        html! {
            p { "What would enable most rows that ran nowhere comes first." }
            table class="skips" {
                thead {
                    tr {
                        th scope="col" { "no." } th scope="col" { "reason" }
                        th scope="col" class="count" { "ran nowhere" } th scope="col" class="count" { "ran elsewhere" } th scope="col" { "skipped in" }
                    }
                }
                tbody {
                    @for (number, reason) in (1..).zip(&self.reasons) {
                        tr id={ "skip-" (number) } {
                            td class="count" { (number) }
                            td {
                                (reason.reason)
                                details {
                                    summary { (counted(reason.nowhere.len() + reason.elsewhere.len(), "row")) }
                                    (ids(&reason.nowhere)) (ids(&reason.elsewhere))
                                }
                            }
                            td class="count" { b { (reason.nowhere.len()) } }
                            td class="count" { (reason.elsewhere.len()) }
                            td { @for place in &reason.places { span class="number" title=(self.document.places[*place].name()) { (place + 1) } " " } }
                        }
                    }
                }
            }
        }
    }
}

fn ids(ids: &BTreeSet<String>) -> Markup {
    html! { @if !ids.is_empty() { ul class="ids" { @for id in ids { li { code { (id) } } } } } }
}
