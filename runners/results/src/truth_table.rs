//! Tables of what guests and hosts do and what comes of it, as pages in Markdown have them.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::document::TruthTable;

/// The tables of a page, each titled by the heading before it.
pub fn tables_in(markdown: &str) -> Vec<TruthTable> {
    let mut tables: Vec<TruthTable> = Vec::new();
    let mut heading = String::new();
    let (mut line, mut text): (Vec<String>, String) = (Vec::new(), String::new());
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. } | Tag::TableCell) => text.clear(),
            Event::Text(words) | Event::Code(words) => text += &words,
            Event::End(TagEnd::Heading(_)) => heading = std::mem::take(&mut text),
            Event::Start(Tag::Table(_)) => {
                tables.push(TruthTable { title: heading.clone(), columns: Vec::new(), lines: Vec::new() });
            }
            Event::End(TagEnd::TableCell) => line.push(std::mem::take(&mut text)),
            Event::End(TagEnd::TableHead) => {
                tables.iter_mut().next_back().into_iter().for_each(|table| table.columns = std::mem::take(&mut line))
            }
            Event::End(TagEnd::TableRow) => {
                tables.iter_mut().next_back().into_iter().for_each(|table| table.lines.push(std::mem::take(&mut line)))
            }
            _ => {}
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_tables() {
        let page =
            "# What becomes\n\nWords, `code`.\n\n| access | snp |\n|---|---|\n| `private` | done |\n| shared | - |\n";
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            tables_in(page),
            [TruthTable {
                title: "What becomes".into(),
                columns: words(&["access", "snp"]),
                lines: vec![words(&["private", "done"]), words(&["shared", "-"])]
            }]
        );
        assert!(tables_in("no table").is_empty());
    }
}
