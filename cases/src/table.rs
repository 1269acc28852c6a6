//! The table's row type and what runs one row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use privet_harness::case::{Case, PayloadFile};
use privet_harness::host::Host;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::vm_type::VmType;

/// What a row tells: straight-line host code that reads as what happens.
pub type Story = Box<dyn Fn(&Case) -> Outcome + Send + Sync>;

/// A function of one of the kernel's own selftests, as a row names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counterpart {
    /// The test: its file below tools/testing/selftests/kvm, without `.c`.
    pub test: &'static str,
    /// The function in it, or the sub-test that it prints a result of.
    pub function: &'static str,
    /// Whether the row checks more than the function does.
    pub is_exceeded: bool,
}

impl std::fmt::Display for Counterpart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.test, self.function)
    }
}

/// A kernel bug that a row has found or would have found, and that newer kernels do not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FixedBug {
    /// The title of the fix.
    pub title: &'static str,
    /// The first release with it, as (major, minor).
    pub since: (u32, u32),
}

/// One behaviour, one story, one expectation.
pub struct Row {
    /// `<vm>.<group>.<name>[.<variant>]`, stable.
    pub id: String,
    /// The type of its VMs.
    pub vm: VmType,
    /// What it checks, for people.
    pub about: &'static str,
    /// On what the expectation is based: kernel files, documents, commits, CVEs.
    pub basis: &'static [&'static str],
    /// The functions of the kernel's own selftests that check something of the kind.
    pub upstream: Vec<Counterpart>,
    /// What it needs beside its VM type.
    pub needs: Vec<Need>,
    /// The bug by which it fails on older kernels.
    pub fixed: Option<FixedBug>,
    story: Story,
}

/// What came of telling a row.
pub struct Ran {
    /// How it ended.
    pub outcome: Outcome,
    /// How often KVM_RUN returned.
    pub exits: u64,
    /// What helps to understand an outcome other than a pass; one line each.
    pub details: Vec<String>,
}

impl Row {
    /// A row. Its VM type is the first segment of its id.
    ///
    /// # Panics
    /// If the id is malformed: ids are written by us, and a test builds the whole table.
    pub fn new(
        id: impl Into<String>,
        about: &'static str,
        story: impl Fn(&Case) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let id = id.into();
        let vm = id.split('.').next().unwrap_or_default().parse().expect("the first segment of an id is a VM type");
        Self { id, vm, about, basis: &[], upstream: Vec::new(), needs: Vec::new(), fixed: None, story: Box::new(story) }
    }

    /// On what the expectation is based.
    pub fn basis(self, basis: &'static [&'static str]) -> Self {
        Self { basis, ..self }
    }

    /// What upstream has that checks the same: `guest_memfd_test: test_fallocate`, or several functions of one
    /// test with commas between them.
    ///
    /// # Panics
    /// If it is written otherwise.
    pub fn upstream(self, functions: &'static str) -> Self {
        self.with_counterparts(functions, false)
    }

    /// What upstream has that checks less than this row, written likewise.
    ///
    /// # Panics
    /// See [`Row::upstream`].
    pub fn exceeds(self, functions: &'static str) -> Self {
        self.with_counterparts(functions, true)
    }

    fn with_counterparts(mut self, functions: &'static str, is_exceeded: bool) -> Self {
        let (test, functions) = functions.split_once(": ").expect("a counterpart is a test, a colon and functions");
        self.upstream.extend(functions.split(", ").map(|function| Counterpart { test, function, is_exceeded }));
        self
    }

    /// One more requirement.
    pub fn needs(mut self, need: Need) -> Self {
        self.needs.push(need);
        self
    }

    /// Kernels before `since` fail this row by a bug that a commit of this title has fixed.
    pub fn fixed_since(self, since: (u32, u32), title: &'static str) -> Self {
        Self { fixed: Some(FixedBug { title, since }), ..self }
    }

    /// What a failure of this row on the kernel `release` means if that is a bug which newer kernels do not have.
    pub fn known_bug(&self, release: &str) -> Option<String> {
        let FixedBug { title, since: (major, minor) } = self.fixed?;
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        let running = (numbers.next()?, numbers.next()?);
        (running < (major, minor)).then(|| format!("known bug of this kernel, fixed in Linux {major}.{minor}: {title}"))
    }

    /// Why `host` cannot run this row, if it cannot: one line that a person can act on.
    pub fn unmet(&self, host: &Host) -> Option<String> {
        host.why_not(self.vm).or_else(|| self.needs.iter().find_map(|need| need.unmet(host, self.vm)))
    }

    /// Tells the story once, in this process.
    pub fn run(&self, host: Arc<Host>, seed: u64, limit: Duration) -> Ran {
        if let Some(reason) = self.unmet(&host) {
            return Ran { outcome: Err(Stop::Skip(reason)), exits: 0, details: Vec::new() };
        }
        let payload = PayloadFile { name: privet_payloads::GENERAL.name, elf: privet_payloads::GENERAL.elf };
        let kernel = host.kernel().to_owned();
        let case = Case::new(host, self.vm, payload, seed, limit);
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.story)(&case)))
            .unwrap_or_else(|panic| Err(Stop::Error(format!("the row panicked: {}", panic_text(panic.as_ref())))));
        let outcome = outcome.map_err(|stop| match (stop, self.known_bug(&kernel)) {
            (Stop::Fail(reason), Some(bug)) => Stop::Fail(format!("{reason} ({bug})")),
            (stop, _) => stop,
        });
        let details = if outcome.is_err() { case.exit_lines() } else { Vec::new() };
        Ran { outcome, exits: case.trace().exits(), details }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_bug_is_one_of_older_kernels_only() {
        let row = Row::new("plain.slots.row", "A row.", |_| Ok(())).fixed_since((7, 2), "guest_memfd: mend it");
        for (release, is_known) in [
            ("6.18.44-fc-v669", true),
            ("7.1.0", true),
            ("7.2.0-rc1", false),
            ("7.3.4", false),
            ("8.0-rc3", false),
            ("", false),
        ] {
            assert_eq!(row.known_bug(release).is_some(), is_known, "{release}");
        }
        assert_eq!(Row::new("plain.slots.row", "A row.", |_| Ok(())).known_bug("6.18.44"), None);
    }
}
