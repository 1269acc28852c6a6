//! A comparison as a table for people.

use std::collections::BTreeMap;

use privet_report::{Verdict, one_line};

use super::baseline::{Against, Change, Kind};
use super::{Compared, Comparison, Relation, RowResult};

/// How many rows of a kind are named.
const NAMED: usize = 3;

/// The whole report.
pub fn report(compared: &Compared, against: Option<&Against>) -> String {
    let name = |comparison: &Comparison| match &comparison.subtest {
        None => comparison.test.clone(),
        Some(subtest) => format!("  {subtest}"),
    };
    let width = compared.comparisons.iter().map(|c| name(c).len()).max().unwrap_or_default().max("upstream".len());
    let rows_width = compared.comparisons.iter().map(|c| counted(&c.rows).len()).max().unwrap_or_default().max(4);
    let mut text = format!(
        "upstream: {}\n\n{:width$}  {:8}{:>9}  {:rows_width$}  relation\n",
        compared.source, "upstream", "says", "covered", "rows"
    );
    let mut test = "";
    for comparison in compared.comparisons.iter().filter(|comparison| !says_nothing(comparison)) {
        if comparison.subtest.is_some() && comparison.test != test {
            text += &format!("{}\n", comparison.test);
        }
        test = &comparison.test;
        let says = comparison.upstream.as_ref().map_or("-".to_owned(), |upstream| upstream.verdict.to_string());
        let covered = format!("{}/{}", comparison.covered, comparison.functions);
        let rows = counted(&comparison.rows);
        let name = name(comparison);
        text += &format!("{name:width$}  {says:8}{covered:>9}  {rows:rows_width$}  {}\n", comparison.relation);
        for line in details(comparison) {
            text += &format!("    {}\n", one_line(&line));
        }
    }
    text += "\n";
    let absent: Vec<&str> =
        compared.comparisons.iter().filter(|c| says_nothing(c)).map(|comparison| comparison.test.as_str()).collect();
    if !absent.is_empty() {
        text += &format!("neither here nor covered: {}\n", absent.join(" "));
    }
    if !compared.ours_only.is_empty() {
        text += &format!(
            "ours only: {} rows that name no test of upstream's: {}\n",
            compared.ours_only.len(),
            counted(&compared.ours_only)
        );
        for line in unusual(&compared.ours_only, &[Verdict::Fail, Verdict::Error, Verdict::Timeout]) {
            text += &format!("    {}\n", one_line(&line));
        }
    }
    text += &against.map(since).unwrap_or_default();
    text += &compared.place_in_words();
    let counts =
        Relation::ALL.into_iter().filter(|relation| *relation != Relation::OursOnly || lines_of_ours(compared) > 0);
    let counts = counts.map(|relation| match relation {
        Relation::OursOnly => format!("{} {relation}", lines_of_ours(compared)),
        _ => format!("{} {relation}", compared.count(relation)),
    });
    text + &format!(": {}\n", counts.collect::<Vec<_>>().join(", "))
}

/// What changed since the baseline.
fn since(against: &Against) -> String {
    let mut text = against.elsewhere_in_words().map(|line| format!("{}\n", one_line(&line))).unwrap_or_default();
    let (of_new_rows, others): (Vec<&Change>, Vec<&Change>) =
        against.changes.iter().partition(|change| change.kind == Kind::NewSkip && change.before.is_none());
    for change in others {
        let from = change.before.as_deref().unwrap_or("not there");
        let to = change.now.as_deref().unwrap_or("not there");
        let reason = if change.reason.is_empty() { String::new() } else { format!(": {}", one_line(&change.reason)) };
        text += &format!("{:12} {} ({from} -> {to}){reason}\n", change.kind, change.name);
    }
    // A baseline that is older than a whole VM type would fill the screen with one reason.
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for change in of_new_rows {
        by_reason.entry(one_line(&change.reason)).or_default().push(&change.name);
    }
    for (reason, names) in by_reason {
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        text += &format!("{:12} {}{more} (not there -> skip): {reason}\n", Kind::NewSkip, names[0]);
    }
    if against.changes.is_empty() {
        text += "nothing changed since the baseline\n";
    }
    text
}

/// Whether there is neither a program nor a row.
fn says_nothing(comparison: &Comparison) -> bool {
    comparison.upstream.is_none() && comparison.rows.is_empty()
}

fn lines_of_ours(compared: &Compared) -> usize {
    compared.count(Relation::OursOnly) - compared.ours_only.len()
}

/// What explains a line: upstream's reason, and the rows where there is something to explain.
fn details(comparison: &Comparison) -> Vec<String> {
    let mut lines = Vec::new();
    match &comparison.upstream {
        None => lines.push("its program is not here".to_owned()),
        Some(upstream) if !upstream.reason.is_empty() => lines.push(format!("upstream: {}", upstream.reason)),
        Some(_) => {}
    }
    lines.extend(unusual(&comparison.rows, &[Verdict::Fail, Verdict::Error, Verdict::Timeout, Verdict::Skip]));
    lines
}

/// The rows with these verdicts, the first few of each by name.
fn unusual(rows: &[RowResult], verdicts: &[Verdict]) -> Vec<String> {
    let mut lines = Vec::new();
    for verdict in verdicts {
        let theirs: Vec<&RowResult> = rows.iter().filter(|row| row.verdict == *verdict).collect();
        lines.extend(theirs.iter().take(NAMED).map(|row| format!("{verdict} {}: {}", row.id, row.reason)));
        if theirs.len() > NAMED {
            lines.push(format!("{verdict} {} more", theirs.len() - NAMED));
        }
    }
    lines
}

/// How many rows ended how.
pub(super) fn counted(rows: &[RowResult]) -> String {
    let all = [Verdict::Pass, Verdict::Fail, Verdict::Error, Verdict::Timeout, Verdict::Skip];
    let counts = all.map(|verdict| (rows.iter().filter(|row| row.verdict == verdict).count(), verdict));
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, verdict)| format!("{count} {verdict}")).collect();
    if counts.is_empty() { "-".to_owned() } else { counts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_rows_that_skip_are_told_by_reason() {
        let skip = |name: &str, before: Option<&str>, reason: &str| Change {
            kind: Kind::NewSkip,
            name: name.to_owned(),
            before: before.map(str::to_owned),
            now: Some("skip".to_owned()),
            reason: reason.to_owned(),
        };
        let changes = vec![
            skip("snp.a", None, "no SNP"),
            skip("snp.b", None, "no SNP"),
            skip("upm.c", Some("pass"), "no upm"),
            skip("upm.d", None, "no ring"),
        ];
        assert_eq!(
            since(&Against { elsewhere: Vec::new(), changes }),
            "new skip     upm.c (pass -> skip): no upm\n\
             new skip     snp.a and 1 more (not there -> skip): no SNP\n\
             new skip     upm.d (not there -> skip): no ring\n"
        );
    }
}
