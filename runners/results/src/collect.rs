//! Many results as one [`Document`]: of runs, of a fleet, of documents that were made before, and of what else belongs
//! into a report. What was to run and did not come back is in it, too, as [`Word::Missing`].

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::document::{Document, Outcome, Shard, ShardState, Word};
use crate::error::Error;
use crate::fleet_plan::{FleetPlan, Work};
use crate::run_file::{RowFacts, RunFile};
use crate::seat::Seat;

mod attached;

/// Makes one document of many results.
pub struct Collector {
    document: Document,
    /// What this privet's table says of rows, for those that nobody described.
    table: Vec<RowFacts>,
    /// Results whose place is not known yet: that of their siblings, if those agree.
    homeless: Vec<Homeless>,
}

/// What a job of a fleet has left.
enum Left {
    /// A result of a run, which is this shard.
    Run(usize),
    /// Trials of mutants.
    Trials,
    Nothing,
}

/// A result that never came back.
struct Homeless {
    outcome: Outcome,
    /// The shards that ran in the same places.
    siblings: Vec<usize>,
}

impl Collector {
    /// An empty collection, made at this time by this version of privet, whose table this is.
    pub fn new(privet: &str, made: String, table: Vec<RowFacts>) -> Self {
        Self { document: Document::empty(privet, made), table, homeless: Vec::new() }
    }

    /// Adds a file, or what is in a directory.
    ///
    /// # Errors
    /// If something in it cannot be read, or is no result.
    pub fn add(&mut self, path: &Path) -> Result<(), Error> {
        if !path.is_dir() {
            return self.add_file(path);
        }
        match FleetPlan::in_dir(path)? {
            Some(plan) => self.add_fleet(path, &plan),
            None => self.add_dir(path),
        }
    }

    /// All results as one.
    pub fn finish(mut self) -> Document {
        for Homeless { mut outcome, siblings } in std::mem::take(&mut self.homeless) {
            outcome.place = self.place_among(&siblings, &outcome.label);
            self.document.results.push(outcome);
        }
        self.fold_places();
        self.describe_rows();
        self.document
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = fs::read_to_string(path).map_err(Error::unreadable(path))?;
        if text.starts_with("{\"type\":\"run\"") {
            let run = RunFile::parse(&text).map_err(|why| Error::no_result(path, why))?;
            self.add_run(&name_of(path), run);
            return Ok(());
        }
        if let Some(attached) = attached::read(&text) {
            attached.into_document(&mut self.document);
            return Ok(());
        }
        if text.starts_with("row ") {
            let why = "is coverage by functions: give that of a kernel with debug info, which is by lines";
            return Err(Error::no_result(path, why));
        }
        self.add_document(Document::parse(path, &text)?);
        Ok(())
    }

    /// Adds the result of a run, and gives the number of its shard.
    fn add_run(&mut self, name: &str, run: RunFile) -> usize {
        let number = self.document.shards.len();
        let missing = run.missing();
        let summary = run.summary.clone();
        let (state, why) = match &summary {
            None => (ShardState::Cut, "its run was killed, or is still going".to_owned()),
            Some(summary) => match &summary.ended_early {
                Some(why) => (ShardState::Cut, why.clone()),
                None => (ShardState::Whole, "it did not run".to_owned()),
            },
        };
        self.document.shards.push(Shard {
            name: name.to_owned(),
            state,
            planned: run.began.plan.len(),
            missing: missing.len(),
            host: run.began.host.clone(),
            began: run.began.began.clone(),
            duration_us: summary.as_ref().map(|summary| summary.duration_us),
            command: run.began.command.join(" "),
            trouble: summary.and_then(|summary| summary.trouble),
        });
        for planned in missing {
            let outcome = Outcome::missing(&planned.id, &planned.label, why.clone(), 0, number);
            self.homeless.push(Homeless { outcome, siblings: vec![number] });
        }
        for ended in run.ended {
            let place = self.place(Seat::of(&ended.ending.report, &run.began.host));
            self.document.results.push(Outcome::seen(&ended.label, ended.ending, place, number));
        }
        self.document.rows.extend(run.began.rows);
        number
    }

    /// Adds what a fleet has left, and what it has not.
    fn add_fleet(&mut self, dir: &Path, plan: &FleetPlan) -> Result<(), Error> {
        for array in &plan.arrays {
            let first = self.homeless.len();
            let mut numbers = Vec::new();
            for shard in &array.shards {
                let left =
                    [dir.join(&shard.file), partial(&dir.join(&shard.file))].into_iter().find(|path| path.exists());
                let number =
                    left.map(|path| self.add_left(&path, &shard.file, plan.work)).transpose()?.unwrap_or(Left::Nothing);
                match number {
                    Left::Run(number) => numbers.push(number),
                    Left::Trials => {}
                    Left::Nothing => numbers.push(self.add_missing(&shard.file, &shard.rows)),
                }
            }
            self.homeless[first..].iter_mut().for_each(|homeless| homeless.siblings.extend(&numbers));
        }
        Ok(())
    }

    /// Adds what a job has left. One that died before its first line was written has left nothing.
    fn add_left(&mut self, path: &Path, name: &str, work: Work) -> Result<Left, Error> {
        let text = fs::read_to_string(path).map_err(Error::unreadable(path))?;
        if !text.contains('\n') {
            return Ok(Left::Nothing);
        }
        match work {
            Work::KernelMutants => self.add_file(path).map(|()| Left::Trials),
            Work::Rows => {
                let run = RunFile::parse(&text).map_err(|why| Error::no_result(path, why))?;
                Ok(Left::Run(self.add_run(name, run)))
            }
        }
    }

    /// Adds a shard of which nothing came back.
    fn add_missing(&mut self, name: &str, rows: &[String]) -> usize {
        let number = self.document.shards.len();
        self.document.shards.push(Shard {
            name: name.to_owned(),
            state: ShardState::Missing,
            planned: rows.len(),
            missing: rows.len(),
            host: String::new(),
            began: String::new(),
            duration_us: None,
            command: String::new(),
            trouble: None,
        });
        for id in rows {
            let outcome = Outcome::missing(id, id, format!("{name} never came back"), 0, number);
            self.homeless.push(Homeless { outcome, siblings: Vec::new() });
            self.document.rows.push(RowFacts { id: id.clone(), ..RowFacts::default() });
        }
        number
    }

    /// Adds the results in a directory without a plan. If they are slices of one run, one that is not there is missing.
    fn add_dir(&mut self, dir: &Path) -> Result<(), Error> {
        let entries = fs::read_dir(dir).map_err(Error::unreadable(dir))?;
        let mut paths: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| is_result(path)).collect();
        paths.sort();
        // What a run has left beside its whole result is of an earlier one, which was killed.
        let whole: Vec<PathBuf> = paths.iter().filter(|path| !is_partial(path)).map(|path| partial(path)).collect();
        paths.retain(|path| !whole.contains(path));
        if paths.is_empty() {
            let why = format!(
                "has no results: give a directory with files of `privet run --format json`, or with {}",
                crate::fleet_plan::NAME
            );
            return Err(Error::no_result(dir, why));
        }
        let mut slices: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for path in &paths {
            if let Ok(RunFile { began, .. }) = RunFile::read(path)
                && let Some((number, of)) = began.partition.as_deref().and_then(|slice| slice.split_once('/'))
                && let (Ok(number), Ok(of)) = (number.parse(), of.parse())
            {
                slices.entry(of).or_default().push(number);
            }
            self.add_file(path)?;
        }
        for (of, there) in slices {
            for number in (1..=of).filter(|number| !there.contains(number)) {
                self.add_missing(&format!("slice {number}/{of}"), &[]);
            }
        }
        Ok(())
    }

    /// Adds a document that was made before.
    fn add_document(&mut self, other: Document) {
        let places: Vec<usize> = other.places.into_iter().map(|seat| self.place(seat)).collect();
        let first_shard = self.document.shards.len();
        self.document.shards.extend(other.shards);
        self.document.rows.extend(other.rows);
        self.document.results.extend(other.results.into_iter().map(|result| Outcome {
            place: places[result.place],
            shard: first_shard + result.shard,
            ..result
        }));
        self.document.upstream.extend(other.upstream);
        self.document.truth_tables.extend(other.truth_tables);
        self.document.coverage.extend(other.coverage);
        self.document.mutants.extend(other.mutants);
    }

    /// The number of this place.
    fn place(&mut self, seat: Seat) -> usize {
        let places = &mut self.document.places;
        places.iter().position(|there| *there == seat).unwrap_or_else(|| {
            places.push(seat);
            places.len() - 1
        })
    }

    /// The place where most rows of these shards ran, of those with the vendor that the label names if it names one.
    fn place_among(&mut self, shards: &[usize], label: &str) -> usize {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        let came_back = |result: &&Outcome| shards.contains(&result.shard) && result.verdict != Word::Missing;
        for result in self.document.results.iter().filter(came_back) {
            *counts.entry(result.place).or_default() += 1;
        }
        let vendor = label.rsplit('.').next().unwrap_or_default();
        let is_named = |place: usize| self.document.places[place].vendor == vendor;
        let most = counts.into_iter().max_by_key(|(place, count)| (is_named(*place), *count));
        most.map_or_else(|| self.place(Seat::unknown()), |(place, _)| place)
    }

    /// Brings places together that are the same as far as one of them is known.
    fn fold_places(&mut self) {
        let places = &self.document.places;
        let target = |number: usize| -> usize {
            let seat = &places[number];
            let mut fuller = (0..places.len()).filter(|other| *other != number && seat.is_part_of(&places[*other]));
            // Equal ones are one already, so that whoever knows more is another place.
            match (fuller.next(), fuller.next()) {
                (Some(other), None) => other,
                _ => number,
            }
        };
        let targets: Vec<usize> = (0..places.len()).map(target).collect();
        let last = |mut number: usize| {
            while targets[number] != number {
                number = targets[number];
            }
            number
        };
        let targets: Vec<usize> = (0..places.len()).map(last).collect();
        let kept: Vec<usize> = (0..places.len()).filter(|number| targets[*number] == *number).collect();
        let renumbered: HashMap<usize, usize> = kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        self.document.places = kept.iter().map(|old| places[*old].clone()).collect();
        for result in &mut self.document.results {
            result.place = renumbered[&targets[result.place]];
        }
    }

    /// Each row once, in the order of the table, described by whoever did.
    fn describe_rows(&mut self) {
        let order: HashMap<&str, usize> =
            self.table.iter().enumerate().map(|(number, row)| (row.id.as_str(), number)).collect();
        let mut rows: Vec<RowFacts> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for row in std::mem::take(&mut self.document.rows) {
            match seen.get(&row.id) {
                Some(there) if rows[*there].about.is_empty() => rows[*there] = row,
                Some(_) => {}
                None => {
                    seen.insert(row.id.clone(), rows.len());
                    rows.push(row);
                }
            }
        }
        for row in rows.iter_mut().filter(|row| row.about.is_empty()) {
            if let Some(number) = order.get(row.id.as_str()) {
                *row = self.table[*number].clone();
            }
        }
        rows.sort_by_key(|row| order.get(row.id.as_str()).copied().unwrap_or(usize::MAX));
        self.document.rows = rows;
        let order: HashMap<&str, usize> =
            self.document.rows.iter().enumerate().map(|(number, row)| (row.id.as_str(), number)).collect();
        let place_of = |result: &Outcome| order.get(result.id.as_str()).copied().unwrap_or(usize::MAX);
        self.document
            .results
            .sort_by(|a, b| (place_of(a), a.place, a.shard, &a.label).cmp(&(place_of(b), b.place, b.shard, &b.label)));
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// What a run calls its file until it is whole.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".partial");
    name.into()
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "partial")
}

fn is_result(path: &Path) -> bool {
    let name = name_of(path);
    let name = name.strip_suffix(".partial").unwrap_or(&name);
    path.is_file() && [".json", ".jsonl"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests;
