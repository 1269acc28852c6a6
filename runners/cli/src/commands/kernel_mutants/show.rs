//! One mutant, for people who want to judge it.

use similar::TextDiff;

use super::candidates::Candidate;
use super::clean::Clean;
use super::watchers::Watchers;
use crate::exit::Early;
use crate::selection::no_such;

/// How many rows are named.
const NAMED: usize = 20;

/// The change as a diff, what decides about it, and who executes it, rows with what they look at.
///
/// # Errors
/// If there is no mutant of this name.
pub(super) fn show(name: &str, all: &[Candidate], clean: &Clean, watchers: &Watchers) -> Result<String, Early> {
    let names: Vec<String> = all.iter().map(|candidate| candidate.point.name()).collect();
    let found = all.iter().find(|candidate| candidate.point.name() == name);
    let candidate =
        found.ok_or_else(|| no_such("no mutant has the name", &names, name, "privet mutants --kernel --list"))?;
    let point = &candidate.point;
    let changed = point.applied_to(&candidate.text);
    let diff = TextDiff::from_lines(&*candidate.text, &changed);
    let file = &point.file;
    let mut text = format!("{}", diff.unified_diff().header(&format!("a/{file}"), &format!("b/{file}")));
    text += &format!("\nname = \"{name}\"\ncontent = \"{}\"\n\n", candidate.content);
    let reach = clean.reaching(point, &candidate.callers);
    text += &format!("{} {}s execute {}\n", reach.rows.len(), watchers.noun(), reach.what);
    for row in reach.rows.iter().take(NAMED) {
        let about = watchers.about(&row.id).map(|about| format!(": {about}")).unwrap_or_default();
        text += &format!("{}{about}\n", row.id);
    }
    if reach.rows.len() > NAMED {
        text += &format!("... and {} more\n", reach.rows.len() - NAMED);
    }
    Ok(text)
}
