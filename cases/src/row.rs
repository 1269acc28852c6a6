//! A row: one behaviour, one story, one expectation, for one or several VM types.

use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;

use crate::types::Types;

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

/// A kernel bug that a row has found or would have found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownBug {
    /// The title of the fix, or what is wrong.
    pub title: &'static str,
    /// The first release with a fix, as (major, minor); None if there is no fix yet.
    pub fixed_in: Option<(u32, u32)>,
    /// What is seen of the bug: the beginning of the row's reason. Any other failure is another bug.
    pub seen: &'static str,
}

/// One behaviour.
pub struct Row {
    /// `<group>.<name>[.<variant>]`; the ids are made of it.
    pub name: String,
    /// The types of its VMs.
    pub types: Types,
    /// What it checks, for people.
    pub about: &'static str,
    /// On what the expectation is based: kernel files, documents, commits, CVEs.
    pub basis: &'static [&'static str],
    /// The functions of the kernel's own selftests that check something of the kind.
    pub upstream: Vec<Counterpart>,
    /// What it needs beside its VM type.
    pub needs: Vec<Need>,
    /// The bug by which it fails.
    pub bug: Option<KnownBug>,
    /// How many guests with a key of their own live at the same time at most.
    pub guests: usize,
    /// Whether it takes all that its host has of something, so that no other row can run on that host meanwhile.
    pub is_alone: bool,
    /// Whether a kernel with a bug where this row looks may take its host down: threads race inside KVM, or kernels
    /// were seen to crash.
    pub is_risky: bool,
    pub(crate) story: Story,
}

impl Row {
    /// A row that is told for each of `types`.
    pub fn new(
        name: impl Into<String>,
        types: Types,
        about: &'static str,
        story: impl Fn(&Case) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let (name, story) = (name.into(), Box::new(story));
        let (basis, upstream, needs) = (&[][..], Vec::new(), Vec::new());
        let (guests, is_alone, is_risky) = (1, false, false);
        Self { name, types, about, basis, upstream, needs, bug: None, guests, is_alone, is_risky, story }
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

    /// So many of its guests live at the same time, each of which takes a key id of the host's.
    pub fn guests(self, guests: usize) -> Self {
        Self { guests, ..self }
    }

    /// It takes all that its host has of something: no other row runs on that host meanwhile.
    pub fn alone(self) -> Self {
        Self { is_alone: true, ..self }
    }

    /// A kernel with a bug where this row looks may take its host down, so that a fleet runs it alone and last.
    pub fn risky(self) -> Self {
        Self { is_risky: true, ..self }
    }

    /// Kernels before `since` fail this row by a bug that a commit of this title has fixed: the reason then begins
    /// with `seen`.
    pub fn fixed_since(self, since: (u32, u32), title: &'static str, seen: &'static str) -> Self {
        Self { bug: Some(KnownBug { title, fixed_in: Some(since), seen }), ..self }
    }

    /// Every kernel so far fails this row, or may, by this bug: the reason then begins with `seen`.
    pub fn open_bug(self, title: &'static str, seen: &'static str) -> Self {
        Self { bug: Some(KnownBug { title, fixed_in: None, seen }), ..self }
    }

    /// What a failure of this row for this `reason` on the kernel `release` means if it is by its bug. A place without a
    /// kernel has the empty release, and no known bugs.
    pub fn known_bug(&self, release: &str, reason: &str) -> Option<String> {
        let KnownBug { title, fixed_in, seen } = self.bug?;
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        let running = (numbers.next()?, numbers.next()?);
        let is_it = reason.starts_with(seen);
        match fixed_in {
            Some(fix) if running < fix && is_it => {
                Some(format!("known bug of this kernel, fixed in Linux {}.{}: {title}", fix.0, fix.1))
            }
            None if is_it => Some(format!("known bug, without a fix so far: {title}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_bug_is_one_observation_on_older_kernels_only() {
        let row = Row::new("slots.row", Types::ALL, "A row.", |_| Ok(()));
        let seen = "a slot: succeeded, expected EINVAL";
        assert_eq!(row.known_bug("6.18.44", seen), None);
        let row = row.fixed_since((7, 2), "guest_memfd: mend it", "a slot: succeeded");
        for (release, is_known) in [
            ("6.18.44-fc-v669", true),
            ("7.1.0", true),
            ("7.2.0-rc1", false),
            ("7.3.4", false),
            ("8.0-rc3", false),
            ("", false),
        ] {
            assert_eq!(row.known_bug(release, seen).is_some(), is_known, "{release}");
        }
        assert_eq!(row.known_bug("6.18.44", "another slot: succeeded, expected EINVAL"), None);
    }

    #[test]
    fn an_open_bug_is_known_on_every_kernel() {
        let row = Row::new("slots.row", Types::ALL, "A row.", |_| Ok(())).open_bug("a slot leaks", "a slot: saw");
        for (release, reason, is_known) in [
            ("7.3.4", "a slot: saw 1", true),
            ("8.0", "a slot: saw 1", true),
            ("", "a slot: saw 1", false),
            ("7.3.4", "else", false),
        ] {
            assert_eq!(row.known_bug(release, reason).is_some(), is_known, "{release} {reason}");
        }
    }
}
