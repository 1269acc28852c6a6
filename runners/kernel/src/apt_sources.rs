//! The Debian mirror that this system's apt uses, read from its sources in both of their formats
//! (sources.list(5)).

use std::fs;
use std::path::Path;

/// A Debian mirror and what apt was told about trusting it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mirror {
    /// The base URI, as in the sources.
    pub(crate) uri: String,
    /// The suite that this system is installed from.
    pub(crate) suite: String,
    /// The value of `Signed-By`, continuation lines included.
    pub(crate) signed_by: Option<String>,
    /// The value of `Trusted`.
    pub(crate) trusted: Option<String>,
}

/// The mirror that apt below `root` installs the main Debian archive from: the first one in the order in
/// which apt reads its files.
pub(crate) fn debian_mirror(root: &Path) -> Option<Mirror> {
    let apt = root.join("etc/apt");
    let mut files: Vec<_> =
        fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.insert(0, apt.join("sources.list"));
    files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        match file.extension()?.to_str()? {
            "list" => text.lines().find_map(from_line),
            "sources" => stanzas(&text).iter().find_map(from_stanza),
            _ => None,
        }
    })
}

/// Whether packages of Debian itself come from here, and not those of its security team or of others.
fn is_debian_itself(uri: &str, suite: &str, mut components: impl Iterator<Item = impl AsRef<str>>) -> bool {
    let is_derived = suite.contains('/')
        || ["-updates", "-security", "-backports", "-proposed-updates"].iter().any(|end| suite.ends_with(end));
    uri.trim_end_matches('/').ends_with("/debian")
        && !is_derived
        && components.any(|component| component.as_ref() == "main")
}

/// A line such as `deb [signed-by=/a/key] http://mirror/debian trixie main`.
fn from_line(line: &str) -> Option<Mirror> {
    let mut rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    rest = rest.strip_prefix(|c: char| c.is_whitespace())?.trim_start();
    let mut options = "";
    if let Some(bracketed) = rest.strip_prefix('[') {
        (options, rest) = bracketed.split_once(']')?;
    }
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let option = |name: &str| {
        let value = options.split_whitespace().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        value.map(str::to_owned)
    };
    is_debian_itself(uri, suite, words).then(|| Mirror {
        uri: uri.to_owned(),
        suite: suite.to_owned(),
        signed_by: option("signed-by"),
        trusted: option("trusted"),
    })
}

/// One deb822 stanza: names in lower case and values.
type Stanza = Vec<(String, String)>;

fn stanzas(text: &str) -> Vec<Stanza> {
    let mut stanzas: Vec<Stanza> = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if let Some(stanza) = stanzas.last_mut() {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = stanza.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                stanza.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
    stanzas
}

fn from_stanza(stanza: &Stanza) -> Option<Mirror> {
    let value = |wanted: &str| stanza.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    if value("enabled").is_some_and(|enabled| ["no", "false", "0"].contains(&enabled)) {
        return None;
    }
    value("types")?.split_whitespace().find(|kind| *kind == "deb")?;
    let uri = value("uris")?.split_whitespace().next()?;
    let components = value("components")?;
    let suite = value("suites")?
        .split_whitespace()
        .find(|suite| is_debian_itself(uri, suite, components.split_whitespace()))?;
    Some(Mirror {
        uri: uri.to_owned(),
        suite: suite.to_owned(),
        signed_by: value("signed-by").map(str::to_owned),
        trusted: value("trusted").map(str::to_owned),
    })
}

impl Mirror {
    /// A sources file with these suites of the mirror, one stanza each, and only this index target.
    pub(crate) fn sources(&self, suites: &[String], target: &str) -> String {
        let trust = [("Signed-By", &self.signed_by), ("Trusted", &self.trusted)];
        let trust: String =
            trust.iter().filter_map(|(name, value)| Some(format!("{name}: {}\n", value.as_ref()?))).collect();
        let stanza = |suite: &String| {
            format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nTargets: {target}\n{trust}", self.uri)
        };
        suites.iter().map(stanza).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files below `etc/apt`.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/apt/sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(root.path().join("etc/apt").join(name), text).unwrap();
        }
        root
    }

    #[test]
    fn one_line_sources_are_read() {
        let root = root(&[(
            "sources.list",
            "# deb http://no/debian old main\ndeb-src http://no/debian trixie main\ndeb http://no/debian-security trixie-security main\n\
             deb [arch=amd64 signed-by=/a/key.gpg] http://mirror.test/debian/ trixie contrib main # why\n",
        )]);
        let mirror = debian_mirror(root.path()).unwrap();
        assert_eq!(
            mirror,
            Mirror {
                uri: "http://mirror.test/debian/".into(),
                suite: "trixie".into(),
                signed_by: Some("/a/key.gpg".into()),
                trusted: None
            }
        );
    }

    #[test]
    fn deb822_sources_are_read() {
        let root = root(&[
            ("sources.list.d/a.list", "deb https://vendor.test/apt stable main\n"),
            (
                "sources.list.d/b.sources",
                "Enabled: no\nTypes: deb\nURIs: http://no/debian\nSuites: sid\nComponents: main\n\n# why\nTypes: deb deb-src\nURIs: http://mirror.test/debian http://other/debian\n\
                 Suites: bookworm-updates bookworm\nComponents: main\nTrusted: yes\nSigned-By:\n -----BEGIN-----\n .\n abc\n",
            ),
        ]);
        let mirror = debian_mirror(root.path()).unwrap();
        assert_eq!((mirror.uri.as_str(), mirror.suite.as_str()), ("http://mirror.test/debian", "bookworm"));
        let sources = mirror.sources(&["stable-backports".into(), "unstable".into()], "Packages");
        assert_eq!(
            sources,
            "Types: deb\nURIs: http://mirror.test/debian\nSuites: stable-backports\nComponents: main\nTargets: Packages\nSigned-By: \n -----BEGIN-----\n .\n abc\nTrusted: yes\n\n\
             Types: deb\nURIs: http://mirror.test/debian\nSuites: unstable\nComponents: main\nTargets: Packages\nSigned-By: \n -----BEGIN-----\n .\n abc\nTrusted: yes\n"
        );
    }

    #[test]
    fn other_systems_have_no_debian_mirror() {
        assert_eq!(debian_mirror(Path::new("/nonexistent")), None);
        let root = root(&[
            ("sources.list", "deb http://archive.test/ubuntu noble main\n"),
            ("sources.list.d/x.sources", ":::\n \nTypes\n"),
        ]);
        assert_eq!(debian_mirror(root.path()), None);
    }
}
