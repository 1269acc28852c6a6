//! The lines that a patch touches, so that just what is new can be judged.

use std::collections::BTreeSet;

use unidiff::PatchSet;

use crate::point::Point;

/// The lines that a patch adds or changes, of the source with the patch in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch {
    lines: BTreeSet<(String, usize)>,
}

impl Patch {
    /// Reads a unified diff as `git diff` and `git format-patch` write it.
    ///
    /// # Errors
    /// In one line, if it is none, or adds nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut set = PatchSet::new();
        set.parse(text).map_err(|error| format!("is no unified diff: {error}"))?;
        let mut lines = BTreeSet::new();
        for file in set.files() {
            for line in file.hunks().iter().flat_map(unidiff::Hunk::target_lines).filter(|line| line.is_added()) {
                lines.extend(line.target_line_no.map(|number| (file.path(), number)));
            }
        }
        if lines.is_empty() {
            return Err("adds no line to any file".to_owned());
        }
        Ok(Self { lines })
    }

    /// The files that it adds lines to.
    #[must_use]
    pub fn files(&self) -> BTreeSet<&str> {
        self.lines.iter().map(|(file, _)| file.as_str()).collect()
    }

    /// Whether a point is on one of its lines.
    #[must_use]
    pub fn touches(&self, point: &Point) -> bool {
        point.lines.clone().any(|line| self.lines.contains(&(point.file.clone(), line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "\
Subject: a mail's text may stand before it

--- a/virt/kvm/x.c
+++ b/virt/kvm/x.c
@@ -1,3 +1,4 @@
 int f(void)
 {
-\treturn 1;
+\ta();
+\treturn 2;
 }
";

    #[test]
    fn added_lines_are_counted_in_the_new_file() {
        let patch = Patch::parse(PATCH).unwrap();
        assert_eq!(patch.files(), BTreeSet::from(["virt/kvm/x.c"]));
        assert_eq!(patch.lines, BTreeSet::from([("virt/kvm/x.c".to_owned(), 3), ("virt/kvm/x.c".to_owned(), 4)]));
        assert!(Patch::parse("hello").unwrap_err().contains("adds no line"));
    }
}
