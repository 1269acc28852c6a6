//! The limit of open files: rows that meet it break one by one and say so in many ways, so that it is looked at
//! before they run.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::exit::Early;

/// What a worker needs: VMs, vCPUs, statistics, memory, eventfds, and a margin. No row has more than half as many.
const OF_A_WORKER: u64 = 64;

/// What the runner needs for each worker that runs: its pipes and its pidfd.
const FOR_A_WORKER: u64 = 8;

/// Makes sure that `at_a_time` workers can run side by side. Workers inherit the limit.
///
/// # Errors
/// If this process may not open so many files.
pub fn check(at_a_time: usize) -> Result<(), Early> {
    let needed = OF_A_WORKER + FOR_A_WORKER * at_a_time as u64;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| Early::nothing_ran(format!("cannot look at the limit of open files: {errno}")))?;
    if soft >= needed {
        return Ok(());
    }
    if hard >= needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_ok() {
        return Ok(());
    }
    Err(Early::nothing_ran(format!(
        "{soft} open files are too few to run rows, {needed} are needed: raise the limit, as with `ulimit -n {needed}`"
    )))
}
