//! A small x86-64 machine in software. It boots an unmodified Linux as a *host*, with processors that have SVM, so
//! that the kernel's own KVM runs guests on it.
//!
//! ```text
//! Machine::run ── scheduler ── Cpu::run (privet-cpu)          one turn after the other, on one thread
//!       │                         │
//!       │                      wiring ── ports, mmio, msrs, cpuid
//!       │                         │
//!      boot, snapshot           board ── devices, log, clock       memory ── ram
//! ```
//!
//! A [`Description`] says what a machine is made of; [`Machine::run`] runs it until something happens that is the
//! caller's business ([`Outcome`]). The guest's first serial port is the console, the second is the port over which
//! it talks to the caller.
//!
//! Time is virtual: it passes with executed instructions, and jumps when all processors wait. Nothing depends on how
//! long anything really takes, so the same description gives the same run, to the last instruction, and a machine can
//! be put back to where it was saved ([`Rewindable`]).
//!
//! What a guest asks for and the machine has not is told by name ([`Machine::take_findings`]).

mod board;
mod boot;
mod clock;
mod contention;
mod cpuid;
mod description;
mod devices;
mod encryption;
mod error;
mod feature;
mod log;
mod machine;
mod memory;
mod mmio;
mod msrs;
mod page_set;
mod ports;
mod profile;
mod ram;
mod record;
mod scheduler;
mod seam;
mod secure_devices;
mod snapshot;
mod wiring;

pub use description::Description;
pub use error::SimError;
pub use feature::{Feature, Without};
pub use log::{Finding, Unknown};
pub use machine::{Limits, Machine, Outcome};
pub use privet_cpu::{Extensions, Vendor};
pub use privet_silicon::tdx::Fault as TdxFault;
pub use privet_silicon::{Rule, Rules};
pub use profile::Profile;
pub use record::{Block, Record};
pub use scheduler::Turns;
pub use snapshot::Rewindable;
