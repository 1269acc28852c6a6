//! A comparison as JSON, one object a line: the lines of the table, the rows that only we have, what changed,
//! and a summary.

use std::collections::BTreeMap;

use serde::Serialize;

use super::baseline::{Against, Change};
use super::{Compared, Comparison, Relation, RowResult};
use crate::place::Context;

/// A line, told from others by its `type`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Comparison {
        #[serde(flatten)]
        comparison: &'a Comparison,
    },
    Ours {
        relation: Relation,
        #[serde(flatten)]
        row: &'a RowResult,
    },
    Change(&'a Change),
    Summary {
        #[serde(flatten)]
        place: &'a Context,
        source: &'a str,
        relations: BTreeMap<Relation, usize>,
        /// What is different about the place of the baseline, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        baseline_elsewhere: Option<&'a [String]>,
    },
}

/// The whole report.
pub fn report(compared: &Compared, against: Option<&Against>) -> String {
    let comparisons = compared.comparisons.iter().map(|comparison| Line::Comparison { comparison });
    let ours = compared.ours_only.iter().map(|row| Line::Ours { relation: Relation::OursOnly, row });
    let relations = Relation::ALL.into_iter().map(|relation| (relation, compared.count(relation))).collect();
    let changes = against.map(|against| against.changes.as_slice()).unwrap_or_default();
    let summary = Line::Summary {
        place: &compared.place,
        source: &compared.source,
        relations,
        baseline_elsewhere: against.map(|against| against.elsewhere.as_slice()),
    };
    let lines = comparisons.chain(ours).chain(changes.iter().map(Line::Change)).chain([summary]);
    lines.map(|line| format!("{}\n", serde_json::json!(line))).collect()
}
