//! A C file of the kernel as a syntax tree.

use std::collections::BTreeMap;
use std::ops::Range;

use tree_sitter::{Node, Parser, Tree};

/// Words that the kernel puts before or behind a declaration, where C has none: a parser without the preprocessor
/// stumbles over them. Spaces in their place keep all that is behind them where it was.
const ANNOTATIONS: &[&str] = &[
    "__always_inline",
    "__always_unused",
    "__cold",
    "__cpuidle",
    "__exit",
    "__force",
    "__init",
    "__initdata",
    "__iomem",
    "__maybe_unused",
    "__must_check",
    "__noreturn",
    "__percpu",
    "__private",
    "__rcu",
    "__read_mostly",
    "__ro_after_init",
    "__used",
    "__user",
    "__weak",
    "asmlinkage",
    "noinline",
    "noinstr",
];

/// A file that is parsed.
pub struct Source {
    /// The file, below the top of the source.
    pub file: String,
    /// What is in it.
    pub text: String,
    tree: Tree,
}

impl Source {
    /// Parses a file. What its grammar does not know, macros that stand for statements for example, costs the places
    /// around it, never the rest.
    ///
    /// # Panics
    /// If the grammar of C is not the parser's version, which the tests would see.
    #[must_use]
    pub fn parse(file: &str, text: String) -> Self {
        let mut parser = Parser::new();
        parser.set_language(&tree_sitter_c::LANGUAGE.into()).expect("the grammar fits the parser");
        let tree = parser.parse(without_annotations(&text), None).expect("there is a language and no time limit");
        Self { file: file.to_owned(), text, tree }
    }

    /// All functions that are defined in it, in their order.
    pub fn functions(&self) -> impl Iterator<Item = Function<'_>> {
        let mut found = Vec::new();
        collect(self.tree.root_node(), &mut found);
        found.into_iter().filter_map(|node| Function::of(self, node))
    }

    /// The text of a node.
    pub(crate) fn text_of(&self, node: Node<'_>) -> &str {
        &self.text[node.byte_range()]
    }
}

/// Functions may stand below `#if`.
fn collect<'a>(node: Node<'a>, found: &mut Vec<Node<'a>>) {
    for child in node.children(&mut node.walk()) {
        match child.kind() {
            "function_definition" => found.push(child),
            "compound_statement" | "declaration" | "struct_specifier" => {}
            _ => collect(child, found),
        }
    }
}

/// The text with spaces for annotations.
fn without_annotations(text: &str) -> String {
    let mut blanked = text.as_bytes().to_vec();
    for place in ANNOTATIONS.iter().flat_map(|annotation| whole_words(text, annotation)) {
        blanked[place].fill(b' ');
    }
    String::from_utf8(blanked).expect("only whole ASCII words were replaced")
}

/// Where a word stands in C source that is not a part of a longer one.
fn whole_words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
    let is_in_word = |byte: &u8| *byte == b'_' || byte.is_ascii_alphanumeric();
    let places = text.match_indices(word).map(|(start, word)| start..start + word.len());
    places.filter(move |place| {
        let (before, behind) = (&text.as_bytes()[..place.start], &text.as_bytes()[place.end..]);
        !before.last().is_some_and(is_in_word) && !behind.first().is_some_and(is_in_word)
    })
}

/// A function that is defined in a file.
#[derive(Clone)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    pub(crate) source: &'a Source,
    pub(crate) body: Node<'a>,
    /// The declared types of its parameters and variables, by name.
    types: BTreeMap<&'a str, String>,
}

impl<'a> Function<'a> {
    fn of(source: &'a Source, node: Node<'a>) -> Option<Self> {
        let body = node.child_by_field_name("body")?;
        let declarator = node.child_by_field_name("declarator")?;
        let function = first(declarator, "function_declarator")?;
        let name = source.text_of(function.child_by_field_name("declarator")?);
        let mut this = Self { name, source, body, types: BTreeMap::new() };
        if let Some(parameters) = function.child_by_field_name("parameters") {
            this.declare(parameters);
        }
        this.declare(body);
        Some(this)
    }

    /// Remembers the types of all variables that are declared below `node`.
    fn declare(&mut self, node: Node<'a>) {
        for child in node.named_children(&mut node.walk()) {
            if matches!(child.kind(), "parameter_declaration" | "declaration")
                && let Some(kind) = child.child_by_field_name("type")
            {
                let kind = self.source.text_of(kind);
                for declarator in child.children_by_field_name("declarator", &mut child.walk()) {
                    self.declare_one(kind, declarator);
                }
            }
            self.declare(child);
        }
    }

    fn declare_one(&mut self, kind: &str, declarator: Node<'a>) {
        let (mut node, mut stars) = (declarator, String::new());
        loop {
            match node.kind() {
                "identifier" => {
                    self.types.insert(self.source.text_of(node), format!("{kind}{stars}"));
                    return;
                }
                "pointer_declarator" => stars.push('*'),
                "init_declarator" => {}
                _ => return,
            }
            let Some(inner) = node.child_by_field_name("declarator") else { return };
            node = inner;
        }
    }

    /// The declared type of a parameter or variable.
    pub(crate) fn type_of(&self, variable: &str) -> Option<&str> {
        self.types.get(variable).map(String::as_str)
    }

    /// Its text from the body's opening brace on, without what is no more than layout.
    #[must_use]
    pub fn content(&self) -> String {
        self.source.text_of(self.body).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Whether it calls a function of this name, as far as its text tells.
    #[must_use]
    pub fn calls(&self, name: &str) -> bool {
        let text = self.source.text_of(self.body);
        whole_words(text, name).any(|place| text[place.end..].starts_with('('))
    }

    /// The lines of its body, from 1.
    #[must_use]
    pub fn lines(&self) -> Range<usize> {
        self.body.start_position().row + 1..self.body.end_position().row + 2
    }
}

/// The first node of a kind from `node` down along its declarators.
fn first<'a>(node: Node<'a>, kind: &str) -> Option<Node<'a>> {
    let mut node = node;
    while node.kind() != kind {
        node = node.child_by_field_name("declarator")?;
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
static __always_inline bool is_private(struct kvm *kvm, gfn_t gfn) { return gfn & 1; }
#ifdef CONFIG_X
int *pointer(void)
{
	int a = 1, *b;
	list_for_each_entry(f, &list, entry) {
		a = 2;
	}
	return b;
}
#endif
static const struct ops ops = { .call = is_private };
";

    #[test]
    fn functions_are_found_below_ifs_and_behind_annotations() {
        let source = Source::parse("a.c", TEXT.to_owned());
        let names: Vec<_> = source.functions().map(|function| function.name.to_owned()).collect();
        assert_eq!(names, ["is_private", "pointer"]);
        assert_eq!(source.functions().next().unwrap().content(), "{ return gfn & 1; }");
        assert_eq!(source.functions().nth(1).unwrap().lines(), 5..12);
    }

    #[test]
    fn a_call_is_a_whole_name_before_a_parenthesis() {
        let source = Source::parse("a.c", "int f(void) { return g(1) + my_h(2) + i; }".to_owned());
        let f = source.functions().next().unwrap();
        assert!(f.calls("g") && f.calls("my_h") && !f.calls("h") && !f.calls("i") && !f.calls("f"));
    }

    #[test]
    fn types_of_variables_count_their_stars() {
        let source = Source::parse("a.c", TEXT.to_owned());
        let function = source.functions().next().unwrap();
        assert_eq!((function.type_of("kvm"), function.type_of("gfn")), (Some("struct kvm*"), Some("gfn_t")));
        let function = source.functions().nth(1).unwrap();
        assert_eq!((function.type_of("a"), function.type_of("b")), (Some("int"), Some("int*")));
    }
}
