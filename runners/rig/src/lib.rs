//! A real kernel without hardware: Linux under an emulator with nested virtualization, with the worker as
//! its first process.
//!
//! [`build`] makes the kernel once per user; [`run`] boots it and runs rows in it; [`init`] is what the
//! same executable does when it finds itself inside.

mod apt_sources;
mod blame;
mod bochs;
mod boot;
pub mod build_cache;
pub mod build_tools;
pub mod command;
mod console;
pub mod debian_source;
mod error;
mod init;
mod initramfs;
mod iso;
mod kernel;
mod kernel_build;
mod kernel_config;
pub mod kernel_source;
mod libraries;
mod machine;
mod plan;
mod port;
mod qemu;
mod run;
mod share;

pub use error::RigError;
pub use init::{init, is_init};
pub use kernel::{Kernel, cache_dir};
pub use kernel_build::{BuildRequest, Built, build};
pub use plan::{CaseRun, Event, GuestPlan, GuestPort, ModuleLoad, ModuleParam, Patience, Plan, Program, Progress};
pub use run::{check_module_params, run};
