//! The watchers on the unchanged kernel: which pass, how long they take, and which lines of the source they execute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;

use privet_coverage::{Coverage, Lines, SourceLine, Symbols, executed_lines};
use privet_kernel::BuildTree;
use privet_mutation::{Point, Recipe, normal};
use privet_rig::{Event, Plan, Progress};
use serde::{Deserialize, Serialize};

use super::half::Half;
use super::watchers::{Said, Watchers};
use super::{cannot, failed};
use crate::doing::Doing;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::plan::Job;

/// Lines by file, below the top of the source.
type ByFile = BTreeMap<String, BTreeSet<usize>>;

/// Files that are compiled into the image, with their objects, which have line tables.
type InImage = BTreeMap<String, Vec<u8>>;

/// A row that passes, or a test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) duration_us: u64,
    /// What it says.
    pub(super) said: Said,
    /// The lines that it executes.
    lines: ByFile,
}

/// One that is red on the unchanged kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Blind {
    pub(super) id: String,
    pub(super) reason: String,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Clean {
    judge: String,
    /// The quickest first.
    pub(super) rows: Vec<Row>,
    /// Who says nothing about a mutant: rows that show a known bug of the unchanged kernel, tests that do not pass there.
    pub(super) blind: Vec<Blind>,
    /// The lines that the compiler has made instructions of.
    code: ByFile,
}

/// The rows that can notice a mutant.
pub(super) struct Reach<'a> {
    /// The quickest first.
    pub(super) rows: Vec<&'a Row>,
    /// What it is that they execute: `the line`, `the function`.
    pub(super) what: &'static str,
}

impl Clean {
    /// What is known of this judge's rows, from `results` or from a run now.
    ///
    /// # Errors
    /// If the unchanged kernel does not run, a row is red there, none passes, or the run is interrupted.
    pub(super) fn of(
        (tree, half): (&BuildTree, Half),
        (watchers, program, jobs): (&Watchers, &Path, &[Job]),
        (judge, files): (&str, &BTreeSet<&str>),
        machines: usize,
        results: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Early> {
        let in_image = in_image(tree, files)?;
        let judge = in_image.keys().fold(judge.to_owned(), |judge, file| format!("{judge} {file}"));
        let path = results.join("clean.json");
        let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        if let Some(clean) = kept.filter(|clean| clean.judge == judge) {
            return Ok(clean);
        }
        let clean = run((tree, half), (watchers, program, jobs), (judge, &in_image), machines, interrupt)?;
        let unfinished = tempfile::NamedTempFile::new_in(results).map_err(cannot("create a file in", results))?;
        serde_json::to_writer(&unfinished, &clean)
            .map_err(|error| failed(format!("cannot write {}: {error}", path.display())))?;
        unfinished.persist(&path).map_err(|error| cannot("write", &path)(error.error))?;
        Ok(clean)
    }

    /// The rows that execute what a mutant changes: the lines themselves, or if the compiler has nothing of them, as it has
    /// made one of several, any of its function; if it has nothing of that, as it is a part of others, any of those.
    pub(super) fn reaching(&self, point: &Point, callers: &[Range<usize>]) -> Reach<'_> {
        let has = |files: &ByFile, lines: &Range<usize>| {
            files.get(&point.file).is_some_and(|of| of.range(lines.clone()).next().is_some())
        };
        let executing = |lines: &Range<usize>| self.rows.iter().filter(|row| has(&row.lines, lines)).collect();
        if has(&self.code, &point.lines) {
            return Reach { rows: executing(&point.lines), what: "the changed line" };
        }
        if has(&self.code, &point.function_lines) {
            return Reach { rows: executing(&point.function_lines), what: "the function" };
        }
        let rows = self.rows.iter().filter(|row| callers.iter().any(|lines| has(&row.lines, lines))).collect();
        Reach { rows, what: "a caller of the function" }
    }
}

fn run(
    (tree, half): (&BuildTree, Half),
    (watchers, program, jobs): (&Watchers, &Path, &[Job]),
    (judge, in_image): (String, &InImage),
    machines: usize,
    interrupt: &Interrupt,
) -> Result<Clean, Early> {
    let plan = watchers.plan(tree.kernel.clone(), program, half, jobs);
    let plan = Plan { machines, records: true, ..plan };
    let shown = Doing::on_stderr();
    let (mut coverage, mut passed, mut red, mut blind) = (None, BTreeMap::new(), Vec::new(), Vec::new());
    let mut ended = 0;
    let ran = privet_rig::run(&plan, interrupt.as_fd(), &mut |progress| match progress {
        Progress::Symbols(text) => coverage = Some(Coverage::new(Symbols::parse(&text))),
        Progress::Recorded(index, record) => {
            coverage.iter_mut().for_each(|coverage: &mut Coverage| coverage.add(&jobs[index].id, &record));
        }
        Progress::Row(Event::Finished(index, report)) => {
            ended += 1;
            shown.tell(&format!("the unchanged kernel: {ended} of {} {}s", jobs.len(), watchers.noun()));
            let (said, reason) = watchers.said(&report);
            if said.is_pass() {
                passed.insert(jobs[index].id.clone(), (report.duration_us, said));
            } else if !watchers.have_to_pass() || watchers.is_known(&report) {
                blind.push(Blind { id: report.id, reason });
            } else if report.verdict.is_red() {
                red.push(format!("{} ({reason})", report.id));
            }
        }
        _ => {}
    });
    drop(shown);
    if let Some(signal) = interrupt.signal() {
        return Err(Early { status: Status::Interrupted(signal), message: "interrupted".to_owned() });
    }
    ran.map_err(|error| failed(format!("on the unchanged kernel: {error}")))?;
    if !red.is_empty() {
        let (some, more) = (&red[..red.len().min(3)], if red.len() > 3 { " ..." } else { "" });
        return Err(failed(format!(
            "red on the unchanged kernel, and so blind for its mutants: {}{more}; leave them out with --skip",
            some.join(", ")
        )));
    }
    let coverage = coverage
        .filter(|_| !passed.is_empty())
        .ok_or_else(|| failed(format!("no {} passes on the unchanged kernel", watchers.noun())))?;
    let lines = lines(tree, half, in_image, coverage.symbols())?;
    let mut executed = executed_lines(&coverage, &lines);
    let mut rows: Vec<Row> = passed
        .into_iter()
        .map(|(id, (duration_us, said))| {
            let lines = by_file(tree, executed.remove(&id).unwrap_or_default());
            Row { id, duration_us, said, lines }
        })
        .collect();
    rows.sort_by_key(|row| row.duration_us);
    let code = by_file(tree, lines.with_code(coverage.symbols()));
    Ok(Clean { judge, rows, blind, code })
}

/// Those of the files that are in the image.
fn in_image(tree: &BuildTree, files: &BTreeSet<&str>) -> Result<InImage, Early> {
    let mut found = InImage::new();
    for file in files {
        let lines = Recipe::of(tree, file).and_then(|recipe| recipe.lines_in_image());
        found.extend(lines.map_err(|error| failed(error.to_string()))?.map(|object| ((*file).to_owned(), object)));
    }
    Ok(found)
}

/// Those of these lines that are in C files, sorted by file.
fn by_file(tree: &BuildTree, lines: BTreeSet<SourceLine>) -> ByFile {
    let mut sorted = ByFile::new();
    for (file, line) in lines {
        if let Some(file) = below(tree, &file) {
            sorted.entry(file).or_default().insert(line as usize);
        }
    }
    sorted
}

/// The line tables of KVM's modules, and of files in the image.
fn lines(tree: &BuildTree, half: Half, in_image: &InImage, symbols: &Symbols) -> Result<Lines, Early> {
    let mut lines = Lines::new();
    let modules = tree.kernel.load_order_of_parts(&half.modules()).map_err(|error| failed(error.to_string()))?;
    for module in modules {
        let elf = module.read().map_err(|error| failed(error.to_string()))?;
        lines.add(Some(&module.name), &elf, symbols).map_err(|error| failed(error.to_string()))?;
    }
    for object in in_image.values() {
        lines.add(None, object, symbols).map_err(|error| failed(error.to_string()))?;
    }
    Ok(lines)
}

/// A C file as the compiler was given it, below the top of the source.
fn below(tree: &BuildTree, file: &str) -> Option<String> {
    let file = normal(file);
    let file = Path::new(&file).strip_prefix(&tree.source).ok()?.to_str()?;
    file.ends_with(".c").then(|| file.to_owned())
}
