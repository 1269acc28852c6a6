//! Packages of the kernel within reach of apt, its source or an image of it, through an apt configuration of its
//! own: own sources, lists and caches, so that the system's stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::apt_sources::{Mirror, debian_mirror};
use crate::command::Runner;
use crate::error::{KernelError, cannot};
use crate::kernel::release_order;

/// Newer suites than the installed one, by the names that always lead to the present ones.
const NEWER_SUITES: &[&str] = &["stable-backports", "unstable"];

/// How long lists of packages are taken as they are, so that an unchanged build is found at once.
const LISTS_LAST: Duration = Duration::from_secs(24 * 60 * 60);

/// How many names an error shows.
const NAMES_SHOWN: usize = 5;

const APT: &str = "apt-get";

/// What a package of the kernel has in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Its source: `linux-source-7.3`.
    Source,
    /// A built image with modules: `linux-image-6.1.0-50-amd64`. Not the variants for clouds and real time.
    Image,
}

impl Content {
    /// The beginning and the end of the packages' names, with the version in between.
    fn name_around(self) -> (&'static str, &'static str) {
        match self {
            Content::Source => ("linux-source-", ""),
            Content::Image => ("linux-image-", "-amd64"),
        }
    }

    /// What to do where there is no package.
    fn instead(self) -> &'static str {
        match self {
            Content::Source => "name a kernel source with --source DIR or --source TARBALL",
            Content::Image => "name a kernel with --kernel BZIMAGE --modules DIR",
        }
    }
}

/// A package that can be downloaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Package {
    /// `linux-source-7.3`
    pub name: String,
    /// `7.3.4-1~bpo13+1`
    pub version: String,
}

/// A private apt, with its state below one directory.
pub struct Apt {
    /// What it is asked for.
    content: Content,
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
    /// [`KernelError::Package`] if this system has no apt or no Debian mirror.
    pub fn new(cache: &Path, content: Content, suite: Option<&str>) -> Result<Self, KernelError> {
        let has_apt = Command::new(APT).arg("--version").output().is_ok();
        let mirror = has_apt.then(|| debian_mirror(Path::new("/"))).flatten();
        let mirror = mirror.ok_or_else(|| {
            KernelError::Package(format!("this system has no apt with a Debian mirror: {}", content.instead()))
        })?;
        if let Some(suite) = suite.filter(|suite| !is_suite(suite)) {
            return Err(KernelError::Package(format!(
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
        Ok(Self { content, state, mirror, suite: suite.map(str::to_owned) })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        // On the command line, because there it counts more than the system's own configuration.
        command.arg("-c").arg(self.state.join("apt.conf")).args(arguments);
        command
    }

    /// The package of this name; without one the newest, by the kernel version in the names.
    ///
    /// # Errors
    /// [`KernelError::Package`] if no list has it.
    pub fn find(&self, name: Option<&str>, runner: &mut Runner<'_>) -> Result<Package, KernelError> {
        let fetched = if self.has_fresh_lists() { Ok(()) } else { self.fetch_lists(runner) };
        if matches!(fetched, Err(KernelError::Interrupted)) {
            return Err(KernelError::Interrupted);
        }
        let (beginning, end) = self.content.name_around();
        let pattern = format!("^{beginning}[0-9][^ ]*{end}$");
        let mut found = Vec::new();
        let mut search = self.command("apt-cache", &["search", "--names-only", &pattern]);
        runner.run("apt-cache search", &mut search, &mut |line| found.push(line.to_owned()))?;
        let names = names(&found, self.content);
        if names.is_empty() {
            // A mirror that lacks one of the suites is no reason to stop, one that has nothing is.
            fetched?;
        }
        let name = match name {
            Some(name) => names.contains(&name).then_some(name),
            None => names.first().copied(),
        };
        let name = name.ok_or_else(|| {
            let few = names[..names.len().min(NAMES_SHOWN)].join(", ");
            let there = if few.is_empty() { String::new() } else { format!(" (there are {few} and older ones)") };
            KernelError::Package(format!(
                "this system's mirror has no such {beginning}*{end} package in these suites{there}: name another suite with --suite, or {}",
                self.content.instead()
            ))
        })?;
        let mut versions = Vec::new();
        let mut madison = self.command("apt-cache", &["madison", name]);
        runner.run("apt-cache madison", &mut madison, &mut |line| versions.push(line.to_owned()))?;
        let version = versions.iter().find_map(|line| madison_version(line, name)).ok_or_else(|| {
            KernelError::Package(format!("apt knows no version of {name}: {}", self.content.instead()))
        })?;
        Ok(Package { name: name.to_owned(), version })
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

    /// Downloads the package, with the packages that it is split into, and unpacks all into the directory that is
    /// returned, below `work`.
    ///
    /// # Errors
    /// If a download fails or is no package.
    pub fn download(&self, package: &Package, work: &Path, runner: &mut Runner<'_>) -> Result<PathBuf, KernelError> {
        let mut wanted = vec![format!("{}={}", package.name, package.version)];
        let mut show = self.command("apt-cache", &["show", &wanted[0]]);
        runner.run("apt-cache show", &mut show, &mut |line| wanted.extend(parts(line)))?;
        let debs = work.join("debs");
        fs::create_dir(&debs).map_err(cannot("create", &debs))?;
        let mut download = self.command(APT, &["-q", "download"]);
        runner.run("apt-get download", download.args(&wanted).current_dir(&debs), &mut |_| {})?;
        let contents = work.join("package");
        for deb in fs::read_dir(&debs).map_err(cannot("read", &debs))?.flatten() {
            let mut unpack = Command::new("dpkg-deb");
            runner.run("dpkg-deb", unpack.arg("-x").arg(deb.path()).arg(&contents), &mut |_| {})?;
        }
        fs::remove_dir_all(&debs).map_err(cannot("remove", &debs))?;
        Ok(contents)
    }
}

/// The file in a directory of a package whose name is as wanted.
///
/// # Errors
/// [`KernelError::Package`] if there is none.
pub(crate) fn find_file(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<PathBuf, KernelError> {
    let entries = fs::read_dir(directory).map_err(cannot("read", directory))?;
    let found = entries.flatten().find(|entry| entry.file_name().to_str().is_some_and(&is_wanted));
    found.map(|entry| entry.path()).ok_or_else(|| {
        KernelError::Package(format!("the package has nothing of use in {}: name another one", directory.display()))
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

/// The names of such packages in lines of `apt-cache search`, the highest version first.
fn names(lines: &[String], content: Content) -> Vec<&str> {
    let (beginning, end) = content.name_around();
    let version = |name: &str| {
        let version = name.strip_prefix(beginning)?.strip_suffix(end)?;
        // Variants have words in it: -cloud, -rt.
        let is_variant = version.split('-').any(|part| part.starts_with(|c: char| c.is_ascii_alphabetic()));
        (!is_variant).then(|| release_order(version))
    };
    let mut names: Vec<_> = lines
        .iter()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| Some((version(name)?, name)))
        .collect();
    names.sort_by(|a, b| b.cmp(a));
    names.into_iter().map(|(_, name)| name).collect()
}

/// The packages that a line of `apt-cache show` depends on and that are parts of one image: newer packages of Debian
/// have image, modules and configuration in packages of their own. As apt takes them: `name=version`.
fn parts(line: &str) -> Vec<String> {
    let Some(depends) = line.strip_prefix("Depends:") else { return Vec::new() };
    let part = |dependency: &str| {
        let (name, version) = dependency.trim().split_once(" (= ")?;
        let is_part = ["linux-base-", "linux-binary-", "linux-modules-"].iter().any(|start| name.starts_with(start));
        is_part.then(|| format!("{name}={}", version.trim_end_matches(')')))
    };
    depends.split(',').filter_map(part).collect()
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
    fn the_highest_version_comes_first_and_variants_not_at_all() {
        let lines = [
            "linux-source-6.12 - Linux kernel source",
            "linux-source-7.10 - x",
            "linux-source-7.3 - x",
            "linux-source-rt - x",
            "linux-source - x",
        ];
        let names_of = |lines: &[&str], content| {
            let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
            names(&lines, content).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names_of(&lines, Content::Source), ["linux-source-7.10", "linux-source-7.3", "linux-source-6.12"]);
        let images = [
            "linux-image-6.1.0-47-amd64 - x",
            "linux-image-6.1.0-50-amd64 - x",
            "linux-image-6.1.0-50-rt-amd64 - x",
            "linux-image-7.2.13+deb14-amd64 - x",
            "linux-image-7.2.13+deb14-cloud-amd64 - x",
        ];
        assert_eq!(
            names_of(&images, Content::Image),
            ["linux-image-7.2.13+deb14-amd64", "linux-image-6.1.0-50-amd64", "linux-image-6.1.0-47-amd64"]
        );
        assert!(names_of(&[], Content::Image).is_empty());
    }

    #[test]
    fn an_image_may_be_in_parts() {
        let line = "Depends: dracut | linux-initramfs-tool, linux-binary-7.3.4-amd64 (= 7.3.4-1~bpo13+1), linux-modules-7.3.4-amd64 (= 7.3.4-1~bpo13+1)";
        assert_eq!(
            parts(line),
            ["linux-binary-7.3.4-amd64=7.3.4-1~bpo13+1", "linux-modules-7.3.4-amd64=7.3.4-1~bpo13+1"]
        );
        assert!(
            parts("Depends: kmod, linux-base (>= 4.3~)").is_empty() && parts("Suggests: linux-base-1 (= 1)").is_empty()
        );
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
