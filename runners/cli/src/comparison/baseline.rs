//! What a host is known to say, so that a later comparison can tell what is new: a file of all verdicts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Compared;
use crate::exit::Early;
use crate::output::write_whole;

/// The format of the file.
const FORMAT: u32 = 1;

/// All verdicts of one comparison.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Baseline {
    /// The format.
    format: u32,
    /// Where they were obtained: `host` or `rig`, the kernel, the module parameters.
    pub place: String,
    /// The source of upstream's tests.
    pub source: String,
    /// The verdicts, by the name of upstream's test or the id of the row.
    pub verdicts: BTreeMap<String, Said>,
}

/// A verdict and its reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Said {
    /// As it is printed.
    pub verdict: String,
    /// Why, in one line.
    pub reason: String,
}

impl Said {
    fn is_bad(&self) -> bool {
        ["fail", "error", "timeout"].contains(&self.verdict.as_str())
    }

    fn is_skip(&self) -> bool {
        self.verdict == "skip"
    }
}

/// What changed for one test or row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// What kind of change.
    pub kind: Kind,
    /// The name of upstream's test or the id of the row.
    pub name: String,
    /// The verdict in the baseline, if it was there.
    pub before: Option<String>,
    /// The verdict now, if it is still there.
    pub now: Option<String>,
    /// Why, in one line.
    pub reason: String,
}

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It goes wrong, and did not.
    NewFailure,
    /// It says nothing any more, or is there for the first time and says nothing.
    NewSkip,
    /// It is not there any more.
    Gone,
    /// It went wrong, and passes.
    Fixed,
    /// It was skipped, and passes.
    RunsNow,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Kind::NewFailure => "new failure",
            Kind::NewSkip => "new skip",
            Kind::Gone => "gone",
            Kind::Fixed => "fixed",
            Kind::RunsNow => "runs now",
        })
    }
}

impl Baseline {
    /// The verdicts of this comparison.
    pub fn of(compared: &Compared) -> Self {
        let mut verdicts = BTreeMap::new();
        for comparison in &compared.comparisons {
            if let Some(upstream) = &comparison.upstream {
                let said = Said { verdict: upstream.verdict.to_string(), reason: upstream.reason.clone() };
                verdicts.insert(comparison.name(), said);
            }
        }
        let rows = compared.comparisons.iter().flat_map(|comparison| &comparison.rows).chain(&compared.ours_only);
        for row in rows {
            verdicts.insert(row.id.clone(), Said { verdict: row.verdict.to_string(), reason: row.reason.clone() });
        }
        let place = &compared.place;
        let place = format!("{} Linux {} {}", place.on, place.kernel, place.module_params.join(" "));
        Self { format: FORMAT, place: place.trim_end().to_owned(), source: compared.source.clone(), verdicts }
    }

    /// Reads a baseline.
    ///
    /// # Errors
    /// One line that says what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, Early> {
        let wrong = |why: String| {
            Early::usage(format!("{}: {why}; write a baseline with `privet compare --save FILE`", path.display()))
        };
        let bytes = fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let baseline: Self =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is no baseline: {error}")))?;
        if baseline.format != FORMAT {
            return Err(wrong(format!("has format {}, and this is format {FORMAT}", baseline.format)));
        }
        Ok(baseline)
    }

    /// Writes a baseline, all or nothing.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        write_whole(path, &text)
    }

    /// What is different in `now`, the worst first. What was not selected this time is not gone.
    pub fn changes(&self, now: &Self, is_everything: bool) -> Vec<Change> {
        let mut changes: Vec<Change> = now.verdicts.iter().filter_map(|(name, said)| self.change(name, said)).collect();
        if is_everything {
            let gone = self.verdicts.iter().filter(|(name, _)| !now.verdicts.contains_key(*name));
            changes.extend(gone.map(|(name, said)| Change {
                kind: Kind::Gone,
                name: name.clone(),
                before: Some(said.verdict.clone()),
                now: None,
                reason: String::new(),
            }));
        }
        changes.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        changes
    }

    fn change(&self, name: &str, now: &Said) -> Option<Change> {
        let before = self.verdicts.get(name);
        let was = |is: fn(&Said) -> bool| before.is_some_and(is);
        let kind = match () {
            () if now.is_bad() && !was(Said::is_bad) => Kind::NewFailure,
            () if now.is_skip() && !was(Said::is_skip) => Kind::NewSkip,
            () if now.verdict == "pass" && was(Said::is_bad) => Kind::Fixed,
            () if now.verdict == "pass" && was(Said::is_skip) => Kind::RunsNow,
            () => return None,
        };
        Some(Change {
            kind,
            name: name.to_owned(),
            before: before.map(|said| said.verdict.clone()),
            now: Some(now.verdict.clone()),
            reason: now.reason.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(verdicts: &[(&str, &str)]) -> Baseline {
        let said = |verdict: &str| Said { verdict: verdict.to_owned(), reason: format!("why {verdict}") };
        let verdicts = verdicts.iter().map(|(name, verdict)| ((*name).to_owned(), said(verdict))).collect();
        Baseline { format: FORMAT, place: "rig".into(), source: "x".into(), verdicts }
    }

    #[test]
    fn changes_are_told_and_what_stays_is_not() {
        let before =
            baseline(&[("a", "pass"), ("b", "fail"), ("c", "skip"), ("d", "fail"), ("e", "pass"), ("f", "pass")]);
        let now =
            baseline(&[("a", "error"), ("b", "pass"), ("c", "pass"), ("d", "timeout"), ("e", "skip"), ("g", "fail")]);
        let told = |all| {
            let changes = before.changes(&now, all);
            changes.into_iter().map(|change| format!("{} {}", change.kind, change.name)).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["new failure a", "new failure g", "new skip e", "gone f", "fixed b", "runs now c"]);
        assert_eq!(told(false).len(), 5);
        assert!(now.changes(&now, true).is_empty());
        assert_eq!(before.changes(&now, true)[2].reason, "why skip");
    }

    #[test]
    fn other_files_are_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baseline");
        baseline(&[("a", "pass")]).write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline(&[("a", "pass")]));
        for text in ["", "{}", "[1", "{\"format\":9,\"place\":\"\",\"source\":\"\",\"verdicts\":{}}"] {
            fs::write(&path, text).unwrap();
            let error = Baseline::read(&path).unwrap_err().message;
            assert!(error.contains("--save") && !error.contains('\n'), "{error}");
        }
    }
}
