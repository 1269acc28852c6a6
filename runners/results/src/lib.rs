//! What is done with verdicts once rows have run.
//!
//! ```text
//! run_file (one run) ──┐
//! fleet_plan ──────────┴─ collect ── document (report.json) ──┬── difference, of two of them
//!                                                             ├── skips: what would enable most rows
//!                                                             ├── kcidb
//!                                                             └── page (report.html), with timelines
//! ```
//!
//! The README beside this crate documents both formats.

pub mod collect;
pub mod difference;
pub mod document;
pub mod error;
pub mod fleet_plan;
pub mod kcidb;
pub mod page;
pub mod run_file;
pub mod seat;
pub mod skips;
#[cfg(test)]
mod test_results;
pub mod timeline;
pub mod truth_table;
