//! The table of cases: one row, one behaviour, one story. One file a group.

mod accept;
mod access;
mod asleep;
mod attributes;
mod channel;
mod classify;
mod clocks;
mod convert;
mod counters;
mod exits;
mod expect;
mod ghcb;
mod hypercalls;
mod kernel_edits;
mod launch;
mod launch_sev;
mod launch_tdx;
mod lifecycle;
mod malformed;
mod mmio;
mod paging;
mod populate;
mod prefault;
mod psc;
mod punch;
mod random;
mod row;
mod slots;
mod table;
mod tdcall;
mod tdvmcall;
mod transition;
mod types;

pub use classify::{Behind, CLASSIFIED, Cell, Fate, truth_table};
pub use kernel_edits::KERNEL_EDITS;
pub use row::{Counterpart, KnownBug, Row, Story};
pub use table::{Entry, Ran};
pub use types::Types;

/// The whole table, in the order in which it is listed and run. Needs no host.
pub fn table() -> Vec<Entry> {
    [
        access::rows(),
        classify::rows(),
        convert::rows(),
        hypercalls::rows(),
        launch::rows(),
        launch_sev::rows(),
        launch_tdx::rows(),
        tdcall::rows(),
        tdvmcall::rows(),
        punch::rows(),
        prefault::rows(),
        exits::rows(),
        accept::rows(),
        psc::rows(),
        ghcb::rows(),
        slots::rows(),
        attributes::rows(),
        populate::rows(),
        lifecycle::rows(),
        mmio::rows(),
        transition::rows(),
        channel::rows(),
    ]
    .into_iter()
    .flatten()
    .flat_map(Entry::all_of)
    .collect()
}
