//! What a machine of ours has executed, told at the end as the command line asks for it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;

use privet_coverage::{Coverage, Lines, Profile, Symbols, write_lcov, write_ranges};
use privet_kernel::Kernel;
use privet_rig::Record;

use crate::args::Recording;
use crate::exit::Early;
use crate::output::Output;

/// What was executed so far.
#[derive(Debug)]
pub struct Recorded {
    /// How many lines the profile has, if one is asked for.
    profile: Option<NonZeroUsize>,
    /// Where the coverage goes, likewise.
    output: Option<Output>,
    /// Once the kernel's functions are known.
    coverage: Option<Coverage>,
}

impl Recorded {
    /// Nothing yet; `None` if nothing is asked for.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn asked(asked: &Recording) -> Result<Option<Self>, Early> {
        let output = asked.coverage.as_deref().map(|path| Output::create(path, "--coverage")).transpose()?;
        let recorded = Self { profile: asked.instruction_profile, output, coverage: None };
        Ok(asked.is_asked().then_some(recorded))
    }

    /// The kernel's functions, in the format of /proc/kallsyms. Rows of one run have one kernel.
    pub fn symbols(&mut self, text: &str) {
        self.coverage.get_or_insert_with(|| Coverage::new(Symbols::parse(text)));
    }

    /// A row, or a program, has executed this.
    pub fn add(&mut self, name: &str, record: &Record) {
        if let Some(coverage) = &mut self.coverage {
            coverage.add(name, record);
        }
    }

    /// Tells what is asked for; nothing if nothing was executed.
    ///
    /// # Errors
    /// If the kernel's debug info cannot be read, or the file not be written.
    pub fn tell(self, kernel: &Kernel) -> Result<(), Early> {
        let Some(coverage) = self.coverage else { return Ok(()) };
        if let Some(most) = self.profile {
            eprint!("{}", Profile::new(&coverage.sum(), coverage.symbols()).table(most.get()));
        }
        let Some(mut output) = self.output else { return Ok(()) };
        let lines = lines(kernel, coverage.symbols())?;
        let mut out = BufWriter::new(&mut output);
        let written =
            if lines.is_empty() { write_ranges(&coverage, &mut out) } else { write_lcov(&coverage, &lines, &mut out) };
        let flushed = written.and_then(|()| out.flush());
        drop(out);
        let finished = flushed.and_then(|()| output.finish());
        finished.map_err(|error| Early::usage(format!("cannot write the coverage: {error}")))
    }
}

/// The debug info of this kernel, as far as it has any.
fn lines(kernel: &Kernel, symbols: &Symbols) -> Result<Lines, Early> {
    let failed = |error: &dyn std::fmt::Display| Early::nothing_ran(error.to_string());
    let mut lines = Lines::new();
    if let Some(vmlinux) = kernel.vmlinux() {
        let elf = fs::read(&vmlinux).map_err(|error| failed(&format!("cannot read {}: {error}", vmlinux.display())))?;
        lines.add(None, &elf, symbols).map_err(|error| failed(&error))?;
    }
    let modules: BTreeSet<&str> = symbols.functions().filter_map(|function| function.module.as_deref()).collect();
    for module in kernel.load_order_of_parts(&Vec::from_iter(modules)).map_err(|error| failed(&error))? {
        let elf = module.read().map_err(|error| failed(&error))?;
        lines.add(Some(&module.name), &elf, symbols).map_err(|error| failed(&error))?;
    }
    Ok(lines)
}
