//! What runners say of a row: its verdict, where it was obtained, what the kernel logged meanwhile, and how it ended at last.

mod case_report;
mod ending;
pub mod kernel_log;
mod verdict;
mod words;

pub use case_report::CaseReport;
pub use ending::{Attempt, Ending, Excuse};
pub use verdict::{Place, Verdict};
pub use words::{one_line, place, place_of};
