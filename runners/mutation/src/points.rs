//! Where a function can be broken: its mutation points.
//!
//! Left out is what nobody can notice by asking KVM: tracing, printing, assertions that warn, and what runs only if such
//! an assertion has already failed.

use std::collections::BTreeMap;
use std::ops::Range;

use tree_sitter::Node;

use crate::operator::Operator;
use crate::point::Point;
use crate::source::Function;

/// What functions and macros begin with whose calls only tell, or warn.
const TELLING: &[&str] = &[
    "trace_",
    "pr_",
    "printk",
    "dev_",
    "vcpu_unimpl",
    "kvm_pr_",
    "kvm_err",
    "kvm_debug",
    "WARN",
    "BUG",
    "KVM_BUG",
    "KVM_MMU_WARN",
    "VM_WARN",
    "VM_BUG",
    "BUILD_BUG",
    "lockdep_",
    "might_sleep",
    "might_lock",
    "MMU_WARN",
    "SEV_DEBUG",
];

/// What barriers begin with.
const BARRIERS: &[&str] = &["smp_", "barrier", "mb", "rmb", "wmb", "dma_mb", "dma_rmb", "dma_wmb"];

/// What is counted or indexes, as a part of its name between underscores.
const COUNTS: &[&str] =
    &["gfn", "pfn", "npages", "pages", "size", "len", "offset", "pgoff", "index", "start", "end", "nr", "count"];

/// All points of a function, in the order of the source; those of one operator and target are numbered from 1.
#[must_use]
pub fn points(function: &Function<'_>) -> Vec<Point> {
    let mut finder = Finder { function, found: Vec::new(), counted: BTreeMap::new() };
    finder.empty();
    finder.visit(function.body, true);
    finder.found
}

struct Finder<'a> {
    function: &'a Function<'a>,
    found: Vec<Point>,
    counted: BTreeMap<(Operator, Option<String>), usize>,
}

/// A change of the text at a node.
struct Change<'n> {
    at: Node<'n>,
    operator: Operator,
    target: Option<String>,
    unbiased: bool,
    replaced: Range<usize>,
    replacement: String,
}

impl<'n> Change<'n> {
    fn of(at: Node<'n>, operator: Operator, replacement: impl Into<String>) -> Self {
        let replaced = at.byte_range();
        Self { at, operator, target: None, unbiased: true, replaced, replacement: replacement.into() }
    }
}

impl Finder<'_> {
    fn text(&self, node: Node<'_>) -> &str {
        self.function.source.text_of(node)
    }

    /// A node's text with one space where there are several, or ends of lines.
    fn words(&self, node: Node<'_>) -> String {
        self.text(node).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn push(&mut self, change: Change<'_>) {
        let Change { at, operator, target, unbiased, replaced, replacement } = change;
        let ordinal = self.counted.entry((operator, target.clone())).or_default();
        *ordinal += 1;
        self.found.push(Point {
            file: self.function.source.file.clone(),
            function: self.function.name.to_owned(),
            operator,
            target,
            ordinal: *ordinal,
            lines: at.start_position().row + 1..at.end_position().row + 2,
            function_lines: self.function.lines(),
            unbiased,
            replaced,
            replacement,
        });
    }

    /// What is below `node`; `unbiased` unless samples leave it out.
    fn visit(&mut self, node: Node<'_>, unbiased: bool) {
        let before = self.found.len();
        match node.kind() {
            "if_statement" => self.whole_condition(node),
            "return_statement" => self.returned(node),
            "expression_statement" => self.statement(node),
            "binary_expression" => {
                self.bound(node);
                self.bit(node);
            }
            "argument_list" => self.swapped(node),
            "assignment_expression" => self.errno(node, "left", "right"),
            "init_declarator" => self.errno(node, "declarator", "value"),
            _ => {}
        }
        if let Some(condition) = node.child_by_field_name("condition") {
            self.atoms(condition);
        }
        if matches!(node.kind(), "identifier" | "field_expression") {
            self.off_by_one(node);
        }
        if !unbiased {
            self.found[before..].iter_mut().for_each(|point| point.unbiased = false);
        }
        let only_after_a_warning = node
            .child_by_field_name("condition")
            .filter(|_| node.kind() == "if_statement")
            .is_some_and(|condition| self.tells(condition));
        for child in node.named_children(&mut node.walk()) {
            let told = child.kind() == "call_expression" && self.is_telling(child);
            let skipped = node.child_by_field_name("consequence") == Some(child) && only_after_a_warning;
            let field_name = node.kind() == "field_expression" || self.is_called(child);
            if !field_name {
                self.visit(child, unbiased && !told && !skipped);
            }
        }
    }

    /// Whether this is the name of the function in a call.
    fn is_called(&self, node: Node<'_>) -> bool {
        node.kind() == "identifier"
            && node.parent().is_some_and(|call| call.child_by_field_name("function") == Some(node))
    }

    /// Whether a call only tells.
    fn is_telling(&self, call: Node<'_>) -> bool {
        let name = call.child_by_field_name("function").map_or("", |name| self.text(name));
        TELLING.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Whether a call below this node only tells.
    fn tells(&self, node: Node<'_>) -> bool {
        (node.kind() == "call_expression" && self.is_telling(node))
            || node.named_children(&mut node.walk()).any(|child| self.tells(child))
    }

    fn empty(&mut self) {
        let body = self.function.body;
        let is_declaration = |node: &Node<'_>| matches!(node.kind(), "declaration" | "comment");
        let statements: Vec<_> = body.named_children(&mut body.walk()).skip_while(is_declaration).collect();
        if let (Some(first), Some(last)) = (statements.first(), statements.last()) {
            let replaced = first.start_byte()..last.end_byte();
            self.push(Change { replaced, unbiased: false, ..Change::of(body, Operator::Empty, "return 0;") });
        }
    }

    fn whole_condition(&mut self, node: Node<'_>) {
        let Some(condition) = node.child_by_field_name("condition") else { return };
        for (operator, replacement) in [(Operator::Never, "(0)"), (Operator::Always, "(1)")] {
            self.push(Change { unbiased: false, ..Change::of(condition, operator, replacement) });
        }
    }

    /// The parts of a condition between `&&`, `||` and `!`.
    fn atoms(&mut self, node: Node<'_>) {
        let inner = match node.kind() {
            "parenthesized_expression" => node.named_child(0).into_iter().collect(),
            "binary_expression" if matches!(self.operator_of(node), "&&" | "||") => {
                ["left", "right"].into_iter().filter_map(|side| node.child_by_field_name(side)).collect()
            }
            "comment" => return,
            _ => Vec::new(),
        };
        if inner.is_empty() {
            let negated = format!("!({})", self.text(node));
            let unbiased = !self.tells(node);
            self.push(Change { unbiased, ..Change::of(node, Operator::Negate, negated) });
        }
        inner.into_iter().for_each(|atom| self.atoms(atom));
    }

    fn operator_of(&self, node: Node<'_>) -> &str {
        node.child_by_field_name("operator").map_or("", |operator| self.text(operator))
    }

    fn bound(&mut self, node: Node<'_>) {
        let moved = match self.operator_of(node) {
            "<" => "<=",
            "<=" => "<",
            ">" => ">=",
            ">=" => ">",
            _ => return,
        };
        let operator = node.child_by_field_name("operator").expect("it has been read");
        self.push(Change { at: node, ..Change::of(operator, Operator::Bound, moved) });
    }

    fn bit(&mut self, node: Node<'_>) {
        if self.operator_of(node) != "|" {
            return;
        }
        let sides = ["left", "right"].map(|side| node.child_by_field_name(side));
        let [Some(left), Some(right)] = sides else { return };
        let (left_text, right_text) = (self.text(left).to_owned(), self.text(right).to_owned());
        let mut without = |dropped: Node<'_>, kept: String| {
            let target = Some(self.words(dropped));
            self.push(Change { target, ..Change::of(node, Operator::Bit, kept) });
        };
        without(right, left_text);
        // In a | b | c, which is (a | b) | c, the left side of the outer one is two operands.
        if left.kind() != "binary_expression" {
            without(left, right_text);
        }
    }

    fn returned(&mut self, node: Node<'_>) {
        let value = node.named_child(0);
        let is_errno = value.is_some_and(|value| is_errno(self.text(value)));
        let Some(value) = value else { return };
        self.push(Change { at: node, unbiased: is_errno, ..Change::of(value, Operator::Succeed, "0") });
        self.push(Change { at: node, unbiased: false, ..Change::of(value, Operator::Efault, "-EFAULT") });
        if is_errno {
            let other = other_errno(self.text(value));
            self.push(Change { at: node, ..Change::of(value, Operator::OtherErrno, other) });
        } else if matches!(value.kind(), "binary_expression" | "unary_expression") && self.is_truth(value) {
            self.atoms(value);
        }
    }

    /// Whether an expression is true or false.
    fn is_truth(&self, node: Node<'_>) -> bool {
        matches!(self.operator_of(node), "&&" | "||" | "!" | "==" | "!=" | "<" | "<=" | ">" | ">=")
    }

    /// `r = -EINVAL`.
    fn errno(&mut self, node: Node<'_>, left: &str, right: &str) {
        let sides = [left, right].map(|side| node.child_by_field_name(side));
        let [Some(variable), Some(value)] = sides else { return };
        if is_errno(self.text(value)) {
            let target = Some(self.words(variable));
            let other = other_errno(self.text(value));
            self.push(Change { at: node, target: target.clone(), ..Change::of(value, Operator::Succeed, "0") });
            self.push(Change { at: node, target, ..Change::of(value, Operator::OtherErrno, other) });
        }
    }

    fn statement(&mut self, node: Node<'_>) {
        let Some(expression) = node.named_child(0) else { return };
        let named = match expression.kind() {
            "call_expression" => expression.child_by_field_name("function"),
            "assignment_expression" => expression.child_by_field_name("left"),
            "update_expression" => expression.child_by_field_name("argument"),
            _ => None,
        };
        let Some(named) = named else { return };
        let target = self.words(named);
        let is_call = expression.kind() == "call_expression";
        let is_barrier = is_call && BARRIERS.iter().any(|prefix| target.starts_with(prefix));
        let operator = if is_barrier { Operator::Barrier } else { Operator::Drop };
        let unbiased = !(is_barrier || is_call && self.is_telling(expression));
        self.push(Change { target: Some(target), unbiased, ..Change::of(node, operator, ";") });
    }

    fn swapped(&mut self, node: Node<'_>) {
        let arguments: Vec<_> =
            node.named_children(&mut node.walk()).filter(|child| child.kind() != "comment").collect();
        for pair in arguments.windows(2) {
            let [left, right] = [pair[0], pair[1]].map(|argument| self.text(argument).to_owned());
            let same_type = self.function.type_of(&left).is_some_and(|of| self.function.type_of(&right) == Some(of));
            if same_type && left != right {
                let between = &self.function.source.text[pair[0].end_byte()..pair[1].start_byte()];
                let replacement = format!("{right}{between}{left}");
                let target = Some(format!("{left}, {right}"));
                let replaced = pair[0].start_byte()..pair[1].end_byte();
                self.push(Change { target, replaced, ..Change::of(node, Operator::Swap, replacement) });
            }
        }
    }

    fn off_by_one(&mut self, node: Node<'_>) {
        let text = self.words(node);
        let name = text.rsplit(['.', '>']).next().unwrap_or("");
        if !name.split('_').any(|part| COUNTS.contains(&part)) || !self.is_read_as_a_number(node) {
            return;
        }
        for (operator, sign) in [(Operator::PlusOne, '+'), (Operator::MinusOne, '-')] {
            let target = Some(text.clone());
            self.push(Change { target, ..Change::of(node, operator, format!("({text} {sign} 1)")) });
        }
    }

    /// Whether the value of this node is read where a number can stand, and not a pointer's.
    fn is_read_as_a_number(&self, node: Node<'_>) -> bool {
        let Some(parent) = node.parent() else { return false };
        let is_pointer = self.function.type_of(self.text(node)).is_some_and(|of| of.ends_with('*'));
        let is_written = parent.child_by_field_name("left") == Some(node) && parent.kind() == "assignment_expression";
        let reads = match parent.kind() {
            "argument_list" | "return_statement" => true,
            "assignment_expression" => !is_written,
            "init_declarator" => parent.child_by_field_name("value") == Some(node),
            "binary_expression" => {
                matches!(self.operator_of(parent), "+" | "-" | "<" | "<=" | ">" | ">=" | "==" | "!=" | "<<" | ">>")
            }
            _ => false,
        };
        reads && !is_pointer
    }
}

/// Whether this is an error as the kernel returns it: `-EINVAL`.
fn is_errno(text: &str) -> bool {
    text.strip_prefix("-E").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    })
}

/// An error that this one is not.
fn other_errno(errno: &str) -> &'static str {
    if errno == "-EINVAL" { "-EFAULT" } else { "-EINVAL" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    /// The unbiased points of a function with this body: name behind the function, and the body as it becomes.
    fn broken(body: &str) -> Vec<(String, String)> {
        of(body, true)
    }

    fn of(body: &str, unbiased: bool) -> Vec<(String, String)> {
        let head = "int f(gfn_t start, gfn_t end, struct slot *slot)\n";
        let source = Source::parse("a.c", format!("{head}{body}"));
        let function = source.functions().next().unwrap();
        let points = points(&function);
        let points = points.into_iter().filter(|point| point.unbiased == unbiased);
        let name = |point: &Point| point.name().strip_prefix("a.c:f:").unwrap().to_owned();
        points.map(|point| (name(&point), point.applied_to(&source.text)[head.len()..].to_owned())).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, body)| ((*name).to_owned(), (*body).to_owned())).collect()
    }

    #[test]
    fn conditions_are_negated_atom_by_atom() {
        let expected = [
            ("negate:1", "{ if (!(a) && !b) c(); }"),
            ("negate:2", "{ if (a && !(!b)) c(); }"),
            ("drop:c:1", "{ if (a && !b) ; }"),
        ];
        assert_eq!(broken("{ if (a && !b) c(); }"), pairs(&expected));
        assert_eq!(broken("{ return a == b; }"), pairs(&[("negate:1", "{ return !(a == b); }")]));
        assert_eq!(broken("{ return a + b; }"), []);
    }

    #[test]
    fn whole_conditions_returns_and_functions_are_broken_by_name() {
        let expected = [
            ("empty:1", "{ int r; return 0; }"),
            ("never:1", "{ int r; if (0) return g(); }"),
            ("always:1", "{ int r; if (1) return g(); }"),
            ("succeed:1", "{ int r; if (a) return 0; }"),
            ("efault:1", "{ int r; if (a) return -EFAULT; }"),
        ];
        assert_eq!(of("{ int r; if (a) return g(); }", false), pairs(&expected));
    }

    #[test]
    fn bounds_move() {
        let expected = [("bound:1", "{ while (a <= b) ; }"), ("negate:1", "{ while (!(a < b)) ; }")];
        let mut found = broken("{ while (a < b) ; }");
        found.sort();
        assert_eq!(found, pairs(&expected));
    }

    #[test]
    fn errors_become_success_or_another_error() {
        let expected = [("succeed:1", "{ return 0; }"), ("other-errno:1", "{ return -EFAULT; }")];
        assert_eq!(broken("{ return -EINVAL; }"), pairs(&expected));
        let expected = [("drop:r:1", "{ ; }"), ("succeed:r:1", "{ r = 0; }"), ("other-errno:r:1", "{ r = -EINVAL; }")];
        assert_eq!(broken("{ r = -EEXIST; }"), pairs(&expected));
    }

    #[test]
    fn every_operand_of_an_or_is_left_out_once() {
        let expected =
            [("bit:C:1", "{ return A | B; }"), ("bit:B:1", "{ return A | C; }"), ("bit:A:1", "{ return B | C; }")];
        assert_eq!(broken("{ return A | B | C; }"), pairs(&expected));
    }

    #[test]
    fn arguments_of_one_type_change_places() {
        let body = "{ return g(slot, start, end); }";
        let found = broken(body).into_iter().find(|(name, _)| name.starts_with("swap")).unwrap();
        assert_eq!(found, ("swap:start, end:1".into(), "{ return g(slot, end, start); }".into()));
    }

    #[test]
    fn counts_are_one_off_where_they_are_read_as_numbers() {
        let expected = [
            ("drop:r.start:1", "{ ; }"),
            ("plus-one:end:1", "{ r.start = (end + 1) - 1; }"),
            ("minus-one:end:1", "{ r.start = (end - 1) - 1; }"),
        ];
        assert_eq!(broken("{ r.start = end - 1; }"), pairs(&expected));
        assert_eq!(broken("{ return &slot->npages; }"), []);
        let found = broken("{ return slot->npages; }");
        assert_eq!(found[0], ("plus-one:slot->npages:1".into(), "{ return (slot->npages + 1); }".into()));
    }

    #[test]
    fn what_only_tells_is_left_out_and_so_is_what_needs_a_warning() {
        assert_eq!(broken("{ trace_kvm_x(start); WARN_ON_ONCE(a < b); }"), []);
        assert_eq!(broken("{ if (WARN_ON_ONCE(a)) return -EIO; }"), []);
        let names: Vec<_> =
            broken("{ if (WARN_ON_ONCE(a)) b(); else c(); }").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["drop:c:1"]);
    }

    #[test]
    fn barriers_are_no_part_of_samples() {
        assert_eq!(broken("{ smp_wmb(); }"), []);
        assert!(of("{ smp_wmb(); }", false).contains(&("barrier:smp_wmb:1".into(), "{ ; }".into())));
    }
}
