//! What the secure processor or the TDX module will have measured at the end of a launch, predicted from what is launched: the digests, the
//! state of the vCPUs in them, and the identity block by which an owner demands one.

mod event_log;
mod id_block;
mod sev;
mod snp;
mod tdx;
mod vmsa;

pub use event_log::{Event, EventLog, Method};
pub use id_block::{IdBlock, IdKey};
pub use sev::SevDigest;
pub use snp::SnpDigest;
pub use tdx::Mrtd;
pub use vmsa::{SevFeatures, VcpuState};
