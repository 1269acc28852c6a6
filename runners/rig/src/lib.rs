//! A real kernel without hardware: Linux under an emulator with nested virtualization, with the worker as
//! its first process.
//!
//! [`run`] boots a kernel and runs rows in it; [`init`] is what the same executable does when it finds itself
//! inside. Where kernels come from is `privet-kernel`'s.

mod blame;
mod bochs;
mod boot;
mod console;
mod copies;
mod error;
mod init;
mod initramfs;
mod input;
mod iso;
mod libraries;
mod long_rows;
mod machine;
mod machine_kind;
mod module_room;
mod modules;
mod plan;
mod port;
mod program;
mod qemu;
mod run;
mod share;
mod sim_job;
mod sim_machine;
mod snapshot;
mod usable_time;

pub use error::RigError;
pub use init::{init, is_init};
pub use machine_kind::MachineKind;
pub use modules::check_module_params;
pub use plan::{
    CaseRun, Event, GuestModules, GuestPlan, GuestPort, GuestProgram, ModuleLoad, ModuleParam, PROGRAMS, Patience,
    Plan, Program, Progress, Request, SimOptions, Stream, Work, profile_of, vendor_of,
};
pub use privet_sim::{Profile, Record, Rule, TdxFault, Vendor as SiliconVendor, Without};
pub use program::{Attached, ProgramEnd, ProgramNews, run_program};
pub use run::run;
pub use sim_machine::sim_machine;
pub use snapshot::{Facts, drop_snapshots, snapshots};
