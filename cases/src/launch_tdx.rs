//! Group `launch` of TDX: what KVM and the TDX module accept and refuse on the way to a TD that may run, and its first steps.

mod boot;
mod command;
mod init;
mod region;
mod td;
mod vcpus;

use crate::row::Row;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    [command::rows(), init::rows(), vcpus::rows(), region::rows(), boot::rows()].into_iter().flatten().collect()
}
