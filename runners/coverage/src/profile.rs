//! Where the instructions went.

use std::collections::BTreeMap;

use privet_sim::Record;

use crate::symbols::Symbols;

/// How many instructions who executed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Who, and how many; the most first.
    pub lines: Vec<(String, u64)>,
    /// All of them.
    pub total: u64,
}

impl Profile {
    /// The profile of a record: each function of the kernel, each program, and guests. What the kernel has no function
    /// for, such as its early start, is one line.
    #[must_use]
    pub fn new(record: &Record, symbols: &Symbols) -> Profile {
        let mut who: BTreeMap<String, u64> = BTreeMap::new();
        for block in &record.kernel {
            let name = symbols.at(block.start).map_or_else(|| "(kernel, no symbol)".to_owned(), ToString::to_string);
            *who.entry(name).or_default() += block.instructions;
        }
        for (program, instructions) in &record.programs {
            *who.entry(format!("(process) {program}")).or_default() += instructions;
        }
        if record.guests > 0 {
            who.insert("(guests)".to_owned(), record.guests);
        }
        let mut lines: Vec<_> = who.into_iter().collect();
        lines.sort_by_key(|(_, instructions)| std::cmp::Reverse(*instructions));
        Profile { total: record.instructions(), lines }
    }

    /// The first `most` lines as text, one below the other: percent, instructions, who; then what is left.
    #[must_use]
    pub fn table(&self, most: usize) -> String {
        let line = |instructions: u64, who: &str| {
            let percent = instructions as f64 * 100.0 / self.total.max(1) as f64;
            format!("{percent:6.2} %  {instructions:>14}  {who}\n")
        };
        let shown: String = self.lines.iter().take(most).map(|(who, instructions)| line(*instructions, who)).collect();
        let rest: u64 = self.lines.iter().skip(most).map(|(_, instructions)| instructions).sum();
        let others = self.lines.len().saturating_sub(most);
        let rest = if others > 0 { line(rest, &format!("({others} more)")) } else { String::new() };
        format!("instructions by function\n{shown}{rest}{}", line(self.total, "(all)"))
    }
}

#[cfg(test)]
mod tests {
    use privet_sim::Block;

    use super::*;
    use crate::symbols::tests::symbols;

    #[test]
    fn the_most_comes_first_and_nothing_is_lost() {
        let block = |start, instructions| Block { start, bytes: 4, times: 1, instructions };
        let record = Record {
            kernel: vec![
                block(0x1000, 5),
                block(0xffff_ffff_8100_0110, 20),
                block(0xffff_ffff_8100_0120, 30),
                block(0xffff_ffff_c000_0000, 1),
            ],
            programs: BTreeMap::from([("/bin/sh".to_owned(), 40)]),
            guests: 4,
        };
        let profile = Profile::new(&record, &symbols());
        let lines: Vec<_> = profile.lines.iter().map(|(who, instructions)| (who.as_str(), *instructions)).collect();
        let expected = [
            ("do_it", 50),
            ("(process) /bin/sh", 40),
            ("(kernel, no symbol)", 5),
            ("(guests)", 4),
            ("kvm_init [kvm]", 1),
        ];
        assert_eq!(lines, expected);
        assert_eq!(
            profile.table(2),
            "instructions by function\n 50.00 %              50  do_it\n 40.00 %              40  (process) /bin/sh\n \
             10.00 %              10  (3 more)\n100.00 %             100  (all)\n"
        );
    }
}
