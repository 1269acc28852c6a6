//! Survivors that somebody has looked at: equivalent, or nobody's business here, with the reason.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::scope::matches;

/// What somebody has decided about a survivor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// No program can tell it from the unchanged kernel.
    Equivalent,
    /// It can be told, by nothing that this table is about.
    OutOfScope,
}

/// One decision.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judged {
    /// The mutant's name, or several with `*`.
    pub name: String,
    /// The fingerprint of the function as it was: a changed kernel asks again.
    pub content: String,
    /// The decision.
    pub judgement: Judgement,
    /// The types of the VMs whose rows can notice it, or the vendor whose processors can: it does not hold where these look.
    #[serde(default)]
    pub except: Vec<String>,
    /// Why.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    judged: Vec<Judged>,
}

/// All decisions of a file.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Judgements(Vec<Judged>);

impl Judgements {
    /// Reads them from TOML.
    ///
    /// # Errors
    /// In one line, if they are none.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str::<File>(text).map(|file| Self(file.judged)).map_err(|error| error.message().to_owned())
    }

    /// Those that hold where rows of VMs of these types look, on processors of this vendor.
    #[must_use]
    pub fn unless_looked_at_by(mut self, who: &BTreeSet<&str>) -> Self {
        self.0.retain(|judged| !judged.except.iter().any(|one| who.contains(one.as_str())));
        self
    }

    /// What was decided about a mutant whose function is still like this.
    #[must_use]
    pub fn of(&self, name: &str, content: &str) -> Option<&Judged> {
        self.0.iter().find(|judged| judged.content == content && matches(&judged.name, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_function_asks_again() {
        let text = "[[judged]]\nname = \"a.c:f:*\"\ncontent = \"12\"\njudgement = \"equivalent\"\nreason = \"why\"\n";
        let judgements = Judgements::parse(text).unwrap();
        assert_eq!(judgements.of("a.c:f:drop:x:1", "12").unwrap().judgement, Judgement::Equivalent);
        assert!(judgements.of("a.c:f:drop:x:1", "13").is_none() && judgements.of("a.c:g:drop:x:1", "12").is_none());
        assert!(Judgements::parse("judged = 1").is_err() && Judgements::parse("").is_ok());
    }

    #[test]
    fn what_only_some_guests_notice_is_decided_for_the_others() {
        let text = "[[judged]]\nname = \"a\"\ncontent = \"1\"\njudgement = \"equivalent\"\nexcept = [\"snp\"]\nreason = \"why\"\n";
        let is_decided = |who: &[&str]| {
            let who = who.iter().copied().collect();
            Judgements::parse(text).unwrap().unless_looked_at_by(&who).of("a", "1").is_some()
        };
        assert!(is_decided(&["plain", "amd"]) && !is_decided(&["plain", "snp", "amd"]));
    }
}
