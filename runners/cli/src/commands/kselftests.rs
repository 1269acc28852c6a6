//! `privet kselftests build`: the kernel's own tests of KVM, once per user.

use std::io::Write;
use std::os::fd::AsFd;

use privet_kernel::KernelError;
use privet_kselftest::build::BuildRequest;

use crate::args::KselftestsBuild;
use crate::doing::Doing;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;

/// Makes sure that there are selftests to run, and writes to `out` where. Progress is shown on standard error.
///
/// # Errors
/// If there is no source, a tool is missing, or the build fails; then the cache is as it was.
pub fn build(args: KselftestsBuild, mut out: impl Write) -> Result<Status, Early> {
    let failed = |message: String| Early { status: Status::Failed, message };
    let interrupt = Interrupt::on_signals().map_err(|error| failed(format!("cannot watch for signals: {error}")))?;
    let request = BuildRequest { source: args.source, is_static: args.is_static };
    let shown = Doing::on_stderr();
    let built = privet_kselftest::build::build(&request, interrupt.as_fd(), &mut |doing| shown.tell(doing));
    drop(shown);
    let built = built.map_err(|error| match (&error, interrupt.signal()) {
        (KernelError::Interrupted, Some(signal)) => {
            Early { status: Status::Interrupted(signal), message: "interrupted: the cache is as it was".to_owned() }
        }
        _ => failed(error.to_string()),
    })?;
    let how = if built.is_new { "built" } else { "already built" };
    let dir = built.kselftests.dir.display();
    writeln!(out, "{} tests of KVM from {}: {how}, {dir}", built.tests, built.source)
        .map_err(|error| failed(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}
