//! A real kernel without hardware: Linux under an emulator with nested virtualization, with the worker as
//! its first process.
//!
//! [`run`] boots a kernel and runs rows in it; [`init`] is what the same executable does when it finds itself
//! inside. Where kernels come from is `privet-kernel`'s.

mod blame;
mod bochs;
mod boot;
mod console;
mod error;
mod init;
mod initramfs;
mod iso;
mod libraries;
mod machine;
mod plan;
mod port;
mod qemu;
mod run;
mod share;

pub use error::RigError;
pub use init::{init, is_init};
pub use plan::{CaseRun, Event, GuestPlan, GuestPort, ModuleLoad, ModuleParam, Patience, Plan, Program, Progress};
pub use run::{check_module_params, run};
