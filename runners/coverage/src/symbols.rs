//! The functions of a running kernel, from its own list of symbols (kernel/kallsyms.c).

use std::fmt;

/// A function of the kernel or of a module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// The module, `None` for the kernel itself.
    pub module: Option<String>,
    /// Its symbol.
    pub name: String,
    /// The linear address of its first instruction.
    pub start: u64,
    /// The linear address behind it: that of the next function. What pads the two belongs to it.
    pub end: u64,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            Some(module) => write!(f, "{} [{module}]", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// All functions, in the order of their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbols {
    functions: Vec<Function>,
}

/// A function is at most so long: what is farther behind the last one of a kernel or module is no part of it.
const LONGEST: u64 = 1 << 20;

impl Symbols {
    /// The functions in the text of /proc/kallsyms: lines of address, type, name and perhaps `[module]`. Other symbols,
    /// and lines that are none, do not count; of several names of one address the first does.
    #[must_use]
    pub fn parse(text: &str) -> Symbols {
        let mut functions: Vec<Function> = text.lines().filter_map(function).collect();
        functions.sort_by_key(|function| function.start);
        functions.dedup_by_key(|function| function.start);
        let ends: Vec<u64> = functions.iter().skip(1).map(|next| next.start).collect();
        for (function, end) in functions.iter_mut().zip(ends) {
            function.end = function.end.min(end);
        }
        Symbols { functions }
    }

    /// The function to which the instruction at this linear address belongs.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|function| function.start <= address);
        self.functions[..after].last().filter(|function| address < function.end)
    }

    /// All functions, in the order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter()
    }
}

/// The function in a line such as `ffffffffc0010000 t kvm_vm_ioctl [kvm]`.
fn function(line: &str) -> Option<Function> {
    let mut words = line.split_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok()?;
    let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
    let name = words.next()?.to_owned();
    let module = words.next().map(|module| module.trim_matches(['[', ']']).to_owned());
    (is_code && start != 0).then(|| Function { module, name, start, end: start.saturating_add(LONGEST) })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two functions of the kernel and two of a module, 0x100 bytes each.
    pub(crate) fn symbols() -> Symbols {
        Symbols::parse(
            "ffffffff81000000 T start_kernel\nffffffff81000100 t do_it\nffffffff81000200 T _etext\n\
             ffffffff82000000 D some_data\nffffffffc0000100 t kvm_exit\t[kvm]\nffffffffc0000000 t kvm_init\t[kvm]\n\
             ffffffffc0000200 t kvm_end\t[kvm]\n",
        )
    }

    #[test]
    fn functions_are_found_by_address() {
        let symbols = symbols();
        let name = |address| symbols.at(address).map(ToString::to_string);
        assert_eq!(name(0xffff_ffff_8100_0000), Some("start_kernel".into()));
        assert_eq!(name(0xffff_ffff_8100_01ff), Some("do_it".into()));
        assert_eq!(name(0xffff_ffff_c000_00ff), Some("kvm_init [kvm]".into()));
        assert_eq!(name(0xffff_ffff_8100_0000 - 1), None);
        assert_eq!(name(0xffff_ffff_8200_0000), None, "data is no function, and none is so long");
    }

    #[test]
    fn what_is_no_list_of_symbols_has_no_functions() {
        for text in ["", "privet", "0000000000000000 T hidden", "xyz T a", "ffffffff81000000 T"] {
            assert_eq!(Symbols::parse(text).functions().count(), 0, "{text}");
        }
    }
}
