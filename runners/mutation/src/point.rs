//! A place in the source and one way to break it.

use std::ops::Range;

use crate::operator::Operator;

/// A mutation point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// The file, below the top of the source.
    pub file: String,
    /// The function.
    pub function: String,
    /// How it is broken.
    pub operator: Operator,
    /// What it is about, for operators that name it: what is called, assigned, or counted.
    pub target: Option<String>,
    /// Which one it is of those in the function with the same operator and target, from 1.
    pub ordinal: usize,
    /// The lines that it covers, from 1.
    pub lines: Range<usize>,
    /// The lines of the function's body.
    pub function_lines: Range<usize>,
    /// Whether it is one of those from which samples are drawn, or for edits by name only.
    pub unbiased: bool,
    /// The bytes of the file that are replaced.
    pub replaced: Range<usize>,
    /// What replaces them.
    pub replacement: String,
}

impl Point {
    /// Its name, which does not depend on where in the file the function stands:
    /// `virt/kvm/guest_memfd.c:kvm_gmem_punch_hole:drop:kvm_gmem_invalidate_end:1`.
    #[must_use]
    pub fn name(&self) -> String {
        let Self { file, function, operator, ordinal, .. } = self;
        match &self.target {
            Some(target) => format!("{file}:{function}:{operator}:{target}:{ordinal}"),
            None => format!("{file}:{function}:{operator}:{ordinal}"),
        }
    }

    /// The file with this place broken. All that is behind it stays on its line, so that nothing but the change can make a
    /// difference to the compiler.
    ///
    /// # Panics
    /// If the point is of another text.
    #[must_use]
    pub fn applied_to(&self, text: &str) -> String {
        let (before, after) = (&text[..self.replaced.start], &text[self.replaced.end..]);
        let newlines = |text: &str| text.matches('\n').count();
        let gone = newlines(&text[self.replaced.clone()]).saturating_sub(newlines(&self.replacement));
        format!("{before}{}{}{after}", self.replacement, "\n".repeat(gone))
    }
}
