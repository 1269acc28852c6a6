//! A directory of built selftests, laid out as upstream's own: `guest_memfd_test`, `x86/sev_smoke_test`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use privet_kernel::KernelError;

use crate::build::cache_dir;

/// The file that names the source that a directory was built from.
pub(crate) const SOURCE: &str = "source";

/// Built selftests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kselftests {
    /// The directory.
    pub dir: PathBuf,
    /// Where its source came from, if it was built by [`crate::build::build`].
    pub source: Option<String>,
}

/// Why there are no selftests.
#[derive(Debug, thiserror::Error)]
pub enum NoKselftests {
    /// None were built and none were named.
    #[error("no selftests of the kernel in {}: build them with `privet kselftests build`, or name a directory of built ones with --kselftests DIR", .0.display())]
    NotBuilt(PathBuf),
    /// The named directory has none.
    #[error("{}: none of upstream's tests is in there: name a directory such as tools/testing/selftests/kvm after make, or build one with `privet kselftests build`", .0.display())]
    Empty(PathBuf),
    /// The cache cannot be found.
    #[error(transparent)]
    Cache(#[from] KernelError),
}

impl Kselftests {
    /// The selftests that were built, or asked to be, last.
    ///
    /// # Errors
    /// If none were.
    pub fn cached() -> Result<Self, NoKselftests> {
        let cache = cache_dir()?;
        let newest = fs::read_dir(&cache)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let built = entry.path().join(SOURCE).metadata().ok()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                Some((built, entry.path()))
            })
            .max();
        let (_, dir) = newest.ok_or(NoKselftests::NotBuilt(cache))?;
        Self::named(&dir)
    }

    /// The selftests in this directory.
    ///
    /// # Errors
    /// If it has none that the catalogue knows.
    pub fn named(dir: &Path) -> Result<Self, NoKselftests> {
        let source = fs::read_to_string(dir.join(SOURCE)).ok().map(|source| source.trim_end().to_owned());
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let tests = Self { dir: dir.clone(), source };
        let has_any = crate::catalogue::TESTS.iter().any(|test| tests.program(test.name).is_some());
        if has_any { Ok(tests) } else { Err(NoKselftests::Empty(dir)) }
    }

    /// The program of this test, if it was built.
    pub fn program(&self, test: &str) -> Option<PathBuf> {
        let path = self.dir.join(test);
        let file = path.metadata().ok()?;
        (file.is_file() && file.permissions().mode() & 0o111 != 0).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_tests_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("guest_memfd_test"), "not a program").unwrap();
        let error = Kselftests::named(dir.path()).unwrap_err().to_string();
        assert!(error.contains("privet kselftests build") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn programs_are_found_by_the_names_of_their_tests() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x86")).unwrap();
        let program = dir.path().join("x86/sev_smoke_test");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let tests = Kselftests::named(dir.path()).unwrap();
        assert!(tests.program("x86/sev_smoke_test").is_some());
        assert_eq!(tests.program("guest_memfd_test"), None);
    }
}
