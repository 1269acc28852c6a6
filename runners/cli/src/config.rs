//! The configuration file: options of `privet run`, by profile.
//!
//! ```toml
//! [profile.default]       # always
//! timeout = 30
//!
//! [profile.ci]            # with --profile ci, on top of the default one
//! retries = 1
//! require = ["upm"]
//! fail-fast = false
//! ```
//!
//! A key is a long option, and its value what would follow it: `true` for an option that takes none, a list for one
//! that can be given several times. What the command line says comes after and counts more.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use toml::{Table, Value};

use crate::exit::Early;

/// The name of the file that is taken without being named.
const FILE: &str = "privet.toml";

/// The profile that is always taken.
const DEFAULT: &str = "default";

/// The options that the file gives for `profile`, ready to stand before those of the command line.
///
/// # Errors
/// If the file, or what it is asked for, cannot be had.
pub fn options(file: Option<&Path>, profile: Option<&str>) -> Result<Vec<OsString>, Early> {
    let path = file.unwrap_or(Path::new(FILE));
    let wrong = |why: String| Early::usage(format!("{}: {why}", path.display()));
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => match profile {
            Some(profile) => return Err(wrong(format!("not here, so that there is no profile {profile}"))),
            None => return Ok(Vec::new()),
        },
        read => read.map_err(|error| wrong(error.to_string()))?,
    };
    parse(&text, profile).map_err(wrong)
}

fn parse(text: &str, profile: Option<&str>) -> Result<Vec<OsString>, String> {
    let file: Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        format!("line {line}: {}", error.message().lines().next().unwrap_or_default())
    })?;
    if let Some(other) = file.keys().find(|key| *key != "profile") {
        return Err(format!("[{other}] is nothing that privet knows: write [profile.NAME]"));
    }
    let nothing = Table::new();
    let profiles = file.get("profile").map_or(Ok(&nothing), |profiles| table("profile", profiles))?;
    let mut words = Vec::new();
    for name in [Some(DEFAULT), profile.filter(|name| *name != DEFAULT)].into_iter().flatten() {
        match profiles.get(name) {
            Some(options) => add(table(name, options)?, &mut words).map_err(|why| format!("profile {name}: {why}"))?,
            None if name == DEFAULT => {}
            None => {
                let names: Vec<&str> = profiles.keys().map(String::as_str).collect();
                return Err(format!("there is no profile {name}, only {}", names.join(", ")));
            }
        }
    }
    Ok(words)
}

fn table<'a>(name: &str, value: &'a Value) -> Result<&'a Table, String> {
    value.as_table().ok_or_else(|| format!("{name} is no table: write [profile.NAME]"))
}

fn add(options: &Table, words: &mut Vec<OsString>) -> Result<(), String> {
    for (key, value) in options {
        match value {
            Value::Boolean(true) => words.push(format!("--{key}").into()),
            Value::Boolean(false) => {}
            Value::Array(values) => {
                for value in values {
                    words.push(word(key, value)?);
                }
            }
            value => words.push(word(key, value)?),
        }
    }
    Ok(())
}

fn word(key: &str, value: &Value) -> Result<OsString, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        _ => return Err(format!("{key}: give a text, a number, true or false, or a list of those")),
    };
    Ok(format!("--{key}={text}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[profile.default]\ntimeout = 1.5\nexact = false\n[profile.ci]\nretries = 2\n\
                        require = [\"upm\", \"plain\"]\nfail-fast = true\n";

    #[test]
    fn the_default_profile_comes_first_and_always() {
        assert_eq!(parse(FILE, None).unwrap(), ["--timeout=1.5"]);
        assert_eq!(parse(FILE, Some("default")).unwrap(), ["--timeout=1.5"]);
        let ci = ["--timeout=1.5", "--fail-fast", "--require=upm", "--require=plain", "--retries=2"];
        assert_eq!(parse(FILE, Some("ci")).unwrap(), ci);
        assert!(parse("", None).unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line() {
        for (text, profile, why) in [
            (FILE, Some("ic"), "there is no profile ic, only ci, default"),
            ("[profiles.ci]\n", None, "[profiles] is nothing"),
            ("profile = 3\n", None, "profile is no table"),
            ("[profile]\ndefault = 3\n", None, "default is no table"),
            ("[profile.default]\nx = { a = 1 }\n", None, "x: give a text"),
            ("\n[profile\n", None, "line 2"),
        ] {
            let error = parse(text, profile).unwrap_err();
            assert!(error.contains(why) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}
