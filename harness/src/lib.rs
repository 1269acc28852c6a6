//! What a privet row is told with: hosts, VMs, memory, vCPUs, guests and exits.
//!
//! The harness has one code path: ioctls on the descriptors of `/dev/kvm`. Where those descriptors lead
//! (this machine's kernel, a real kernel inside a rig, a model) is the runner's business.

pub mod alarm;
pub mod another_process;
mod attributes;
pub mod case;
pub mod coalesced;
pub mod conversion;
mod cpu_flags;
pub mod cpuid_page;
pub mod dirty_log;
pub mod dirty_ring;
mod errno;
pub mod exit;
mod fault_catch;
pub mod found;
pub mod ghcb;
pub mod guest;
pub mod guest_memfd;
pub mod guest_vcpu;
pub mod host;
mod host_action;
mod ioeventfd;
pub mod launch;
pub mod leaks;
pub mod long_mode;
pub mod mapping;
pub mod measure;
pub mod memslot;
mod missing;
pub mod module;
pub mod need;
pub mod outcome;
mod owner_key;
pub mod page_tables;
pub mod payload;
pub mod platform;
pub mod probe;
mod raw;
mod run_page;
pub mod sev;
pub mod stats;
pub mod tdx;
pub mod test_range;
mod trace;
pub mod uapi;
pub mod units;
pub mod userfault;
pub mod vcpu;
pub mod vendor;
pub mod vm;
mod vm_core;
pub mod vm_type;
mod watchdog;
