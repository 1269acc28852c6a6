//! The trials so far, one JSON object a line: whoever is killed in the middle goes on where he was.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::mutant::Trial;

/// A file of trials.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    trials: BTreeMap<String, Trial>,
}

impl Ledger {
    /// Opens the file, or begins it. A last line that was not written to its end does not count.
    ///
    /// # Errors
    /// If it cannot be read or written, or is no such file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let mut trials = BTreeMap::new();
        for (number, line) in (1..).zip(whole.lines()) {
            let trial: Trial = serde_json::from_str(line)
                .map_err(|error| io::Error::other(format!("line {number} is no trial: {error}")))?;
            trials.insert(trial.name.clone(), trial);
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(whole.len() as u64)?;
        Ok(Self { file, trials })
    }

    /// What is known of a mutant whose function is still like this, and which this judge would not judge otherwise: a
    /// mutant stays killed, but survives only until there are other rows.
    #[must_use]
    pub fn known(&self, name: &str, content: &str, judge: &str) -> Option<&Trial> {
        let trial = self.trials.get(name).filter(|trial| trial.content == content)?;
        (!trial.fate.is_survivor() || trial.judge == judge).then_some(trial)
    }

    /// All of them.
    pub fn trials(&self) -> impl Iterator<Item = &Trial> {
        self.trials.values()
    }

    /// Adds a trial, which is on the disk then.
    ///
    /// # Errors
    /// Of `write(2)`.
    pub fn add(&mut self, trial: Trial) -> io::Result<()> {
        let line = serde_json::to_string(&trial).map_err(io::Error::other)? + "\n";
        self.file.write_all(line.as_bytes())?;
        self.trials.insert(trial.name.clone(), trial);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutant::Fate;

    fn trial(name: &str, fate: Fate) -> Trial {
        Trial { name: name.into(), content: "c".into(), judge: "j".into(), fate, rows: 1, milliseconds: 1 }
    }

    #[test]
    fn trials_outlive_who_is_killed_while_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trials.jsonl");
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.add(trial("a", Fate::Survived)).unwrap();
        ledger.add(trial("b", Fate::Same)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        let mut ledger = Ledger::open(&path).unwrap();
        assert!(ledger.known("a", "c", "j").is_some() && ledger.known("b", "c", "j").is_none());
        ledger.add(trial("b", Fate::Same)).unwrap();
        assert!(Ledger::open(&path).unwrap().known("b", "c", "j").is_some());
    }

    #[test]
    fn a_survivor_is_tried_again_by_other_rows_and_anything_in_another_function() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&dir.path().join("trials.jsonl")).unwrap();
        ledger.add(trial("a", Fate::Survived)).unwrap();
        ledger.add(trial("b", Fate::Killed { by: "r".into(), reason: "x".into() })).unwrap();
        assert!(ledger.known("a", "c", "other").is_none() && ledger.known("b", "c", "other").is_some());
        assert!(ledger.known("b", "other", "j").is_none());
    }

    #[test]
    fn another_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trials.jsonl");
        std::fs::write(&path, "hello\n").unwrap();
        assert!(Ledger::open(&path).unwrap_err().to_string().contains("line 1"));
    }
}
