//! What hypervisors ask of a processor, written like its specification.
//!
//! Plain state machines over a [`PhysicalMemory`] and a [`privet_cpu::CpuState`]: no threads, no files, no
//! clock, no board, no Linux. A board owns memory, CPUs and one of these per CPU, and forwards what the CPU's
//! [`privet_cpu::Bus`] is asked.

mod board;
pub mod encryption;
mod event;
mod interface;
mod memory;
pub mod psp;
pub mod rmp;
mod rule;
pub mod svm;
pub mod tdx;
#[cfg(test)]
mod test_board;
#[cfg(test)]
mod test_memory;
mod virtual_apic;
mod virtualization;
pub mod vmx;

pub use board::{Board, Flush};
pub use encryption::KeyedMemory;
pub use interface::{Pending, Taken, Translation};
pub use memory::{PhysicalMemory, read_array, read_u16, read_u32, read_u64, write_u32, write_u64};
pub use rule::{Rule, Rules};
pub use virtualization::Virtualization;
