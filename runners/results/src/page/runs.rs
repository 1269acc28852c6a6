//! The runs that the page was made of.

use maud::{Markup, html};

use super::{Page, took, when};
use crate::document::ShardState;

impl Page<'_> {
    pub(super) fn runs(&self) -> Markup {
        html! {
            div class="wide" role="region" aria-label="Runs" tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { "result" } th scope="col" { "came back" } th scope="col" { "on the machine" } th scope="col" { "began" }
                            th scope="col" class="count" { "rows" } th scope="col" class="count" { "missing" } th scope="col" class="count" { "took" } th scope="col" { "command" }
                        }
                    }
                    tbody {
                        @for shard in &self.document.shards {
                            tr {
                                th scope="row" { code { (shard.name) } }
                                td class=(if shard.state == ShardState::Whole { "pass" } else { "missing" }) { (shard.state.name()) }
                                td { (shard.host) }
                                td { (when(&shard.began)) }
                                td class="count" { (shard.planned) }
                                td class="count" { (shard.missing) }
                                td class="count" { @if let Some(duration_us) = shard.duration_us { (took(duration_us)) } }
                                td { code { (shard.command) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
