//! Breaks the source of a kernel in small ways, one at a time: where, how, and what became of it.
//!
//! ```text
//! Source ── points ──┬── sample, Patch, Part: which of them are tried
//!                    ├── NamedEdit: one of them with a story
//!                    ├── Recipe: the module with one of them in it, or the image, which is linked in Rooms
//!                    └── Trial ── Ledger: what became of each
//!                                 Killers: which rows are tried first
//!                                 Judgements: what people say of survivors
//! ```
//!
//! Nothing here runs a kernel: the command line does.

mod compilation;
mod judged;
mod killers;
mod ledger;
mod mutant;
mod named;
mod operator;
mod page;
mod patch;
mod point;
mod points;
mod recipe;
mod rooms;
mod sample;
mod scope;
mod source;

pub use compilation::{Compiled, RecipeError};
pub use judged::{Judged, Judgement, Judgements};
pub use killers::Killers;
pub use ledger::Ledger;
pub use mutant::{Fate, Trial, fingerprint};
pub use named::NamedEdit;
pub use operator::Operator;
pub use page::{PageLine, page};
pub use patch::Patch;
pub use point::Point;
pub use points::points;
pub use recipe::{Linked, Recipe, normal};
pub use rooms::Rooms;
pub use sample::sample;
pub use scope::{Part, matches};
pub use source::{Function, Source};
