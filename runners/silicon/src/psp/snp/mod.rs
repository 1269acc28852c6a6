//! SEV-SNP (56860).

mod context;
mod cpuid;
mod debug;
mod digest;
mod id_block;
mod launch;
mod page;
mod platform;
mod report;
mod request;
mod secrets;
mod tcb;
mod vlek;

pub(super) use platform::{Snp, SnpSettings};
pub use tcb::TcbLayout;
