//! The page that shows what survived, in the source.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, html};

use crate::mutant::{Fate, Trial};
use crate::point::Point;

/// A trial on the page.
#[derive(Clone, Debug)]
pub struct PageLine<'a> {
    /// Where the source was broken.
    pub point: &'a Point,
    /// The file as it is.
    pub text: &'a str,
    /// What became of it.
    pub trial: &'a Trial,
    /// What somebody has said about it, or nothing.
    pub opinion: String,
}

/// How many lines are shown before and behind a mutant.
const AROUND: usize = 3;

const STYLE: &str = "
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left }
pre { margin: 0; padding: .5rem; overflow-x: auto; background: #8881; border-radius: 4px }
article { margin: 1rem 0 } h3 { font: 600 14px/1.4 ui-monospace, monospace; margin: .4rem 0; overflow-wrap: anywhere }
mark { background: #d9770055; color: inherit } ins { text-decoration: none; background: #2da44e44 }
";

/// The page: a table of files, and every survivor with what is around it, which no `noun` (row, test) was red for. It needs no
/// network and no script.
#[must_use]
pub fn page<'a>(kernel: &str, noun: &str, lines: impl Iterator<Item = PageLine<'a>>) -> String {
    let mut files: BTreeMap<&str, Vec<PageLine<'a>>> = BTreeMap::new();
    for line in lines {
        files.entry(line.point.file.as_str()).or_default().push(line);
    }
    for lines in files.values_mut() {
        lines.sort_by_key(|line| line.point.replaced.start);
    }
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Mutants of " (kernel) }
                style { (maud::PreEscaped(STYLE)) }
            }
            body {
                h1 { "Mutants of " (kernel) }
                p { "The real kernel in a simulated machine, which is no hardware. What is below was changed, and no " (noun) " was red." }
                table {
                    tr { th { "file" } th { "killed" } th { "survived" } th { "unreached" } th { "judged" } th { "no difference" } th { "not compiled" } }
                    @for (file, lines) in &files { (counts(file, lines)) }
                }
                @for (file, lines) in &files {
                    @let survivors: Vec<_> = lines.iter().filter(|line| line.trial.fate.is_survivor()).collect();
                    @if !survivors.is_empty() {
                        h2 id=(file) { (file) }
                        @for line in survivors { (survivor(line)) }
                    }
                }
            }
        }
    };
    markup.into_string()
}

fn counts(file: &str, lines: &[PageLine<'_>]) -> Markup {
    let count = |is: fn(&Fate) -> bool| lines.iter().filter(|line| is(&line.trial.fate)).count();
    let judged = lines.iter().filter(|line| line.trial.fate.is_survivor() && !line.opinion.is_empty()).count();
    html! {
        tr {
            td { a href={ "#" (file) } { (file) } }
            td { (count(|fate| matches!(fate, Fate::Killed { .. } | Fate::KilledAtBoot { .. }))) }
            td { (count(|fate| matches!(fate, Fate::Survived))) }
            td { (count(|fate| matches!(fate, Fate::Unreached))) }
            td { (judged) }
            td { (count(|fate| matches!(fate, Fate::Same))) }
            td { (count(|fate| matches!(fate, Fate::Rejected { .. }))) }
        }
    }
}

fn survivor(line: &PageLine<'_>) -> Markup {
    let PageLine { point, text, trial, opinion } = line;
    let before = lines_before(text, point.replaced.start);
    let after = lines_behind(text, point.replaced.end);
    html! {
        article {
            h3 { (trial.name) }
            p {
                (trial.fate.word()) ", line " (point.lines.start)
                @if trial.rows > 0 { ", " (trial.rows) " rows" }
                @if !opinion.is_empty() { ": " (opinion) }
            }
            pre {
                (before) mark { (text[point.replaced.clone()]) } ins { " → " (point.replacement) } (after)
            }
        }
    }
}

/// The text from a few lines before a place up to it.
fn lines_before(text: &str, place: usize) -> &str {
    let start = text[..place].rmatch_indices('\n').nth(AROUND).map_or(0, |(at, _)| at + 1);
    &text[start..place]
}

/// The text from a place on to the end of some lines.
fn lines_behind(text: &str, place: usize) -> &str {
    let end = text[place..].match_indices('\n').nth(AROUND).map_or(text.len(), |(at, _)| place + at);
    &text[place..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::points;
    use crate::source::Source;

    #[test]
    fn survivors_are_shown_where_they_are_and_text_stays_text() {
        let source = Source::parse("a.c", "int f(void)\n{\n\tif (a < b)\n\t\tg();\n\treturn 0;\n}\n".to_owned());
        let points = points(&source.functions().next().unwrap());
        let trials: Vec<Trial> = points
            .iter()
            .map(|point| Trial {
                name: point.name(),
                content: String::new(),
                judge: String::new(),
                fate: if point.name().contains("bound") { Fate::Survived } else { Fate::Same },
                rows: 3,
                milliseconds: 1,
            })
            .collect();
        let line = |(point, trial)| PageLine { point, text: &source.text, trial, opinion: String::new() };
        let page = page("Linux <7>", "row", points.iter().zip(&trials).map(line));
        assert!(page.contains("Linux &lt;7&gt;"), "{page}");
        assert!(page.contains("if (a <mark>&lt;</mark><ins> → &lt;=</ins> b)"), "{page}");
        assert_eq!(page.matches("<article>").count(), 1);
    }
}
