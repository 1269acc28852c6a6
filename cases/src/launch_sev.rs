//! Group `launch` of SEV, SEV-ES and SEV-SNP: what KVM and the secure processor accept and refuse on the way to a guest
//! that may run. No guest runs in these rows.

mod attestation;
mod command;
mod context;
mod data;
mod debug;
mod descriptor;
mod finish;
mod identity;
mod init;
mod measure;
mod owner;
mod pages;
mod races;
mod receive;
mod region;
mod send;
mod session;
mod start;
mod vcpus;
mod vm;

use crate::row::Row;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    [
        command::rows(),
        descriptor::rows(),
        init::rows(),
        start::rows(),
        region::rows(),
        data::rows(),
        vcpus::rows(),
        measure::rows(),
        attestation::rows(),
        owner::rows(),
        debug::rows(),
        send::rows(),
        receive::rows(),
        pages::rows(),
        finish::rows(),
        identity::rows(),
        context::rows(),
        races::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
