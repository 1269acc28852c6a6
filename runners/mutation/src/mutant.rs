//! What became of a mutant.

use serde::{Deserialize, Serialize};

/// The end of a mutant's trial.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// A row was red.
    Killed {
        /// The row.
        by: String,
        /// What it says.
        reason: String,
    },
    /// The kernel did not get as far as rows.
    KilledAtBoot {
        /// How that was seen.
        reason: String,
    },
    /// No row that reaches it was red.
    Survived,
    /// Not every row was red that an edit names.
    Overlooked {
        /// Their names.
        by: Vec<String>,
    },
    /// No row reaches it.
    Unreached,
    /// Somebody has said why no row can notice it, and so none was asked.
    Judged,
    /// The compiler makes the same of it as of the unchanged source.
    Same,
    /// It does not compile.
    Rejected {
        /// The compiler's complaint.
        complaint: String,
    },
}

impl Fate {
    /// In one word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Killed { .. } => "killed",
            Self::KilledAtBoot { .. } => "boot",
            Self::Survived => "survived",
            Self::Overlooked { .. } => "overlooked",
            Self::Unreached => "unreached",
            Self::Judged => "judged",
            Self::Same => "same",
            Self::Rejected { .. } => "rejected",
        }
    }

    /// Whether nobody noticed it who could have.
    #[must_use]
    pub const fn is_survivor(&self) -> bool {
        matches!(self, Self::Survived | Self::Overlooked { .. } | Self::Unreached | Self::Judged)
    }
}

/// One trial, as it is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// The name of the mutant.
    pub name: String,
    /// What the function was like, see [`fingerprint`].
    pub content: String,
    /// Who has judged: survivors of another table or silicon are tried again.
    pub judge: String,
    /// The end.
    #[serde(flatten)]
    pub fate: Fate,
    /// How many rows have run.
    pub rows: usize,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// A short name for a text that is not layout: what is judged in one version of a function says nothing about another.
#[must_use]
pub fn fingerprint(content: &str) -> String {
    // FNV-1a: the value must be the same in every build of this program, for ever.
    let hash = content
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_one_flat_object() {
        let fate = Fate::Killed { by: "plain.a".into(), reason: "b".into() };
        let trial = Trial {
            name: "f.c:g:drop:1".into(),
            content: "1".into(),
            judge: "2".into(),
            fate,
            rows: 3,
            milliseconds: 4,
        };
        let text = serde_json::to_string(&trial).unwrap();
        assert!(text.contains(r#""fate":"killed","by":"plain.a""#), "{text}");
        assert_eq!(serde_json::from_str::<Trial>(&text).unwrap(), trial);
    }

    #[test]
    fn fingerprints_are_those_of_fnv() {
        assert_eq!(fingerprint(""), "cbf29ce484222325");
        assert_eq!(fingerprint("a"), "af63dc4c8601ec8c");
    }
}
