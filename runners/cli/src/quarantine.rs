//! `--quarantine FILE`: rows that are expected to be red, with what is expected to be seen, why, and until when.
//!
//! The file has a table for each expectation:
//!
//! ```toml
//! [[row]]
//! filter = "id(=plain.slots.double_bind)"   # as for --filterset
//! seen = "failed with EINVAL"               # a part of the reason that the row gives
//! reason = "Linux 6.18, fixed in 7.2"
//! until = 2026-12-31                        # the last day
//! ```

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use privet_cases::Entry;
use serde::Deserialize;
use toml::value::Datetime;

use crate::exit::Early;
use crate::filterset::Filterset;
use privet_report::{Ending, Excuse};

/// All expectations of a file.
#[derive(Debug)]
pub struct Quarantine {
    expected: Vec<Expected>,
    /// YYYY-MM-DD.
    today: String,
}

#[derive(Debug)]
struct Expected {
    filter: Filterset,
    seen: String,
    excuse: Excuse,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    row: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    filter: String,
    seen: String,
    reason: String,
    until: Datetime,
}

impl Quarantine {
    /// Reads a file about rows of `table`.
    ///
    /// # Errors
    /// One line that says what is wrong with the file.
    pub fn read(path: &Path, table: &[Entry]) -> Result<Self, Early> {
        let today = DateTime::<Utc>::from(SystemTime::now()).date_naive().to_string();
        fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| Self::parse(&text, table, today))
            .map_err(|why| Early::usage(format!("--quarantine {}: {why}", path.display())))
    }

    fn parse(text: &str, table: &[Entry], today: String) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("line {line}: {}", error.message().lines().next().unwrap_or_default())
        })?;
        let expected = |Written { filter: text, seen, reason, until }: Written| {
            let wrong = |why: &str| format!("the expectation for {text}: {why}");
            let filter: Filterset = text.parse().map_err(|why: String| wrong(&why))?;
            if !table.iter().any(|row| filter.matches(row)) {
                return Err(wrong("no row meets the filter"));
            }
            if seen.trim().is_empty() || reason.trim().is_empty() {
                return Err(wrong("seen and reason must say something: whatever else goes wrong is a failure"));
            }
            if until.date.is_none() || until.time.is_some() {
                return Err(wrong("until must be a day, as in until = 2026-12-31"));
            }
            Ok(Expected { filter, seen, excuse: Excuse { reason, until: until.to_string() } })
        };
        Ok(Self { expected: file.row.into_iter().map(expected).collect::<Result<_, _>>()?, today })
    }

    /// Excuses the end of `row` if it is red as expected, and says so if it is not, or not any more.
    pub fn judge(&self, row: &Entry, ending: &mut Ending) {
        let Some(expected) = self.expected.iter().find(|expected| expected.filter.matches(row)) else { return };
        let Excuse { reason, until } = &expected.excuse;
        let seen = &mut ending.report.reason;
        if ending.report.verdict == privet_report::Verdict::Pass {
            ending.surprise = Some(format!("it passes, but is quarantined until {until}: {reason}"));
        } else if !ending.report.verdict.is_red() {
        } else if !seen.contains(&expected.seen) {
            seen.push_str(&format!(" (quarantined for something else: {:?})", expected.seen));
        } else if self.today > *until {
            seen.push_str(&format!(" (its quarantine ended on {until}: {reason})"));
        } else {
            ending.quarantined = Some(expected.excuse.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use privet_report::{Place, Verdict};

    use super::*;
    use crate::place::Context;
    use crate::plan;

    const ID: &str = "upm.punch.while_shared";

    fn parsed(text: &str, today: &str) -> Result<Quarantine, String> {
        Quarantine::parse(text, &privet_cases::table(), today.to_owned())
    }

    fn file(until: &str) -> String {
        format!("[[row]]\nfilter = \"id(={ID})\"\nseen = \"EINVAL\"\nreason = \"known\"\nuntil = {until}\n")
    }

    /// What becomes of a row that ended like this on 2026-11-26.
    fn judged(verdict: Verdict, reason: &str, until: &str) -> Ending {
        let table = privet_cases::table();
        let row = table.iter().find(|row| row.id == ID).unwrap();
        let jobs = plan::jobs(&[ID.to_owned()], 1, 7, Duration::ZERO);
        let mut ending = Ending::of(Context::nowhere(Place::Host).report(&jobs[0], verdict, reason.to_owned()));
        parsed(&file(until), "2026-11-26").unwrap().judge(row, &mut ending);
        ending
    }

    #[test]
    fn only_what_is_expected_is_excused_and_only_until_its_last_day() {
        for last_day in ["2026-11-26", "2027-01-01"] {
            let ending = judged(Verdict::Fail, "failed with EINVAL", last_day);
            assert!(!ending.is_red() && ending.quarantined.unwrap().reason == "known");
        }
        let over = judged(Verdict::Fail, "failed with EINVAL", "2026-11-25");
        assert!(over.is_red() && over.report.reason.contains("ended on 2026-11-25: known"), "{}", over.report.reason);
        let other = judged(Verdict::Timeout, "hung", "2027-01-01");
        assert!(
            other.is_red() && other.report.reason.contains("something else: \"EINVAL\""),
            "{}",
            other.report.reason
        );
        let passed = judged(Verdict::Pass, "", "2027-01-01");
        assert!(!passed.is_red() && passed.surprise.unwrap().contains("quarantined until 2027-01-01"));
    }

    #[test]
    fn a_file_that_excuses_too_much_or_nothing_is_refused() {
        for (text, why) in [
            (file("2026-12-31").replace(ID, "no.such.row"), "no row meets the filter"),
            (file("2026-12-31").replace("EINVAL", " "), "must say something"),
            (file("2026-12-31").replace("known", ""), "must say something"),
            (file("12:00:00"), "must be a day"),
            (file("\"soon\""), "line 5"),
            (file("2026-12-31").replace("seen", "sees"), "sees"),
            (file("2026-12-31").replace("id(=", "id(/(/ + id(="), "regular expression"),
            ("[[row]]\n".to_owned(), "missing field"),
        ] {
            let error = parsed(&text, "2026-11-26").unwrap_err();
            assert!(error.contains(why) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}
