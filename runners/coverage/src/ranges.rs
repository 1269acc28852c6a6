//! Coverage as ranges of functions, for kernels without debug info.

use std::io::{self, Write};

use crate::coverage::Coverage;

/// Writes, for each row, a line `row ID` and then a line for each function that it executed something of:
///
/// ```text
/// row plain.slots.id_limit
/// kvm kvm_vm_ioctl 0x0-0x34:12 0x40-0x5c:3
/// - __x64_sys_ioctl 0x0-0x80:12
/// ```
///
/// That is the module (`-` for the kernel itself), the symbol, and ranges of bytes from its first on, the second number
/// behind the last byte, with how many times they were executed.
///
/// # Errors
/// Of `write(2)`.
pub fn write_ranges(coverage: &Coverage, out: &mut impl Write) -> io::Result<()> {
    for row in coverage.rows() {
        writeln!(out, "row {row}")?;
        for executed in coverage.of(row) {
            let function = executed.function;
            write!(out, "{} {}", function.module.as_deref().unwrap_or("-"), function.name)?;
            for range in executed.ranges {
                let (start, end) = (range.start - function.start, range.end - function.start);
                write!(out, " {start:#x}-{end:#x}:{}", range.times)?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use privet_sim::{Block, Record};

    use super::*;
    use crate::symbols::tests::symbols;

    #[test]
    fn rows_functions_and_ranges_are_told() {
        let block = |start, bytes, times| Block { start, bytes, times, instructions: 1 };
        let kernel = vec![block(0xffff_ffff_8100_0110, 4, 2), block(0xffff_ffff_c000_0120, 0x20, 1)];
        let mut coverage = Coverage::new(symbols());
        coverage.add("plain.a", &Record { kernel, ..Record::default() });
        let mut text = Vec::new();
        write_ranges(&coverage, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "row plain.a\n- do_it 0x10-0x14:2\nkvm kvm_exit 0x20-0x40:1\n");
    }
}
