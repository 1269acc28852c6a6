//! Why rows were skipped: what would enable most of them comes first.

use std::collections::{BTreeMap, BTreeSet};

use privet_harness::outcome::LackOf;
use serde::Serialize;

use crate::document::{Document, Word};

/// A reason for which rows did not run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SkipReason {
    /// The reason, which says what would help.
    pub reason: String,
    /// What is lacking.
    pub lacks: Option<LackOf>,
    /// The places that lack it, as indices.
    pub places: BTreeSet<usize>,
    /// The rows that ran nowhere at all: these it would enable.
    pub nowhere: BTreeSet<String>,
    /// The rows that ran in another place.
    pub elsewhere: BTreeSet<String>,
}

/// All reasons: those first that would enable most rows that ran nowhere, and then those with most rows.
pub fn skip_reasons(document: &Document) -> Vec<SkipReason> {
    let ran: BTreeSet<&str> = document
        .results
        .iter()
        .filter(|result| !matches!(result.verdict, Word::Skip | Word::Missing))
        .map(|result| result.id.as_str())
        .collect();
    let mut reasons: BTreeMap<&str, SkipReason> = BTreeMap::new();
    for result in document.results.iter().filter(|result| result.verdict == Word::Skip) {
        let reason = reasons.entry(&result.reason).or_insert_with(|| SkipReason {
            reason: result.reason.clone(),
            lacks: result.lacks,
            places: BTreeSet::new(),
            nowhere: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
        });
        reason.places.insert(result.place);
        let rows = if ran.contains(result.id.as_str()) { &mut reason.elsewhere } else { &mut reason.nowhere };
        rows.insert(result.id.clone());
    }
    let mut reasons: Vec<SkipReason> = reasons.into_values().collect();
    let weight = |reason: &SkipReason| (reason.nowhere.len(), reason.elsewhere.len());
    reasons.sort_by(|a, b| weight(b).cmp(&weight(a)).then_with(|| a.reason.cmp(&b.reason)));
    reasons
}

#[cfg(test)]
mod tests;
