//! What runners say of a row: its verdict, where it was obtained, and what the kernel logged meanwhile.

mod case_report;
pub mod kernel_log;
mod verdict;

pub use case_report::CaseReport;
pub use verdict::{Place, Verdict};
