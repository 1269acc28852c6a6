//! What became of the mutants: a line for each, the sum, and a page.

use std::collections::BTreeMap;
use std::path::Path;

use privet_kernel::BuildTree;
use privet_mutation::{Fate, Judgement, Judgements, NamedEdit, PageLine, Trial, page};

use super::candidates::Candidate;

/// All trials so far.
pub(super) struct Verdicts {
    judgements: Judgements,
    trials: Vec<(Candidate, Trial)>,
    /// What looks at mutants: `row`, or `test`.
    noun: &'static str,
}

impl Verdicts {
    pub(super) fn new(judgements: Judgements, noun: &'static str) -> Self {
        Self { judgements, trials: Vec::new(), noun }
    }

    pub(super) fn add(&mut self, candidate: &Candidate, trial: Trial) {
        self.trials.push((candidate.clone(), trial));
    }

    /// Whether somebody has decided about it.
    pub(super) fn is_judged(&self, candidate: &Candidate) -> bool {
        self.judgements.of(&candidate.point.name(), &candidate.content).is_some()
    }

    /// Adds one that is not tried, as somebody has decided about it.
    pub(super) fn trust(&mut self, candidate: &Candidate) {
        let trial = Trial {
            name: candidate.point.name(),
            content: candidate.content.clone(),
            judge: String::new(),
            fate: Fate::Judged,
            rows: 0,
            milliseconds: 0,
        };
        self.add(candidate, trial);
    }

    /// One trial in a line.
    pub(super) fn line(&self, candidate: &Candidate, trial: &Trial) -> String {
        let seconds = trial.milliseconds as f64 / 1000.0;
        let ran = format!("{} {}s", trial.rows, self.noun);
        let told = match &trial.fate {
            Fate::Killed { by, .. } => format!("by {by} ({ran}, {seconds:.1} s)"),
            Fate::KilledAtBoot { reason } => format!("{reason} ({seconds:.1} s)"),
            Fate::Survived => format!("{}({ran}, {seconds:.1} s)", self.opinion(trial)),
            Fate::Overlooked { by } => format!("by {} ({ran}, {seconds:.1} s)", by.join(" ")),
            Fate::Unreached => format!("{}no {} executes it", self.opinion(trial), self.noun),
            Fate::Judged => self.opinion(trial),
            Fate::Same => "the compiler makes the same of it".to_owned(),
            Fate::Rejected { complaint } => complaint.clone(),
        };
        let name = candidate.named.as_ref().map_or_else(|| trial.name.clone(), |edit| edit.name.clone());
        let missed = match &candidate.named {
            Some(edit) if !is_noticed_as_named(edit, trial) => ", though the rows of this edit should have been red",
            _ => "",
        };
        format!("{:<9} {name} {told}{missed}\n", trial.fate.word())
    }

    /// What somebody has decided about it.
    fn opinion(&self, trial: &Trial) -> String {
        match self.judgements.of(&trial.name, &trial.content) {
            Some(judged) => format!("{}: {} ", word(judged.judgement), judged.reason),
            None => String::new(),
        }
    }

    fn judgement(&self, trial: &Trial) -> Option<Judgement> {
        self.judgements.of(&trial.name, &trial.content).map(|judged| judged.judgement)
    }

    /// Whether nothing is left to be decided: every survivor was judged, and every edit with a story was noticed by the
    /// rows that it names.
    pub(super) fn is_satisfied(&self, named: bool) -> bool {
        self.trials.iter().all(|(candidate, trial)| match &candidate.named {
            Some(edit) if named => is_noticed_as_named(edit, trial),
            _ => !trial.fate.is_survivor() || self.judgement(trial).is_some(),
        })
    }

    /// The sum.
    pub(super) fn summary(&self, tree: &BuildTree, untried: usize, results: &Path, seed: u64) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut judged = 0;
        for (_, trial) in &self.trials {
            *counts.entry(trial.fate.word()).or_default() += 1;
            judged += usize::from(trial.fate.is_survivor() && self.judgement(trial).is_some());
        }
        let count = |word| counts.get(word).copied().unwrap_or_default();
        let killed = count("killed") + count("boot");
        let survived = count("survived") + count("overlooked") + count("unreached") + count("judged");
        let survivors = survived - judged;
        let rate = match killed + survivors {
            0 => String::new(),
            all => format!(" ({:.1} % of those that count)", 100.0 * killed as f64 / all as f64),
        };
        format!(
            "{}, machine sim, which is no hardware: {} mutants, {killed} killed{rate}, {} of them at boot; {} survived, {} of \
             those unreached, {judged} judged; {} make no difference to the compiler, {} do not compile; {untried} not \
             tried; seed {seed}, {}\n",
            tree.name,
            self.trials.len(),
            count("boot"),
            survived,
            count("unreached"),
            count("same"),
            count("rejected"),
            results.join("index.html").display(),
        )
    }

    /// The source with what survived in it, as a page.
    pub(super) fn page(&self, tree: &BuildTree) -> String {
        let lines = self.trials.iter().map(|(candidate, trial)| PageLine {
            point: &candidate.point,
            text: &candidate.text,
            trial,
            opinion: self.opinion(trial),
        });
        page(&tree.name, self.noun, lines)
    }
}

fn is_noticed_as_named(edit: &NamedEdit, trial: &Trial) -> bool {
    match &trial.fate {
        Fate::Killed { by, .. } => by.split_once('.').is_some_and(|(vm, name)| edit.names(vm, name)),
        _ => false,
    }
}

const fn word(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::Equivalent => "equivalent",
        Judgement::OutOfScope => "out of scope",
    }
}
