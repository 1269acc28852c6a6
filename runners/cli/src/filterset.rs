//! Filter expressions in the style of cargo-nextest's filtersets: `vm(upm) & group(mmio) - id(~ioeventfd)`.
//!
//! Predicates are `id` (also called `test`), `vm`, `group`, `needs` and `upstream`, each with a matcher in
//! parentheses, and `all()` and `none()`. A matcher is `=whole`, `~part`, `/regular expression/` or `#glob`; a bare
//! text is the whole name for `vm` and `group`, and a part for the others. Operators, from the tightest: `!` or
//! `not`; `&`, `and`, and `-` for "and not"; `|`, `+` or `or`. Parentheses group.

use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use privet_cases::Entry;
use regex::Regex;

/// An expression that a row meets or does not.
#[derive(Clone, Debug)]
pub enum Filterset {
    /// Every row.
    All,
    /// No row.
    None,
    /// A row of which one of these names matches.
    Names(Name, Matcher),
    /// The rows that do not meet it.
    Not(Box<Filterset>),
    /// The rows that meet both.
    And(Box<Filterset>, Box<Filterset>),
    /// The rows that meet one of them.
    Or(Box<Filterset>, Box<Filterset>),
}

/// Which names of a row a predicate is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// Its id.
    Id,
    /// The VM type: the first segment of the id.
    Vm,
    /// The group: the second segment of the id.
    Group,
    /// What it needs of its host, in the words of `privet explain`.
    Needs,
    /// Its counterparts among the kernel's selftests.
    Upstream,
}

/// How a name is held against a text.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// It is the text.
    Whole(String),
    /// It contains the text.
    Part(String),
    /// It contains a match.
    Regex(Regex),
    /// It matches as a whole.
    Glob(GlobMatcher),
}

impl Filterset {
    /// Whether `row` meets the expression.
    pub fn matches(&self, row: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Names(name, matcher) => name.of(row).iter().any(|name| matcher.matches(name)),
            Self::Not(one) => !one.matches(row),
            Self::And(one, other) => one.matches(row) && other.matches(row),
            Self::Or(one, other) => one.matches(row) || other.matches(row),
        }
    }

    /// The first whole id, VM type or group in it that no row of `table` has: a slip of the pen, which must not leave
    /// rows out silently.
    pub fn unknown<'a>(&'a self, table: &[Entry]) -> Option<&'a str> {
        match self {
            Self::All | Self::None => None,
            Self::Names(_, Matcher::Whole(text)) => (!table.iter().any(|row| self.matches(row))).then_some(text),
            Self::Names(..) => None,
            Self::Not(one) => one.unknown(table),
            Self::And(one, other) | Self::Or(one, other) => one.unknown(table).or_else(|| other.unknown(table)),
        }
    }
}

impl Name {
    fn of(self, row: &Entry) -> Vec<String> {
        let segment = |number| vec![row.id.split('.').nth(number).unwrap_or_default().to_owned()];
        match self {
            Name::Id => vec![row.id.clone()],
            Name::Vm => segment(0),
            Name::Group => segment(1),
            Name::Needs => row.needs.iter().map(ToString::to_string).collect(),
            Name::Upstream => row.upstream.iter().map(ToString::to_string).collect(),
        }
    }

    /// What a text without a sign in front of it is.
    fn bare(self, text: String) -> Matcher {
        match self {
            Name::Vm | Name::Group => Matcher::Whole(text),
            Name::Id | Name::Needs | Name::Upstream => Matcher::Part(text),
        }
    }
}

impl Matcher {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Whole(text) => name == text,
            Self::Part(text) => name.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(name),
            Self::Glob(glob) => glob.is_match(name),
        }
    }
}

impl FromStr for Filterset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0 };
        let expression = parser.any()?;
        match parser.rest().trim_start() {
            "" => Ok(expression),
            _ => Err(parser.wrong("expected an operator: & | - or the end")),
        }
    }
}

/// What is left of an expression.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// An error that names the place.
    fn wrong(&self, what: &str) -> String {
        let column = self.text[..self.at].chars().count() + 1;
        format!("{what}, at column {column}; see `privet run --help`")
    }

    /// Takes one of these operators, if one comes. Words are not taken out of longer words.
    fn operator(&mut self, operators: &[&str]) -> bool {
        self.at = self.text.len() - self.rest().trim_start().len();
        let is_word = |text: &str| text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let comes = |operator: &&&str| {
            let after = self.rest().strip_prefix(**operator);
            after.is_some_and(|after| !is_word(operator) || !is_word(after))
        };
        let Some(found) = operators.iter().find(comes) else { return false };
        self.at += found.len();
        true
    }

    fn any(&mut self) -> Result<Filterset, String> {
        let mut one = self.all()?;
        while self.operator(&["|", "+", "or"]) {
            one = Filterset::Or(one.into(), self.all()?.into());
        }
        Ok(one)
    }

    fn all(&mut self) -> Result<Filterset, String> {
        let mut one = self.not()?;
        loop {
            one = if self.operator(&["&", "and"]) {
                Filterset::And(one.into(), self.not()?.into())
            } else if self.operator(&["-"]) {
                Filterset::And(one.into(), Filterset::Not(self.not()?.into()).into())
            } else {
                return Ok(one);
            };
        }
    }

    fn not(&mut self) -> Result<Filterset, String> {
        if self.operator(&["!", "not"]) {
            return Ok(Filterset::Not(self.not()?.into()));
        }
        if self.operator(&["("]) {
            let inside = self.any()?;
            return if self.operator(&[")"]) { Ok(inside) } else { Err(self.wrong("expected )")) };
        }
        self.predicate()
    }

    fn predicate(&mut self) -> Result<Filterset, String> {
        const PREDICATES: &str = "expected id(), vm(), group(), needs(), upstream(), all() or none()";
        let word: &str = self.rest().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let name = match word {
            "all" | "none" => None,
            "id" | "test" => Some(Name::Id),
            "vm" => Some(Name::Vm),
            "group" => Some(Name::Group),
            "needs" => Some(Name::Needs),
            "upstream" => Some(Name::Upstream),
            _ => return Err(self.wrong(PREDICATES)),
        };
        self.at += word.len();
        if !self.operator(&["("]) {
            return Err(self.wrong("expected ("));
        }
        let Some(name) = name else {
            if !self.operator(&[")"]) {
                return Err(self.wrong("expected )"));
            }
            return Ok(if word == "all" { Filterset::All } else { Filterset::None });
        };
        self.matcher(name).map(|matcher| Filterset::Names(name, matcher))
    }

    /// The matcher, up to and with the closing parenthesis.
    fn matcher(&mut self, name: Name) -> Result<Matcher, String> {
        self.operator(&[]);
        let sign = self.rest().chars().next().filter(|sign| "=~#/".contains(*sign));
        if sign == Some('/') {
            return self.regex();
        }
        let start = self.at;
        let end = self.rest().find(')').ok_or_else(|| self.wrong("expected ) after the text"))?;
        let text = self.rest()[sign.map_or(0, char::len_utf8)..end].trim().to_owned();
        if text.is_empty() {
            return Err(self.wrong("expected a text"));
        }
        let matcher = match sign {
            Some('=') => Matcher::Whole(text),
            Some('~') => Matcher::Part(text),
            Some('#') => {
                let glob = Glob::new(&text).map_err(|error| self.wrong(&format!("bad glob: {}", error.kind())))?;
                Matcher::Glob(glob.compile_matcher())
            }
            _ => name.bare(text),
        };
        self.at = start + end + 1;
        Ok(matcher)
    }

    /// A regular expression, which may contain parentheses, and slashes with a backslash before them.
    fn regex(&mut self) -> Result<Matcher, String> {
        let body = &self.rest()[1..];
        let slash = |(at, c): &(usize, char)| *c == '/' && !body[..*at].ends_with('\\');
        let (end, _) = body.char_indices().find(slash).ok_or_else(|| self.wrong("expected / after the expression"))?;
        let text = body[..end].replace(r"\/", "/");
        let regex = Regex::new(&text).map_err(|error| {
            let error = error.to_string();
            self.wrong(&format!("bad regular expression: {}", error.lines().last().unwrap_or_default()))
        })?;
        self.at += end + 2;
        if self.operator(&[")"]) { Ok(Matcher::Regex(regex)) } else { Err(self.wrong("expected )")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many rows of the table meet it.
    fn count(expression: &str) -> usize {
        let filterset: Filterset = expression.parse().unwrap_or_else(|error| panic!("{expression}: {error}"));
        privet_cases::table().iter().filter(|row| filterset.matches(row)).count()
    }

    #[test]
    fn predicates_match_as_documented() {
        let table = privet_cases::table();
        let by = |test: &dyn Fn(&str) -> bool| table.iter().filter(|row| test(&row.id)).count();
        assert_eq!(count("all()"), table.len());
        assert_eq!(count("none()"), 0);
        assert_eq!(count("vm(upm)"), by(&|id| id.starts_with("upm.")));
        assert_eq!(count("vm(up)"), 0);
        assert_eq!(count("group(mmio)"), by(&|id| id.split('.').nth(1) == Some("mmio")));
        assert_eq!(count("id(mmio)"), by(&|id| id.contains("mmio")));
        assert_eq!(count("test(mmio)"), count("id(mmio)"));
        assert_eq!(count(&format!("id(={})", table[0].id)), 1);
        assert_eq!(count("id(/^upm\\.(mmio|slots)\\./)"), count("vm(upm) & (group(mmio) | group(slots))"));
        assert_eq!(count("id(#upm.mmio.*)"), count("vm(upm) & group(mmio)"));
        assert!(count("upstream(~guest_memfd_test)") > 0 && count("needs(~mmio_caching)") > 0);
    }

    #[test]
    fn operators_bind_as_in_nextest() {
        assert_eq!(count("vm(plain) | vm(upm) & group(mmio)"), count("vm(plain) | (vm(upm) & group(mmio))"));
        assert_eq!(count("vm(upm) - group(mmio)"), count("vm(upm) and not group(mmio)"));
        assert_eq!(count("! vm(upm) & group(mmio)"), count("(!vm(upm)) & group(mmio)"));
        assert_eq!(count("vm(upm)+vm(plain)"), count("vm(upm) or vm(plain)"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (expression, why) in [
            ("", "expected id(), vm()"),
            ("vm", "expected (, at column 3"),
            ("vm(", "expected ) after the text"),
            ("vm()", "expected a text"),
            ("vm(upm) vm(plain)", "expected an operator: & | - or the end, at column 9"),
            ("vm(upm) &", "expected id(), vm()"),
            ("(vm(upm)", "expected )"),
            ("package(x)", "expected id(), vm()"),
            ("id(/(/)", "bad regular expression"),
            ("id(/x)", "expected / after"),
            ("id(#[)", "bad glob"),
            ("all(x)", "expected )"),
            ("notvm(upm)", "expected id(), vm()"),
        ] {
            let error = expression.parse::<Filterset>().unwrap_err();
            assert!(error.contains(why) && error.lines().count() == 1, "{expression}: {error}");
        }
    }

    #[test]
    fn a_whole_name_that_no_row_has_is_found() {
        let table = privet_cases::table();
        let unknown = |text: &str| text.parse::<Filterset>().unwrap().unknown(&table).map(str::to_owned);
        assert_eq!(unknown("vm(upm) - id(=upm.no.such)"), Some("upm.no.such".to_owned()));
        assert_eq!(unknown("vm(ump) | all()"), Some("ump".to_owned()));
        assert_eq!(unknown("vm(upm) - id(~no.such)"), None);
    }
}
