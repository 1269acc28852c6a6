//! A comparison as KTAP version 1: each line of the table is a result, and only a disagreement is "not ok".

use super::baseline::Against;
use super::{Compared, Comparison, Relation};
use crate::comparison::pretty::counted;
use privet_report::one_line;

/// The whole report.
pub fn report(compared: &Compared, against: Option<&Against>) -> String {
    let mut text = format!("KTAP version 1\n1..{}\n", compared.comparisons.len());
    text += &format!("# {}, upstream's tests from {}\n", compared.place_in_words(), one_line(&compared.source));
    for (index, comparison) in compared.comparisons.iter().enumerate() {
        for line in diagnostics(comparison) {
            text += &format!("# {}\n", one_line(&line));
        }
        let name = comparison.name().replace('#', "_");
        let (ok, directive) = match comparison.relation {
            Relation::Disagree => ("not ok", String::new()),
            Relation::Agree | Relation::Stricter => ("ok", String::new()),
            relation => ("ok", format!(" # SKIP {relation}")),
        };
        text += &format!("{ok} {} {name}{directive}\n", index + 1);
    }
    for row in &compared.ours_only {
        text += &format!("# ours-only: {} {}\n", row.id, row.verdict);
    }
    if let Some(elsewhere) = against.and_then(Against::elsewhere_in_words) {
        text += &format!("# {}\n", one_line(&elsewhere));
    }
    for change in against.map(|against| against.changes.as_slice()).unwrap_or_default() {
        text += &format!("# {}: {}: {}\n", change.kind, change.name, one_line(&change.reason));
    }
    text
}

fn diagnostics(comparison: &Comparison) -> Vec<String> {
    let upstream = comparison.upstream.as_ref().map_or("nothing to run".to_owned(), |upstream| {
        format!("{} {}", upstream.verdict, upstream.reason).trim_end().to_owned()
    });
    let mut lines =
        vec![format!("{}: upstream: {upstream}", comparison.relation), format!("rows: {}", counted(&comparison.rows))];
    let other = comparison.rows.iter().filter(|row| !row.reason.is_empty());
    lines.extend(other.map(|row| format!("{} {}: {}", row.id, row.verdict, row.reason)));
    lines
}
