//! Which mutants are meant by a command line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;

use privet_kernel::BuildTree;
use privet_mutation::{
    Function, NamedEdit, Operator, Part, Patch, Point, Source, fingerprint, matches, points, sample,
};

use super::half::Half;
use super::{cannot, failed};
use crate::args::KernelMutants;
use crate::exit::Early;

/// A mutant, and what has to be known of it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Where and how the source is broken.
    pub(super) point: Point,
    /// The fingerprint of the function.
    pub(super) content: String,
    /// The lines of the functions in the file that call this one.
    pub(super) callers: Vec<Range<usize>>,
    /// The file as it is.
    pub(super) text: std::sync::Arc<str>,
    /// If it is one with a story, that.
    pub(super) named: Option<NamedEdit>,
}

impl Candidate {
    /// A line about it, and more of one with a story.
    pub(super) fn listed(&self) -> String {
        let Some(edit) = &self.named else { return self.point.name() + "\n" };
        let bug = edit.bug.as_ref().map(|bug| format!("    {bug}\n")).unwrap_or_default();
        format!("{}: {}\n    {}\n{bug}", edit.name, edit.about, self.point.name())
    }
}

/// All mutants that the options name, for rows of VMs of these types, in the order in which they are tried.
///
/// # Errors
/// If a file or patch cannot be read, or there are none.
pub(super) fn candidates(
    tree: &BuildTree,
    half: Half,
    options: &KernelMutants,
    vms: &BTreeSet<&str>,
    seed: u64,
) -> Result<Vec<Candidate>, Early> {
    let mut named = if options.named { named_edits()? } else { Vec::new() };
    named.retain(|edit| half.has(&edit.file));
    let patch = options.patch.as_deref().map(|path| {
        let text = fs::read_to_string(path).map_err(cannot("read", path))?;
        Patch::parse(&text).map_err(|why| Early::usage(format!("{} {why}", path.display())))
    });
    let patch = patch.transpose()?;
    let scope = scope(options, vms, patch.as_ref(), &named);

    let mut all: BTreeMap<String, Candidate> = BTreeMap::new();
    for part in scope.iter().filter(|part| half.has(&part.file)) {
        let path = tree.source.join(&part.file);
        let text = fs::read_to_string(&path).map_err(cannot("read", &path))?;
        let source = Source::parse(&part.file, text);
        let text: std::sync::Arc<str> = source.text.as_str().into();
        let functions: Vec<_> = source.functions().collect();
        for function in functions.iter().filter(|function| part.has(function.name)) {
            let content = fingerprint(&function.content());
            let callers: Vec<_> =
                functions.iter().filter(|other| other.calls(function.name)).map(Function::lines).collect();
            for point in points(function) {
                let (content, callers, text) = (content.clone(), callers.clone(), text.clone());
                let candidate = Candidate { point, content, callers, text, named: None };
                all.insert(candidate.point.name(), candidate);
            }
        }
    }
    if options.named {
        return named.into_iter().map(|edit| of_edit(edit, &all)).collect();
    }
    let wanted = |point: &Point| {
        (point.unbiased || (options.barriers && point.operator == Operator::Barrier))
            && (options.functions.is_empty() || options.functions.iter().any(|name| matches(name, &point.function)))
            && patch.as_ref().is_none_or(|patch| patch.touches(point))
            && (options.mutant.is_empty() || options.mutant.iter().any(|name| matches(name, &point.name())))
    };
    // One that is named is meant whatever samples take.
    let is_shown = |candidate: &Candidate| options.show.as_deref() == Some(candidate.point.name().as_str());
    let chosen: Vec<Candidate> =
        all.into_values().filter(|candidate| wanted(&candidate.point) || is_shown(candidate)).collect();
    if chosen.is_empty() {
        return Err(Early::usage("no mutant is meant: see `privet mutants --kernel --list`"));
    }
    let Some(count) = options.sample else { return Ok(chosen) };
    let mut by_name: BTreeMap<String, Candidate> =
        chosen.iter().map(|candidate| (candidate.point.name(), candidate.clone())).collect();
    let points = chosen.into_iter().map(|candidate| candidate.point).collect();
    let sampled = sample(points, count.get(), seed);
    Ok(sampled.iter().filter_map(|point| by_name.remove(&point.name())).collect())
}

/// The parts of the source in which to look.
fn scope(options: &KernelMutants, vms: &BTreeSet<&str>, patch: Option<&Patch>, named: &[NamedEdit]) -> Vec<Part> {
    let is_code = |file: &&str| file.ends_with(".c");
    let mut default = Part::default_scope();
    match patch {
        _ if !options.files.is_empty() => {
            let is_narrowed = options.functions.is_empty();
            let parts = |file: &String| {
                let of_file: Vec<Part> = default.iter().filter(|part| part.file == *file).cloned().collect();
                if is_narrowed && !of_file.is_empty() { of_file } else { vec![Part::whole(file)] }
            };
            options.files.iter().flat_map(parts).collect()
        }
        Some(patch) => patch.files().into_iter().filter(is_code).map(Part::whole).collect(),
        None if options.named => {
            let files: BTreeSet<&str> = named.iter().map(|edit| edit.file.as_str()).collect();
            files.into_iter().map(Part::whole).collect()
        }
        None => {
            default.retain(|part| part.is_for(vms));
            default
        }
    }
}

fn named_edits() -> Result<Vec<NamedEdit>, Early> {
    let read = |text: &&str| NamedEdit::parse(text).map_err(|why| failed(format!("an edit of the kernel: {why}")));
    Ok(privet_cases::KERNEL_EDITS.iter().map(read).collect::<Result<Vec<_>, _>>()?.concat())
}

/// The mutant of an edit.
fn of_edit(edit: NamedEdit, all: &BTreeMap<String, Candidate>) -> Result<Candidate, Early> {
    match all.values().find(|candidate| edit.is(&candidate.point)) {
        Some(candidate) => Ok(Candidate { named: Some(edit), ..candidate.clone() }),
        None => Err(failed(format!(
            "this source has no place for the edit {}: {} of {} in {}; take the kernel that it was written for, or change it",
            edit.name, edit.operator, edit.function, edit.file
        ))),
    }
}
