//! A KVM in user space, written from the kernel's documented behaviour (Linux 7.3).
//!
//! It answers what a program does with `/dev/kvm` and the descriptors that come from it, at the level of the C
//! library's calls ([`calls`]), and knows nothing of the programs that it serves. `libprivet_model.so` puts it
//! behind those calls; this crate has no C symbols, so that other programs can link it to list its
//! [`defect`]s.
//!
//! The machine is described by environment variables: see [`options`].
//!
//! From the outside in: `calls` finds what a call concerns; `system`, `vm_ioctls` and `vcpu_ioctls` are tables
//! of ioctls; `memory`, `memslot`, `attributes`, `guest_memfd` and `fault` are guest memory; `run` is KVM_RUN,
//! in which `guest_bus` ties a [`privet_cpu::Cpu`] to its VM.

mod attributes;
pub mod calls;
mod capability;
mod cpuid;
pub mod defect;
mod descriptors;
pub mod directory;
mod dirty_log;
mod dispatch;
mod events;
mod extended_state;
mod fault;
mod guest_bus;
mod guest_memfd;
mod host_memory;
mod hypercall;
mod ioeventfd;
mod lapic;
mod log;
mod memory;
mod memslot;
mod msr;
pub mod options;
pub mod paths;
pub mod personality;
pub mod real;
mod registers;
mod run;
mod run_page;
pub mod signals;
mod stats;
mod system;
mod ticker;
mod time;
mod user;
mod vcpu;
mod vcpu_ioctls;
mod vm;
mod vm_ioctls;
mod vm_type;

pub use defect::Defect;
pub use options::Options;
pub use personality::Personality;
