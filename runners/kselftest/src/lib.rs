//! The kernel's own KVM selftests (tools/testing/selftests/kvm), beside which the table is laid.
//!
//! [`build`] makes them once per user from a kernel source; [`catalogue`] knows the functions of those that
//! are about what the table is about; [`reading`] tells what a finished program said. Nothing here runs
//! them: a runner starts them as it starts its workers.

pub mod build;
pub mod catalogue;
pub mod directory;
pub mod ktap;
pub mod reading;
