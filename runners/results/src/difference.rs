//! What is different between two results: of kernels, of places, of days.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::document::{Counts, Document, Outcome, Word};

/// A row that takes so many times as long is slower.
const SLOWER: u64 = 2;

/// What a row takes longer at least to be called slower, in microseconds: below it, it is noise.
const NOTICEABLE_US: u64 = 250_000;

/// Rows that are gone are told together if they are more than these: then another selection ran.
const GONE_ONE_BY_ONE: usize = 20;

/// What is different.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Difference {
    /// The columns that were held against each other: that of the first result, and that of the second.
    pub places: Vec<[String; 2]>,
    /// Columns of the one result that the other has no counterpart of.
    pub alone: Vec<String>,
    /// What changed, the worst first.
    pub changes: Vec<Change>,
    /// How many runs of rows are in both.
    pub compared: usize,
    /// How many are red in both.
    pub still_red: usize,
    /// What all rows took that passed in both, in microseconds: then and now.
    pub duration_us: [u64; 2],
}

/// What changed for one row in one place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// What kind of change.
    pub kind: Kind,
    /// The name of the row in its run.
    pub label: String,
    /// Where, as the second result has it; the index of a pair in [`Difference::places`].
    pub place: usize,
    /// The verdict before; none if it was not there.
    pub before: Option<Word>,
    /// The verdict now; none if it is not there.
    pub now: Option<Word>,
    /// Why, in one line.
    pub reason: String,
    /// What the row took, in microseconds: then and now.
    pub duration_us: [u64; 2],
}

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It goes wrong, and did not.
    NewFailure,
    /// It was to run and did not come back, and it did before.
    Missing,
    /// It says nothing any more, or is there for the first time and says nothing.
    NewSkip,
    /// It is not there any more.
    Gone,
    /// It went wrong, or was missing, and passes.
    Fixed,
    /// It was skipped, and passes.
    RunsNow,
    /// It passes in both and takes much longer.
    Slower,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::NewFailure => "new failure",
            Kind::Missing => "missing",
            Kind::NewSkip => "new skip",
            Kind::Gone => "gone",
            Kind::Fixed => "fixed",
            Kind::RunsNow => "runs now",
            Kind::Slower => "slower",
        })
    }
}

impl Difference {
    /// What is different in `now`.
    pub fn between(before: &Document, now: &Document) -> Self {
        let pairs = pairs(before, now);
        let name = |document: &Document, place: usize| document.places[place].name();
        let mut difference = Self {
            places: pairs.iter().map(|(old, new)| [name(before, *old), name(now, *new)]).collect(),
            alone: Vec::new(),
            changes: Vec::new(),
            compared: 0,
            still_red: 0,
            duration_us: [0, 0],
        };
        let alone = |document: &Document, paired: Vec<usize>| -> Vec<String> {
            (0..document.places.len())
                .filter(|place| !paired.contains(place))
                .map(|place| name(document, place))
                .collect()
        };
        difference.alone.extend(alone(before, pairs.iter().map(|(old, _)| *old).collect()));
        difference.alone.extend(alone(now, pairs.iter().map(|(_, new)| *new).collect()));
        for (number, (old, new)) in pairs.iter().enumerate() {
            difference.hold_against(number, &column(before, *old), &column(now, *new));
        }
        difference.changes.sort_by(|a, b| (a.kind, a.place, &a.label).cmp(&(b.kind, b.place, &b.label)));
        difference
    }

    /// Whether it has become worse.
    pub fn is_worse(&self) -> bool {
        self.changes.iter().any(|change| matches!(change.kind, Kind::NewFailure | Kind::Missing))
    }

    /// How many changes are of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.changes.iter().filter(|change| change.kind == kind).count()
    }

    fn hold_against(&mut self, place: usize, old: &BTreeMap<&str, &Outcome>, new: &BTreeMap<&str, &Outcome>) {
        for (label, now) in new {
            let before = old.get(label).copied();
            if let Some(before) = before {
                self.compared += 1;
                self.still_red += usize::from(before.is_red() && now.is_red());
                if before.verdict == Word::Pass && now.verdict == Word::Pass {
                    self.duration_us[0] += before.duration_us;
                    self.duration_us[1] += now.duration_us;
                }
            }
            self.changes.extend(kind(before, now).map(|kind| Change {
                kind,
                label: (*label).to_owned(),
                place,
                before: before.map(|before| before.verdict),
                now: Some(now.verdict),
                reason: now.reason.clone(),
                duration_us: [before.map_or(0, |before| before.duration_us), now.duration_us],
            }));
        }
        for (label, before) in old.iter().filter(|(label, _)| !new.contains_key(*label)) {
            self.changes.push(Change {
                kind: Kind::Gone,
                label: (*label).to_owned(),
                place,
                before: Some(before.verdict),
                now: None,
                reason: String::new(),
                duration_us: [before.duration_us, 0],
            });
        }
    }

    /// The difference for people.
    pub fn in_words(&self) -> String {
        let mut text = String::new();
        let gone: Vec<&Change> = self.changes.iter().filter(|change| change.kind == Kind::Gone).collect();
        let is_told = |change: &&Change| change.kind != Kind::Gone || gone.len() <= GONE_ONE_BY_ONE;
        for change in self.changes.iter().filter(is_told) {
            let word = |word: Option<Word>| word.map_or("not there", Word::name);
            let Change { kind, label, before, now, reason, duration_us: [then, it_is], .. } = change;
            text += &match kind {
                Kind::Slower => {
                    format!("{:<12} {label}: {} ms, then {} ms", kind.to_string(), then / 1000, it_is / 1000)
                }
                _ => format!("{:<12} {label} ({} -> {})", kind.to_string(), word(*before), word(*now)),
            };
            if self.places.len() > 1 {
                text += &format!(" on {}", self.places[change.place][1]);
            }
            if !reason.is_empty() {
                text += &format!(": {reason}");
            }
            text.push('\n');
        }
        if gone.len() > GONE_ONE_BY_ONE {
            let (first, count) = (&gone[0].label, gone.len());
            text += &format!(
                "{:<12} {count} results are not there any more, {first} first: was the same selected?\n",
                "gone"
            );
        }
        for [old, new] in &self.places {
            text += &match old == new {
                true => format!("on {new}, both times\n"),
                false => format!("between {old} and {new}\n"),
            };
        }
        for place in &self.alone {
            text += &format!("only in one of them: {place}\n");
        }
        let kinds =
            [Kind::NewFailure, Kind::Missing, Kind::NewSkip, Kind::Gone, Kind::Fixed, Kind::RunsNow, Kind::Slower];
        let counted = kinds.iter().map(|kind| (self.count(*kind), kind)).filter(|(count, _)| *count > 0);
        let mut told: Vec<String> = counted.map(|(count, kind)| format!("{count} {kind}")).collect();
        if self.still_red > 0 {
            told.push(format!("{} red in both", self.still_red));
        }
        if told.is_empty() {
            told.push("no difference".to_owned());
        }
        let [then, now] = self.duration_us.map(|us| us as f64 / 1e6);
        text + &format!(
            "{} results in both: {}; what passes took {then:.1} s, then {now:.1} s\n",
            self.compared,
            told.join(", ")
        )
    }
}

/// What kind of change this is, if it is one.
fn kind(before: Option<&Outcome>, now: &Outcome) -> Option<Kind> {
    let was = |is: fn(&Outcome) -> bool| before.is_some_and(is);
    let is_skip = |outcome: &Outcome| outcome.verdict == Word::Skip;
    let slower = |before: &Outcome| {
        before.verdict == Word::Pass
            && now.duration_us > before.duration_us.saturating_mul(SLOWER)
            && now.duration_us - before.duration_us > NOTICEABLE_US
    };
    Some(match () {
        () if now.verdict == Word::Missing && !was(|before| before.verdict == Word::Missing) => Kind::Missing,
        () if now.is_red() && !was(Outcome::is_red) => Kind::NewFailure,
        () if is_skip(now) && !was(is_skip) => Kind::NewSkip,
        () if now.verdict == Word::Pass && was(Outcome::is_red) => Kind::Fixed,
        () if now.verdict == Word::Pass && was(is_skip) => Kind::RunsNow,
        () if now.verdict == Word::Pass && before.is_some_and(slower) => Kind::Slower,
        () => return None,
    })
}

/// The worst result of each row in a column, by its name in the run.
fn column(document: &Document, place: usize) -> BTreeMap<&str, &Outcome> {
    let mut column: BTreeMap<&str, &Outcome> = BTreeMap::new();
    for result in document.results.iter().filter(|result| result.place == place) {
        let there = column.entry(result.label.as_str()).or_insert(result);
        if (!result.is_red(), result.verdict) < (!there.is_red(), there.verdict) {
            *there = result;
        }
    }
    column
}

/// Which column belongs to which: the most alike first, each at most once.
fn pairs(before: &Document, now: &Document) -> Vec<(usize, usize)> {
    let mut likeness: Vec<(u32, usize, usize)> = Vec::new();
    for (old, there) in before.places.iter().enumerate() {
        likeness.extend(now.places.iter().enumerate().map(|(new, here)| (there.likeness(here), old, new)));
    }
    likeness.sort_by_key(|(likeness, old, new)| (std::cmp::Reverse(*likeness), *old, *new));
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for (_, old, new) in likeness {
        if pairs.iter().all(|(a, b)| *a != old && *b != new) {
            pairs.push((old, new));
        }
    }
    pairs.sort_unstable();
    pairs
}

/// The counts of one column.
pub fn counts_in(document: &Document, place: usize) -> Counts {
    Counts::of(document.results.iter().filter(|result| result.place == place))
}

#[cfg(test)]
mod tests;
