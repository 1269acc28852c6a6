//! Mutants with a story: edits that bring back a known bug, or break what certain rows are about.

use serde::Deserialize;

use crate::operator::Operator;
use crate::point::Point;
use crate::scope::matches;

/// An edit, as a file names it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedEdit {
    /// Its own name.
    pub name: String,
    /// The file, below the top of the source.
    pub file: String,
    /// The function.
    pub function: String,
    /// How it is broken.
    pub operator: Operator,
    /// What it is about, for operators that name it.
    pub target: Option<String>,
    /// Which one, from 1, if there are several.
    pub ordinal: Option<usize>,
    /// What is broken, for people.
    pub about: String,
    /// The bug of KVM's past that it brings back, if it does: since when, and what it was.
    pub bug: Option<String>,
    /// The VM types whose rows have to be red, where KVM does it otherwise for the others: `["sev_es", "snp"]`. All, if there
    /// are none.
    #[serde(default)]
    pub vms: Vec<String>,
    /// The names of the rows that have to be red, as in their ids behind the VM type; `*` stands for any text.
    pub red: Vec<String>,
}

impl NamedEdit {
    /// The edits of a file.
    ///
    /// # Errors
    /// In one line, if it has none.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            edit: Vec<NamedEdit>,
        }
        toml::from_str::<File>(text).map(|file| file.edit).map_err(|error| error.message().to_owned())
    }

    /// Whether the row of this name has to be red for VMs of this type.
    #[must_use]
    pub fn names(&self, vm: &str, row: &str) -> bool {
        (self.vms.is_empty() || self.vms.iter().any(|other| other == vm))
            && self.red.iter().any(|name| matches(name, row))
    }

    /// Whether it is this point.
    #[must_use]
    pub fn is(&self, point: &Point) -> bool {
        let Self { file, function, operator, target, ordinal, .. } = self;
        (file, function, *operator, target, ordinal.unwrap_or(1))
            == (&point.file, &point.function, point.operator, &point.target, point.ordinal)
    }
}
