//! TAP 13 and 14 (testanything.org) and KTAP 1 (Documentation/dev-tools/ktap.rst), as programs really print
//! them: between other lines, with subtests nested by spaces or by the `# ` of the kernel's runner, cut off
//! where the program died.
//!
//! The crates that read TAP stop at what is not TAP or know other nesting than the kernel's, and none is
//! kept up; so this is our own. It never fails: what is wrong with a document is a part of the result.

/// How deep subtests may be nested. Real ones have three levels.
const DEPTH_MAX: usize = 32;

/// A document: a plan, and results.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Document {
    /// How many results were announced.
    pub plan: Option<Plan>,
    /// The results in the order of their lines.
    pub results: Vec<TestResult>,
    /// What was said with `Bail out!`.
    pub bail_out: Option<String>,
    /// What is wrong with the document, one line each.
    pub problems: Vec<String>,
    /// Whether it began with a version line.
    pub has_version: bool,
}

/// `1..N`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How many results there shall be.
    pub count: u64,
    /// The reason of `1..0 # SKIP reason`.
    pub skip: Option<String>,
}

/// One result line, with the subtests before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestResult {
    /// Its number, from 1 in each document.
    pub number: u64,
    /// Its description.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What follows the directive, or what follows `#` where there is no directive.
    pub reason: String,
    /// Its subtests.
    pub inside: Option<Document>,
}

/// How a test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `ok`, also with `# XPASS` and `# TODO`.
    Pass,
    /// `not ok`
    Fail,
    /// `# SKIP`
    Skip,
    /// `# XFAIL`, or `not ok` with `# TODO`: it failed, as it is known to.
    XFail,
    /// `# TIMEOUT`
    Timeout,
    /// `# ERROR`
    Error,
}

impl Outcome {
    /// Whether something went wrong.
    pub fn is_bad(self) -> bool {
        matches!(self, Outcome::Fail | Outcome::Timeout | Outcome::Error)
    }
}

impl Document {
    /// Reads what a program printed. Lines that are not TAP are passed over.
    pub fn read(text: &str) -> Self {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line.trim_end());
        }
        reader.end()
    }

    /// Whether there was anything of TAP at all.
    pub fn is_there(&self) -> bool {
        self.has_version || self.plan.is_some() || !self.results.is_empty() || self.bail_out.is_some()
    }

    /// How the whole document ended, and why, in one line. A document that is cut off or contradicts itself
    /// has not passed, whatever its results say; `None` if there is no document.
    pub fn outcome(&self) -> Option<(Outcome, String)> {
        if !self.is_there() {
            return None;
        }
        if let Some(reason) = &self.bail_out {
            return Some((Outcome::Fail, format!("Bail out! {reason}").trim_end().to_owned()));
        }
        if let Some(bad) = self.results.iter().find(|result| result.outcome.is_bad()) {
            return Some((bad.outcome, bad.in_words()));
        }
        if let Some(problem) = self.problems.first() {
            return Some((Outcome::Error, problem.clone()));
        }
        if let Some(wrong) = self.wrong_count() {
            return Some((Outcome::Error, wrong));
        }
        let all = |outcome| !self.results.is_empty() && self.results.iter().all(|result| result.outcome == outcome);
        let first_reason = || self.results.first().map(|result| result.reason.clone()).unwrap_or_default();
        Some(match &self.plan {
            Some(Plan { count: 0, skip }) => {
                (Outcome::Skip, skip.clone().unwrap_or_else(|| "an empty plan".to_owned()))
            }
            _ if self.results.is_empty() => (Outcome::Error, "it ended before its first result".to_owned()),
            _ if all(Outcome::Skip) => (Outcome::Skip, first_reason()),
            _ if all(Outcome::XFail) => (Outcome::XFail, first_reason()),
            _ => (Outcome::Pass, String::new()),
        })
    }

    /// In words, if there are fewer or more results than planned.
    pub fn wrong_count(&self) -> Option<String> {
        let (planned, seen) = (self.plan.as_ref()?.count, self.results.len() as u64);
        (planned != seen).then(|| format!("{planned} results were planned, {seen} came"))
    }

    /// Every result that has no subtests, by the names on the way to it, with `.` between them.
    pub fn leaves(&self) -> Vec<(String, &TestResult)> {
        self.results.iter().flat_map(TestResult::leaves).collect()
    }
}

impl TestResult {
    fn leaves(&self) -> Vec<(String, &TestResult)> {
        match &self.inside {
            Some(inside) if !inside.results.is_empty() => {
                let named = |(path, leaf): (String, _)| (format!("{}.{path}", self.name), leaf);
                inside.leaves().into_iter().map(named).collect()
            }
            _ => vec![(self.name.clone(), self)],
        }
    }

    fn in_words(&self) -> String {
        let how = match self.outcome {
            Outcome::Timeout => "timed out",
            Outcome::Error => "broke",
            _ => "failed",
        };
        let name = if self.name.is_empty() { format!("test {}", self.number) } else { self.name.clone() };
        if self.reason.is_empty() { format!("{name} {how}") } else { format!("{name} {how}: {}", self.reason) }
    }

    /// Holds a test to its subtests: it cannot be better than they are.
    fn with(mut self, inside: Option<Document>) -> Self {
        if let Some((outcome, reason)) = inside.as_ref().and_then(Document::outcome)
            && outcome.is_bad()
            && !self.outcome.is_bad()
        {
            self.outcome = outcome;
            self.reason = reason;
        }
        self.inside = inside;
        self
    }
}

/// What a line says, without its margin.
#[derive(PartialEq, Eq, Debug)]
enum Line {
    Version,
    Plan(Plan),
    Result(TestResult),
    BailOut(String),
}

/// A document on its way.
#[derive(Default)]
struct Level {
    /// What its lines begin with: nothing for the outermost document, spaces or `# ` for subtests.
    margin: String,
    document: Document,
}

#[derive(Default)]
struct Reader {
    outermost: Document,
    /// The subtests that are open, each inside the one before.
    nested: Vec<Level>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        let Some((margin, said)) = understood(line) else { return };
        match self.depth_of(margin) {
            Some(depth) => self.take(depth, said),
            // Only a version opens subtests in KTAP. A plan does in TAP 14, where they are indented by spaces.
            None if said == Line::Version => self.open(margin, said),
            None if matches!(said, Line::Plan(_)) && margin.bytes().all(|byte| byte == b' ') => {
                self.open(margin, said);
            }
            None => {}
        }
    }

    /// The open document whose lines have this margin; 0 is the outermost.
    fn depth_of(&self, margin: &str) -> Option<usize> {
        if margin.is_empty() {
            return Some(0);
        }
        self.nested.iter().position(|level| level.margin == margin).map(|index| index + 1)
    }

    fn open(&mut self, margin: &str, said: Line) {
        let around = self.nested.iter().filter(|level| margin.starts_with(&level.margin)).count();
        if around == DEPTH_MAX {
            self.document(around).problems.push("subtests are nested too deeply".to_owned());
            return;
        }
        self.abandon(around);
        self.nested.push(Level { margin: margin.to_owned(), document: Document::default() });
        self.take(around + 1, said);
    }

    fn document(&mut self, depth: usize) -> &mut Document {
        match depth.checked_sub(1) {
            None => &mut self.outermost,
            Some(index) => &mut self.nested[index].document,
        }
    }

    fn take(&mut self, depth: usize, said: Line) {
        if let Line::Result(result) = said {
            self.abandon(depth + 1);
            let inside = (self.nested.len() > depth).then(|| self.nested.pop()).flatten().map(|level| level.document);
            let document = self.document(depth);
            let due = document.results.len() as u64 + 1;
            if result.number != due {
                document.problems.push(format!("result {} came where {due} was due", result.number));
            }
            document.results.push(result.with(inside));
            return;
        }
        // A version or plan of an outer document while subtests are open.
        self.abandon(depth);
        let document = self.document(depth);
        match said {
            Line::Version if document.is_there() => document.problems.push("a second document begins".to_owned()),
            Line::Version => document.has_version = true,
            Line::Plan(_) if document.plan.is_some() => document.problems.push("there are two plans".to_owned()),
            Line::Plan(plan) => document.plan = Some(plan),
            Line::BailOut(reason) => document.bail_out = Some(reason),
            Line::Result(_) => {}
        }
    }

    /// Ends subtests whose result line has not come, until `depth` of them are open.
    fn abandon(&mut self, depth: usize) {
        while self.nested.len() > depth {
            let Some(level) = self.nested.pop() else { return };
            let parent = self.document(self.nested.len());
            let number = parent.results.len() as u64 + 1;
            let result = TestResult {
                number,
                name: String::new(),
                outcome: Outcome::Error,
                reason: "its subtests have no result line after them".to_owned(),
                inside: Some(level.document),
            };
            parent.problems.push("subtests have no result line after them".to_owned());
            parent.results.push(result);
        }
    }

    fn end(mut self) -> Document {
        self.abandon(0);
        self.outermost
    }
}

/// The margin of a line and what follows it, if that is TAP.
fn understood(line: &str) -> Option<(&str, Line)> {
    let text = line.trim_start_matches([' ', '#']);
    let margin = &line[..line.len() - text.len()];
    let said = version(text).or_else(|| plan(text)).or_else(|| result(text)).or_else(|| bail_out(text))?;
    Some((margin, said))
}

fn version(text: &str) -> Option<Line> {
    ["KTAP version 1", "TAP version 13", "TAP version 14"].contains(&text).then_some(Line::Version)
}

fn plan(text: &str) -> Option<Line> {
    let rest = text.strip_prefix("1..")?;
    let (count, rest) = number(rest)?;
    let (before, directive) = rest.split_once('#').map_or((rest, None), |(before, after)| (before, Some(after)));
    if !before.trim().is_empty() {
        return None;
    }
    let skip = directive.map(str::trim).and_then(|directive| reason_of(directive, "SKIP"));
    Some(Line::Plan(Plan { count, skip: skip.map(str::to_owned) }))
}

fn bail_out(text: &str) -> Option<Line> {
    text.strip_prefix("Bail out!").map(|reason| Line::BailOut(reason.trim().to_owned()))
}

fn result(text: &str) -> Option<Line> {
    let (is_ok, rest) = match text.strip_prefix("not ") {
        Some(rest) => (false, rest),
        None => (true, text),
    };
    let (number, rest) = number(rest.strip_prefix("ok ")?)?;
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return None;
    }
    let (description, directive) = rest.split_once('#').unwrap_or((rest, ""));
    let description = description.trim();
    let name = description.strip_prefix("- ").unwrap_or(description).trim();
    let (outcome, reason) = outcome(is_ok, directive.trim());
    // kselftest.h puts the name of a skipped test behind the directive.
    let name = if name.is_empty() { reason } else { name };
    let (name, reason) = (name.to_owned(), reason.to_owned());
    Some(Line::Result(TestResult { number, name, outcome, reason, inside: None }))
}

fn outcome(is_ok: bool, directive: &str) -> (Outcome, &str) {
    const DIRECTIVES: [(&str, Outcome, Outcome); 6] = [
        // What it means with "ok" and with "not ok".
        ("SKIP", Outcome::Skip, Outcome::Skip),
        ("TODO", Outcome::Pass, Outcome::XFail),
        ("XFAIL", Outcome::XFail, Outcome::XFail),
        ("XPASS", Outcome::Pass, Outcome::Fail),
        ("TIMEOUT", Outcome::Timeout, Outcome::Timeout),
        ("ERROR", Outcome::Error, Outcome::Error),
    ];
    for (name, with_ok, with_not_ok) in DIRECTIVES {
        if let Some(reason) = reason_of(directive, name) {
            return (if is_ok { with_ok } else { with_not_ok }, reason);
        }
    }
    // An unknown directive counts as none.
    (if is_ok { Outcome::Pass } else { Outcome::Fail }, directive)
}

/// What follows this directive, which is a word of its own in letters of either case.
fn reason_of<'a>(text: &'a str, directive: &str) -> Option<&'a str> {
    let (word, rest) = text.split_at_checked(directive.len())?;
    let is_word = rest.is_empty() || rest.starts_with(|c: char| c.is_whitespace() || c == ':');
    (word.eq_ignore_ascii_case(directive) && is_word).then(|| rest.trim_start_matches(':').trim())
}

/// A decimal number and what follows it.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests;
