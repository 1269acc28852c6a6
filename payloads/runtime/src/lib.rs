//! The guest's side of every payload: entry, exceptions, mailbox, memory probes, conversion.
//!
//! A payload is `payload!("name", execute)`: the runtime enters 64-bit Rust on each vCPU, and executes one
//! operation after the other as the host sends them. Nothing here assumes that the host can read registers
//! or private memory.
//!
//! Without `cfg(privet_payload)`, which the build script of `privet-payloads` sets, this is an ordinary
//! library of the host that nobody calls: cargo check, clippy, doc and test see the whole workspace.
#![cfg_attr(not(test), no_std)]

pub mod convert;
pub mod cpu;
mod cpuid_page;
mod descriptor_tables;
pub mod doorbell;
#[cfg(privet_payload)]
mod entry;
pub mod exceptions;
pub mod failure;
mod frame;
pub mod ghcb;
pub mod hypercall;
#[cfg(privet_payload)]
mod mem;
mod mmio_instruction;
pub mod paging;
pub mod port;
pub mod probe;
pub mod serve;
pub mod snp;
pub mod tdx;
pub mod tlb;
mod vc;
pub mod vcpu;
mod ve;

pub use vcpu::Vcpu;

#[doc(hidden)]
pub use privet_protocol as protocol;

/// Makes a binary a payload: its name, and the function that executes an operation on a vCPU.
///
/// ```text
/// privet_runtime::payload!("general", execute);
/// fn execute(vcpu: &'static Vcpu, start: Start, op: Op) -> Reply { ... }
/// ```
#[macro_export]
macro_rules! payload {
    ($name:literal, $execute:path) => {
        #[used]
        #[unsafe(link_section = ".privet")]
        static DESCRIPTOR: [u8; $crate::protocol::DESCRIPTOR_BYTES] = $crate::protocol::Descriptor::encode($name);

        #[unsafe(no_mangle)]
        extern "C" fn privet_main(vcpu: &'static $crate::Vcpu) -> ! {
            $crate::serve::serve(vcpu, $execute)
        }
    };
}
