//! The newest `linux-source-*` package within reach, through an apt configuration of its own: own sources,
//! lists and caches, so that the system's stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::apt_sources::{Mirror, debian_mirror};
use crate::command::Runner;
use crate::error::{KernelError, cannot};

/// Newer suites than the installed one, by the names that always lead to the present ones.
const NEWER_SUITES: &[&str] = &["stable-backports", "unstable"];

/// How long lists of packages are taken as they are, so that an unchanged build is found at once.
const LISTS_LAST: Duration = Duration::from_secs(24 * 60 * 60);

const APT: &str = "apt-get";

/// A source package that can be downloaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Package {
    /// `linux-source-7.3`
    pub name: String,
    /// `7.3.4-1~bpo13+1`
    pub version: String,
}

/// A private apt, with its state below one directory.
pub struct Apt {
    state: PathBuf,
    mirror: Mirror,
    /// The suite that the caller named.
    suite: Option<String>,
}

impl Apt {
    /// An apt that knows the system's mirror: its suite `suite`, or else the installed one and newer ones. Its
    /// state is kept below `cache`.
    ///
    /// # Errors
    /// [`KernelError::Source`] if this system has no apt or no Debian mirror.
    pub fn new(cache: &Path, suite: Option<&str>) -> Result<Self, KernelError> {
        let has_apt = Command::new(APT).arg("--version").output().is_ok();
        let mirror = has_apt.then(|| debian_mirror(Path::new("/"))).flatten();
        let mirror = mirror.ok_or_else(|| {
            KernelError::Source(
                "this system has no apt with a Debian mirror: name a kernel source with --source DIR or --source TARBALL"
                    .into(),
            )
        })?;
        if let Some(suite) = suite.filter(|suite| !is_suite(suite)) {
            return Err(KernelError::Source(format!(
                "\"{suite}\" is not the name of a suite: write --suite trixie-backports"
            )));
        }
        let state = cache.join("apt").join(suite.unwrap_or("newest"));
        for directory in ["lists/partial", "aliases/partial", "cache/archives/partial", "state"] {
            let directory = state.join(directory);
            fs::create_dir_all(&directory).map_err(cannot("create", &directory))?;
        }
        let configuration_file = state.join("apt.conf");
        fs::write(&configuration_file, configuration(&state)).map_err(cannot("write", &configuration_file))?;
        Ok(Self { state, mirror, suite: suite.map(str::to_owned) })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        // On the command line, because there it counts more than the system's own configuration.
        command.arg("-c").arg(self.state.join("apt.conf")).args(arguments);
        command
    }

    /// The newest source package, by the kernel version in its name.
    ///
    /// # Errors
    /// [`KernelError::Source`] if no list has one.
    pub fn newest(&self, runner: &mut Runner<'_>) -> Result<Package, KernelError> {
        let fetched = if self.has_fresh_lists() { Ok(()) } else { self.fetch_lists(runner) };
        if matches!(fetched, Err(KernelError::Interrupted)) {
            return Err(KernelError::Interrupted);
        }
        let mut names = Vec::new();
        let mut search = self.command("apt-cache", &["search", "--names-only", "^linux-source-[0-9.]+$"]);
        runner.run("apt-cache search", &mut search, &mut |line| names.push(line.to_owned()))?;
        let Some(name) = newest_name(&names) else {
            // A mirror that lacks one of the suites is no reason to stop, one that has nothing is.
            fetched?;
            return Err(KernelError::Source(
                "this system's mirror has no linux-source package in these suites: name another suite with --suite, or a kernel source with --source".into(),
            ));
        };
        let mut versions = Vec::new();
        let mut madison = self.command("apt-cache", &["madison", &name]);
        runner.run("apt-cache madison", &mut madison, &mut |line| versions.push(line.to_owned()))?;
        let version = versions.iter().find_map(|line| madison_version(line, &name)).ok_or_else(|| {
            KernelError::Source(format!("apt knows no version of {name}: name a kernel source with --source"))
        })?;
        Ok(Package { name, version })
    }

    /// The file whose time tells when all lists were fetched.
    fn stamp(&self) -> PathBuf {
        self.state.join("fetched")
    }

    fn has_fresh_lists(&self) -> bool {
        let fetched = self.stamp().metadata().and_then(|file| file.modified());
        fetched.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < LISTS_LAST))
    }

    fn fetch_lists(&self, runner: &mut Runner<'_>) -> Result<(), KernelError> {
        let suites = match &self.suite {
            Some(suite) => vec![suite.clone()],
            None => self.newest_suites(runner)?,
        };
        self.write_sources(&self.mirror.sources(&suites, "Packages"))?;
        runner.run("apt-get update", &mut self.command(APT, &["-q", "update"]), &mut |_| {})?;
        let stamp = self.stamp();
        fs::write(&stamp, "").map_err(cannot("write", &stamp))
    }

    /// The installed suite and the newer ones, by their code names: mirrors that keep copies may serve old
    /// lists under names that wander from release to release.
    fn newest_suites(&self, runner: &mut Runner<'_>) -> Result<Vec<String>, KernelError> {
        let aliases: Vec<String> = NEWER_SUITES.iter().map(|suite| (*suite).to_owned()).collect();
        // No such target: only the release files are fetched.
        self.write_sources(&self.mirror.sources(&aliases, "none"))?;
        let lists = self.state.join("aliases");
        let mut update = self.command(APT, &["-q", "-o", "Acquire::Check-Valid-Until=false"]);
        update.arg("-o").arg(format!("Dir::State::lists={}", lists.display())).arg("update");
        let fetched = runner.run("apt-get update", &mut update, &mut |_| {});
        let mut suites = vec![self.mirror.suite.clone()];
        for entry in fs::read_dir(&lists).map_err(cannot("read", &lists))?.flatten() {
            let release = fs::read_to_string(entry.path()).unwrap_or_default();
            suites.extend(code_name(&release).filter(|name| is_suite(name)).map(str::to_owned));
        }
        if suites.len() == 1 {
            fetched?;
        }
        suites.sort();
        suites.dedup();
        Ok(suites)
    }

    fn write_sources(&self, text: &str) -> Result<(), KernelError> {
        let path = self.state.join("debian.sources");
        fs::write(&path, text).map_err(cannot("write", &path))
    }

    /// Downloads the package and returns the source archive in it, both below `work`.
    ///
    /// # Errors
    /// If the download fails or the package has no archive.
    pub fn download(&self, package: &Package, work: &Path, runner: &mut Runner<'_>) -> Result<PathBuf, KernelError> {
        let wanted = format!("{}={}", package.name, package.version);
        runner.run(
            "apt-get download",
            self.command(APT, &["-q", "download", &wanted]).current_dir(work),
            &mut |_| {},
        )?;
        let deb = find(work, |name| name.ends_with(".deb"))?;
        let contents = work.join("package");
        runner.run("dpkg-deb", Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&contents), &mut |_| {})?;
        fs::remove_file(&deb).map_err(cannot("remove", &deb))?;
        find(&contents.join("usr/src"), |name| name.starts_with("linux-source-") && name.contains(".tar."))
    }
}

/// The file in `directory` whose name is as wanted.
fn find(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<PathBuf, KernelError> {
    let entries = fs::read_dir(directory).map_err(cannot("read", directory))?;
    let found = entries.flatten().find(|entry| entry.file_name().to_str().is_some_and(&is_wanted));
    found.map(|entry| entry.path()).ok_or_else(|| {
        KernelError::Source(format!("nothing of use in {}: name a kernel source with --source", directory.display()))
    })
}

fn configuration(state: &Path) -> String {
    let state = state.display();
    format!(
        "Dir::Etc::sourcelist \"{state}/debian.sources\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State \"{state}/state\";\n\
         Dir::State::lists \"{state}/lists\";\n\
         Dir::State::status \"/dev/null\";\n\
         Dir::Cache \"{state}/cache\";\n\
         Dir::Cache::pkgcache \"pkgcache.bin\";\n\
         Dir::Cache::srcpkgcache \"srcpkgcache.bin\";\n\
         Acquire::Languages \"none\";\n\
         APT::Sandbox::User \"root\";\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n"
    )
}

/// The code name in a release file.
fn code_name(release: &str) -> Option<&str> {
    release.lines().find_map(|line| line.strip_prefix("Codename:")).map(str::trim)
}

/// Whether this can be a suite: it becomes part of a sources file and of a path.
fn is_suite(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c))
}

/// The name with the highest version among lines of `apt-cache search`.
fn newest_name(lines: &[String]) -> Option<String> {
    let names = lines.iter().filter_map(|line| line.split_whitespace().next());
    let version = |name: &str| -> Option<Vec<u32>> {
        name.strip_prefix("linux-source-")?.split('.').map(|part| part.parse().ok()).collect()
    };
    names.filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name.to_owned())
}

/// The version in a line of `apt-cache madison`, which names the highest version first.
fn madison_version(line: &str, name: &str) -> Option<String> {
    let mut columns = line.split('|').map(str::trim);
    (columns.next()? == name).then(|| columns.next().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_wins() {
        let lines = [
            "linux-source-6.12 - Linux kernel source",
            "linux-source-7.10 - x",
            "linux-source-7.3 - x",
            "linux-source-rt - x",
            "linux-source - x",
        ];
        assert_eq!(newest_name(&lines.map(str::to_owned)), Some("linux-source-7.10".into()));
        assert_eq!(newest_name(&[]), None);
    }

    #[test]
    fn suites_are_names() {
        assert_eq!(
            code_name("Suite: stable-backports\nCodename: trixie-backports\nDate: x\n"),
            Some("trixie-backports")
        );
        assert_eq!(code_name("Suite: x\n"), None);
        assert!(is_suite("trixie-backports"));
        for text in ["", "../x", "a b", "a\nURIs: x", "-o"] {
            assert!(!is_suite(text), "{text}");
        }
    }

    #[test]
    fn madison_names_the_version() {
        let line =
            "linux-source-7.3 | 7.3.4-1~bpo13+1 | http://mirror.test/debian trixie-backports/main amd64 Packages";
        assert_eq!(madison_version(line, "linux-source-7.3"), Some("7.3.4-1~bpo13+1".into()));
        assert_eq!(madison_version(line, "linux-source-7.2"), None);
        assert_eq!(madison_version("N: nothing", "linux-source-7.2"), None);
    }
}
