//! Who looks at a kernel: rows, or upstream's own tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use privet_cases::Entry;
use privet_kernel::Kernel;
use privet_kselftest::catalogue::TESTS;
use privet_kselftest::directory::Kselftests;
use privet_report::{CaseReport, one_line};
use privet_rig::{ModuleParam, Patience, Plan, Profile, Program, SimOptions, Without};
use serde::{Deserialize, Serialize};

use super::half::Half;
use crate::args::{KernelMutants, With, check_profile};
use crate::exit::Early;
use crate::kselftest_worker;
use crate::plan::{self, Job};
use crate::rig::{KSELFTESTS, sim_plan};

/// How long a kernel may take to get ready, by the clock of its guest: an unchanged one needs less than 2 s.
const BOOT: Duration = Duration::from_secs(10);

/// How long upstream gives each of its tests (kernel: tools/testing/selftests/kvm/settings).
const OF_A_TEST: Duration = Duration::from_secs(120);

/// The part that is the whole.
const WHOLE: &str = "";

/// Who looks at kernels, and where these run.
pub(super) struct Watchers {
    kind: Kind,
    module_params: Vec<ModuleParam>,
    /// The processors, if not the usual ones, and what they lack.
    profile: Option<Profile>,
    without: Without,
    /// All rows, with what is known of them.
    table: Vec<Entry>,
}

/// Who looks.
pub(super) enum Kind {
    /// Rows of the table.
    Rows,
    /// Upstream's tests of what the table is about.
    Kselftests(Kselftests),
}

/// What one of them said: each part of it that has a verdict of its own with that verdict, the whole under no name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Said(BTreeMap<String, String>);

impl Watchers {
    /// Those that the options name.
    ///
    /// # Errors
    /// If there are no selftests where they are to be, or the processors are the other vendor's.
    pub(super) fn of(options: &KernelMutants, half: Half) -> Result<Self, Early> {
        check_profile(options.cpu_profile, half.0)?;
        let kind = match (options.with, &options.kselftests) {
            (None, _) => Kind::Rows,
            (Some(With::Kselftests), Some(dir)) => {
                Kind::Kselftests(Kselftests::named(dir).map_err(|error| Early::usage(error.to_string()))?)
            }
            (Some(With::Kselftests), None) => {
                Kind::Kselftests(Kselftests::cached().map_err(|error| Early::nothing_ran(error.to_string()))?)
            }
        };
        Ok(Self {
            kind,
            module_params: options.module_param.clone(),
            profile: options.cpu_profile,
            without: options.cpu_without.unwrap_or_default(),
            table: privet_cases::table(),
        })
    }

    /// Whether all of them are to pass on an unchanged kernel. Upstream's are as they are.
    pub(super) const fn have_to_pass(&self) -> bool {
        matches!(self.kind, Kind::Rows)
    }

    /// One of them.
    pub(super) const fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Rows => "row",
            Kind::Kselftests(_) => "test",
        }
    }

    /// Where what they found is kept, of what is kept in `results`.
    pub(super) fn results(&self, results: &Path) -> PathBuf {
        match self.kind {
            Kind::Rows => results.to_owned(),
            Kind::Kselftests(_) => results.join("kselftests"),
        }
    }

    /// What all of them do. Rows are these.
    pub(super) fn jobs(&self, rows: &[String], seed: u64, limit: Duration) -> Vec<Job> {
        match &self.kind {
            Kind::Rows => plan::jobs(rows, 1, seed, limit),
            Kind::Kselftests(tests) => {
                names(tests).map(|test| kselftest_worker::job(test, limit.max(OF_A_TEST))).collect()
            }
        }
    }

    /// A name for them all, which changes with what they say.
    pub(super) fn name(&self, rows: &[String]) -> String {
        let who = match &self.kind {
            Kind::Rows => rows.join(" "),
            Kind::Kselftests(tests) => format!("{} of {}", tests.dir.display(), names(tests).collect::<String>()),
        };
        let who = self.profile.map_or(who.clone(), |profile| format!("{who} on {}", profile.name()));
        self.module_params
            .iter()
            .fold(format!("{who} without {}", self.without), |name, param| format!("{name} {param}"))
    }

    /// These jobs on a kernel, one after the other.
    pub(super) fn plan(&self, kernel: Kernel, program: &Path, half: Half, jobs: &[Job]) -> Plan {
        let program_of = |test| match &self.kind {
            Kind::Rows => None,
            Kind::Kselftests(tests) => tests.program(test),
        };
        let programs = jobs.iter().filter_map(kselftest_worker::test_of).filter_map(|test| {
            program_of(test).map(|path| Program { path, guest_path: Path::new(KSELFTESTS).join(test) })
        });
        let plan = sim_plan(kernel, program, jobs);
        let patience = Patience { boot: BOOT, ..plan.patience };
        let module_params = self.module_params.clone();
        let usual = half.sim();
        let sim = SimOptions { profile: self.profile.unwrap_or(usual.profile), without: self.without, ..usual };
        Plan { programs: programs.collect(), sim, patience, module_params, ..plan }
    }

    /// What a row looks at.
    pub(super) fn about(&self, id: &str) -> Option<&str> {
        self.table.iter().find(|row| row.id == id).map(|row| row.about)
    }

    /// Whether what a row says is a bug that this kernel is known for, changed or not.
    pub(super) fn is_known(&self, report: &CaseReport) -> bool {
        let rows = self.table.iter().filter(|row| row.id == report.id);
        report.verdict.is_red() && rows.filter_map(|row| row.known_bug(&report.kernel, &report.reason)).next().is_some()
    }

    /// What one of them said, and why it was no pass.
    pub(super) fn said(&self, report: &CaseReport) -> (Said, String) {
        let runner = report.verdict.to_string();
        match self.kind {
            Kind::Rows => (Said([(WHOLE.to_owned(), runner)].into()), one_line(&report.reason)),
            Kind::Kselftests(_) => {
                let reading = kselftest_worker::reading(report);
                let mut said = BTreeMap::from([
                    (WHOLE.to_owned(), reading.verdict.to_string()),
                    // To upstream's runners a test passes of which the kernel complains; whoever reads its log knows more.
                    ("the kernel's log".to_owned(), runner),
                ]);
                said.extend(reading.subtests.into_iter().map(|part| (part.name, part.verdict.to_string())));
                (Said(said), one_line(&reading.reason))
            }
        }
    }
}

fn names(tests: &Kselftests) -> impl Iterator<Item = &'static str> + '_ {
    TESTS.iter().map(|test| test.name).filter(|test| tests.program(test).is_some())
}

impl Said {
    /// A pass, of which all parts may be known.
    pub(super) fn is_pass(&self) -> bool {
        of(&self.0, WHOLE) == "pass"
    }

    /// What is said here and was not said before, in one line; nothing if it is the same.
    pub(super) fn differs_from(&self, before: &Self, reason: &str) -> Option<String> {
        // The whole comes first.
        let names: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        let pairs = names.into_iter().map(|name| (name, of(&self.0, name), of(&before.0, name)));
        let (name, now, then) = pairs.into_iter().find(|(_, now, then)| now != then)?;
        Some(if name == WHOLE { format!("{now}: {reason}") } else { format!("{name}: {now}, was {then}") })
    }
}

fn of<'a>(said: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    said.get(name).map_or("not there", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(parts: &[(&str, &str)]) -> Said {
        Said(parts.iter().map(|(name, verdict)| ((*name).to_owned(), (*verdict).to_owned())).collect())
    }

    #[test]
    fn another_verdict_of_the_whole_or_of_a_part_is_noticed() {
        let clean = said(&[("", "pass"), ("a", "pass"), ("b", "skip")]);
        assert!(clean.is_pass());
        assert_eq!(clean.differs_from(&clean, ""), None);
        let red = said(&[("", "fail"), ("a", "fail"), ("b", "skip")]);
        assert_eq!(red.differs_from(&clean, "why").as_deref(), Some("fail: why"));
        let skips = said(&[("", "pass"), ("a", "skip"), ("b", "skip")]);
        assert_eq!(skips.differs_from(&clean, "").as_deref(), Some("a: skip, was pass"));
        let lacks = said(&[("", "pass"), ("b", "skip")]);
        assert_eq!(lacks.differs_from(&clean, "").as_deref(), Some("a: not there, was pass"));
    }
}
