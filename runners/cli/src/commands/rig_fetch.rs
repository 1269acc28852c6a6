//! `privet rig fetch`: a kernel that Debian has built, for the rig.

use std::io::Write;
use std::os::fd::AsFd;

use privet_kernel::{FetchRequest, KernelError};

use crate::args::RigFetch;
use crate::doing::Doing;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;

/// Makes sure that the kernel of a package is there to boot, and writes to `out` which it is and how to name it.
/// Progress is shown on standard error.
///
/// # Errors
/// If there is no such package, or it cannot be downloaded; then the cache is as it was.
pub fn rig_fetch(args: RigFetch, mut out: impl Write) -> Result<Status, Early> {
    let failed = |message: String| Early { status: Status::Failed, message };
    let interrupt = Interrupt::on_signals().map_err(|error| failed(format!("cannot watch for signals: {error}")))?;
    let request = FetchRequest { suite: args.suite, package: args.package };
    let shown = Doing::on_stderr();
    let fetched = privet_kernel::fetch(&request, interrupt.as_fd(), &mut |doing| shown.tell(doing));
    drop(shown);
    let fetched = fetched.map_err(|error| match (&error, interrupt.signal()) {
        (KernelError::Interrupted, Some(signal)) => {
            Early { status: Status::Interrupted(signal), message: "interrupted: the cache is as it was".to_owned() }
        }
        _ => failed(error.to_string()),
    })?;
    let how = if fetched.is_new { "fetched" } else { "already fetched" };
    let kernel = &fetched.kernel;
    let (image, modules) = (kernel.image.display(), kernel.modules.display());
    writeln!(out, "Linux {} from {}: {how}, --kernel {image} --modules {modules}", kernel.release, fetched.package)
        .map_err(|error| failed(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}
