//! How a guest's own memory (payload, page tables, mailboxes) comes to be: planned as pieces of a kind, then loaded;
//! and how encrypted VMs are launched.

mod copier;
mod loader;
mod plan;
mod reset_vector;
pub mod sev;
pub mod snp;
pub mod tdx;

pub(crate) use copier::copy_within_the_guest;
pub use loader::OWN_SLOT;
pub(crate) use loader::{Entry, Launch, Launched, OwnMemory};
pub use plan::{CPUID, Kind, OWN_BASE, Part, Piece, Plan, SECRETS, ghcb};
pub(crate) use plan::{MAILBOXES, TABLES};
pub(crate) use reset_vector::RESET_SLOT;
pub use reset_vector::{RESET_PAGE, reset_page};
