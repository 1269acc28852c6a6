//! What KVM and AMD's secure processor offer for encrypted VMs: the commands of `KVM_MEMORY_ENCRYPT_OP`, any of them in
//! any order, and what becomes of them. Launches that cannot go wrong are in [`launch`](crate::launch).
//!
//! Source: `arch/x86/include/uapi/asm/kvm.h`, `arch/x86/kvm/svm/sev.c`,
//! `Documentation/virt/kvm/x86/amd-memory-encryption.rst`.

pub mod attributes;
mod command;
mod commands;
mod device;
mod firmware;
mod memory;
mod owner;
mod page_type;
mod platform_command;
mod policy;

pub use command::{Command, Refused};
pub use commands::{Commands, Finish, Recipient, Secret, Session, Update};
pub use device::Device;
pub use firmware::Firmware;
pub use memory::Memory;
pub use owner::{Offer, Owner, Packet};
pub use page_type::PageType;
pub use platform_command::Version;
pub use policy::{SevPolicy, SnpPolicy};
