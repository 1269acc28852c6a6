//! What a host is known to say, so that a later comparison can tell what is new: a file of all verdicts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use nix::sys::utsname::uname;
use privet_report::Place;
use serde::{Deserialize, Serialize};

use super::Compared;
use crate::exit::Early;
use crate::place::Context;

/// The format of the file.
const FORMAT: u32 = 1;

/// All verdicts of one comparison.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Baseline {
    /// The format.
    format: u32,
    /// The name of the machine, if they say something about a machine.
    machine: String,
    /// Where they were obtained.
    place: Context,
    /// The source of upstream's tests.
    source: String,
    /// The verdicts, by the name of upstream's test or the id of the row.
    verdicts: BTreeMap<String, Said>,
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

/// A comparison against a baseline.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Against {
    /// What is different about the place, one short line each. Empty if the baseline is of the same.
    pub elsewhere: Vec<String>,
    /// What changed, the worst first.
    pub changes: Vec<Change>,
}

impl Against {
    /// What is different about the place, in one line, if anything is.
    pub fn elsewhere_in_words(&self) -> Option<String> {
        let elsewhere = !self.elsewhere.is_empty();
        elsewhere.then(|| format!("the baseline is of another place: {}", self.elsewhere.join("; ")))
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
        let machine = match compared.place.on {
            Place::Host => uname().map(|name| name.nodename().to_string_lossy().into_owned()).unwrap_or_default(),
            Place::Rig | Place::Model => String::new(),
        };
        Self { format: FORMAT, machine, place: compared.place.clone(), source: compared.source.clone(), verdicts }
    }

    /// Reads a baseline of the place `on`.
    ///
    /// # Errors
    /// One line that says what is wrong with the file.
    pub fn read(path: &Path, on: Place) -> Result<Self, Early> {
        let wrong = |why: String| {
            Early::usage(format!("{}: {why}; write a baseline with `privet compare --save FILE`", path.display()))
        };
        let bytes = fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let baseline: Self =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is no baseline: {error}")))?;
        if baseline.format != FORMAT {
            return Err(wrong(format!("has format {}, and this is format {FORMAT}", baseline.format)));
        }
        if baseline.place.on != on {
            return Err(Early::usage(format!(
                "{}: is a baseline of the {}, which says nothing about the {on}: use --on {}, or write another with --save FILE",
                path.display(),
                baseline.place.on,
                baseline.place.on
            )));
        }
        Ok(baseline)
    }

    /// Writes a baseline.
    ///
    /// # Errors
    /// Of `out`.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut out, self)?;
        writeln!(out)
    }

    /// What is different in `now`. If that `is_everything`, what it does not have is gone.
    pub fn against(&self, now: &Self, is_everything: bool) -> Against {
        Against { elsewhere: self.elsewhere(now), changes: self.changes(now, is_everything) }
    }

    /// What is different about the place, and what both ran there: as it was, and as it is.
    fn elsewhere(&self, now: &Self) -> Vec<String> {
        let without = |these: &Context, others: &Context| {
            let only = these.module_params.iter().filter(|param| !others.module_params.contains(param));
            only.map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        let kernel = |place: &Context| match place.kernel.as_str() {
            "" => String::new(),
            release => format!("Linux {release}"),
        };
        let played =
            |place: &Context| place.machine.as_ref().map_or_else(String::new, |name| format!("machine {name}"));
        let (before, after) = (&self.place, &now.place);
        let pairs = [
            (self.machine.clone(), now.machine.clone()),
            (played(before), played(after)),
            (kernel(before), kernel(after)),
            (before.vendor.clone(), after.vendor.clone()),
            (without(before, after), without(after, before)),
            (self.source.clone(), now.source.clone()),
        ];
        let told = |part: String| if part.is_empty() { "nothing".to_owned() } else { part };
        let different = pairs.into_iter().filter(|(before, after)| before != after);
        different.map(|(before, after)| format!("{} then, {} now", told(before), told(after))).collect()
    }

    /// What is different in `now`, the worst first. What was not selected this time is not gone.
    fn changes(&self, now: &Self, is_everything: bool) -> Vec<Change> {
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
        let place = Context::nowhere(Place::Rig);
        Baseline { format: FORMAT, machine: String::new(), place, source: "x".into(), verdicts }
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
        let written = baseline(&[("a", "pass")]);
        written.write(fs::File::create(&path).unwrap()).unwrap();
        assert_eq!(Baseline::read(&path, Place::Rig).unwrap(), written);
        let refused = |on| {
            let error = Baseline::read(&path, on).unwrap_err().message;
            assert!(error.contains("--save") && !error.contains('\n'), "{error}");
        };
        refused(Place::Model);
        let other_format = serde_json::to_string(&Baseline { format: 9, ..written }).unwrap();
        for text in ["", "{}", "[1", &other_format] {
            fs::write(&path, text).unwrap();
            refused(Place::Rig);
        }
    }

    #[test]
    fn another_place_is_told() {
        let before = baseline(&[]);
        assert_eq!(before.against(&before, true).elsewhere_in_words(), None);
        let mut now = before.clone();
        now.place.kernel = "7.4".into();
        now.place.module_params = vec!["kvm.tdp_mmu=N".into()];
        let told = before.against(&now, true).elsewhere_in_words().unwrap();
        assert_eq!(
            told,
            "the baseline is of another place: nothing then, Linux 7.4 now; nothing then, kvm.tdp_mmu=N now"
        );
    }
}
