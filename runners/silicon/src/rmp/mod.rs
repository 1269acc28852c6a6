//! The reverse map table of AMD's SNP: who owns each page of memory (APM volume 2, 15.36).
//!
//! Processors and the secure processor use it through the same functions; nobody else may write it once SNP is on.

mod access;
mod code;
mod entry;
mod guest;
mod permissions;
mod table;
mod update;

pub use access::{PAGE_NOT_VALIDATED, PrivateAccess, Refusal, check_private, error_code, may_write_shared};
pub use code::Code;
pub use entry::{Entry, MAX_ASID, Owned, PageSize, PageState};
pub use guest::{Adjustment, Caller, Operand, Pvalidated, Queried, pvalidate, rmpadjust, rmpquery};
pub use permissions::Permissions;
pub use table::Rmp;
pub use update::{RmpState, psmash, rmpread, rmpupdate};
