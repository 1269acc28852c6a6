//! What a machine's record says about the kernel that ran on it: how many instructions went where ([`Profile`]), and
//! which instructions of which function each row executed ([`Coverage`]), written down as ranges of functions
//! ([`write_ranges`]), or as lines of source for those who have debug info ([`write_lcov`]).
//!
//! ```text
//! Record (privet-sim) ──┬── Profile
//! Symbols ──────────────┴── Coverage ──┬── write_ranges
//!                           Lines ─────┴── write_lcov
//! ```
//!
//! A record has addresses only. [`Symbols`] are the running kernel's own (/proc/kallsyms), and so they are where its
//! functions really are, modules included.

mod coverage;
mod executed_lines;
mod lcov;
mod lines;
mod profile;
mod ranges;
mod symbols;

pub use coverage::{Coverage, Executed, Range};
pub use executed_lines::{SourceLine, executed_lines};
pub use lcov::write_lcov;
pub use lines::{Lines, LinesError};
pub use profile::Profile;
pub use ranges::write_ranges;
pub use symbols::{Function, Symbols};
