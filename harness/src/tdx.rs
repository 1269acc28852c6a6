//! What KVM offers for TDs: the commands of `KVM_MEMORY_ENCRYPT_OP`, any of them in any order, and what becomes of them.
//! Launches that cannot go wrong are in [`launch::tdx`](crate::launch::tdx).
//!
//! Source: `arch/x86/include/uapi/asm/kvm.h`, `arch/x86/kvm/vmx/tdx.c`, `Documentation/virt/kvm/x86/intel-tdx.rst`.

mod capabilities;
mod command;
mod commands;
mod hw_error;

pub use capabilities::Capabilities;
pub use command::{Command, Refused};
pub use commands::{Commands, InitVm, Region};
pub use hw_error::HwError;

/// Attribute of a TD: an access to a page that it has not accepted leaves it, and is no #VE. KVM allows no other.
pub const SEPT_VE_DISABLE: u64 = 1 << 28;
/// Flag of `INIT_MEM_REGION`: the content of the pages is measured.
pub const MEASURE_MEMORY_REGION: u32 = 1 << 0;
