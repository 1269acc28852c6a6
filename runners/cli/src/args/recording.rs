//! What is asked about what a machine of ours executes.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::RIG;

/// Options of commands whose machine can be the sim.
#[derive(Debug, Default, Args)]
pub struct Recording {
    /// Tell on standard error where the sim's instructions went while rows or the program ran: the N functions of the
    /// kernel, programs and guests that executed the most [default N: 30]
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "30", require_equals = true, help_heading = RIG)]
    pub instruction_profile: Option<NonZeroUsize>,
    /// Write to FILE what each row executed of the sim's kernel: lines of source as an lcov trace file, where the
    /// kernel has debug info (its vmlinux beside the image, and its modules), or ranges of functions
    ///
    /// Ranges are lines of MODULE FUNCTION START-END:TIMES ..., in bytes from the function's first on, below a line
    /// `row ID`; the module of the kernel itself is `-`.
    #[arg(long, value_name = "FILE", help_heading = RIG)]
    pub coverage: Option<PathBuf>,
}

impl Recording {
    /// Whether anything is asked.
    pub fn is_asked(&self) -> bool {
        self.instruction_profile.is_some() || self.coverage.is_some()
    }
}
