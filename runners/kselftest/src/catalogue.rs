//! Upstream's tests of what the table is about, function by function: memory slots, guest_memfd, memory
//! attributes, prefaulting, VM types, MMIO and I/O in userspace, SEV, and the series for TDX and SEV-SNP that
//! are not merged. As data, so that what is covered can be counted.

mod merged;
mod series;

/// A test of upstream's.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its file below tools/testing/selftests/kvm, without `.c`: `x86/sev_smoke_test`.
    pub name: &'static str,
    /// Where it comes from.
    pub origin: Origin,
    /// What it checks, by function: those that assert something themselves or are named as tests.
    /// `check-catalogue` holds that against the source.
    pub functions: &'static [Function],
}

/// Where a test comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// In Linux, 7.3 at the latest.
    Merged,
    /// Posted, in this series: known by its descriptions, and nowhere to run.
    Series(&'static str),
}

/// A function of a test, or one of its sub-tests.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Its name in the source, and in the output where the test prints results.
    pub name: &'static str,
    /// How the table stands to it.
    pub standing: Standing,
}

/// How the table stands to a function of upstream's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Rows name it.
    Covered,
    /// No row covers it, for this reason.
    NotCovered(&'static str),
    /// It is a step of this other function, and covered as far as that is.
    PartOf(&'static str),
}

/// All tests in scope.
pub const TESTS: &[Test] = &concat();

const fn concat() -> [Test; merged::TESTS.len() + series::TESTS.len()] {
    let mut tests = [merged::TESTS[0]; merged::TESTS.len() + series::TESTS.len()];
    let mut index = 0;
    while index < tests.len() {
        tests[index] =
            if index < merged::TESTS.len() { merged::TESTS[index] } else { series::TESTS[index - merged::TESTS.len()] };
        index += 1;
    }
    tests
}

/// The test of this name.
pub fn test(name: &str) -> Option<&'static Test> {
    TESTS.iter().find(|test| test.name == name)
}

impl Test {
    /// The functions that are no steps of others: what is counted.
    pub fn whole_functions(&self) -> impl Iterator<Item = &'static Function> {
        self.functions.iter().filter(|function| !matches!(function.standing, Standing::PartOf(_)))
    }

    /// The function of this name.
    pub fn function(&self, name: &str) -> Option<&'static Function> {
        self.functions.iter().find(|function| function.name == name)
    }

    /// The function that a printed result is about: the harness of kselftest names a result
    /// `fixture.variant.function`.
    pub fn function_of(&self, subtest: &str) -> Option<&'static Function> {
        self.whole_functions().find(|function| subtest.split('.').any(|part| part == function.name))
    }
}

/// A function that rows cover.
const fn covered(name: &'static str) -> Function {
    Function { name, standing: Standing::Covered }
}

/// A function that no row covers, for this reason.
const fn open(name: &'static str, why: &'static str) -> Function {
    Function { name, standing: Standing::NotCovered(why) }
}

/// A step of another function.
const fn part(name: &'static str, of: &'static str) -> Function {
    Function { name, standing: Standing::PartOf(of) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_test_and_function_is_there_once_and_every_gap_has_a_reason() {
        let mut names = BTreeSet::new();
        for test in TESTS {
            assert!(!test.functions.is_empty(), "{}", test.name);
            for function in test.functions {
                assert!(names.insert((test.name, function.name)), "{}: {}", test.name, function.name);
                assert!(!function.name.contains([',', ' ', '.']), "{}: {}", test.name, function.name);
                match function.standing {
                    Standing::Covered => {}
                    Standing::NotCovered(why) => assert!(why.len() > 10, "{}: {}", test.name, function.name),
                    Standing::PartOf(whole) => {
                        let is_whole = test.whole_functions().any(|function| function.name == whole);
                        assert!(is_whole, "{}: {} is a part of {whole}, which is none", test.name, function.name);
                    }
                }
            }
        }
    }

    #[test]
    fn results_are_put_to_functions_by_their_parts() {
        let conversions = test("x86/guest_memfd_conversions_test").unwrap();
        let function = |subtest| conversions.function_of(subtest).map(|function| function.name);
        assert_eq!(function("gmem_conversions.init_shared"), Some("init_shared"));
        assert_eq!(function("gmem_conversions.init_sharedness"), None);
    }
}
