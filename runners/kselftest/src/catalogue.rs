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
    /// What it checks, by function. Only functions that check something count.
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
    /// Why no row covers it; `None` if rows do.
    pub not_covered: Option<&'static str>,
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
    /// The function of this name.
    pub fn function(&self, name: &str) -> Option<&'static Function> {
        self.functions.iter().find(|function| function.name == name)
    }

    /// The function that a printed result is about: the harness of kselftest names a result
    /// `fixture.variant.function`.
    pub fn function_of(&self, subtest: &str) -> Option<&'static Function> {
        self.functions.iter().find(|function| subtest.split('.').any(|part| part == function.name))
    }
}

/// A function that rows cover.
const fn covered(name: &'static str) -> Function {
    Function { name, not_covered: None }
}

/// A function that no row covers, for this reason.
const fn open(name: &'static str, why: &'static str) -> Function {
    Function { name, not_covered: Some(why) }
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
                assert!(function.not_covered.is_none_or(|why| why.len() > 10), "{}: {}", test.name, function.name);
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
