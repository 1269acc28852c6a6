//! `privet rig build`: a kernel for the rig, once per user.

use std::io::Write;
use std::os::fd::AsFd;

use privet_kernel::{BuildRequest, KernelError};

use crate::args::RigBuild;
use crate::doing::Doing;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;

/// Makes sure that there is a kernel to boot, and writes to `out` which it is. Progress is shown on standard
/// error.
///
/// # Errors
/// If there is no source, a tool is missing, or the build fails; then the cache is as it was.
pub fn rig_build(args: RigBuild, mut out: impl Write) -> Result<Status, Early> {
    let failed = |message: String| Early { status: Status::Failed, message };
    let interrupt = Interrupt::on_signals().map_err(|error| failed(format!("cannot watch for signals: {error}")))?;
    let request = BuildRequest { suite: args.suite, source: args.source, config: args.config };
    let shown = Doing::on_stderr();
    let built = privet_kernel::build(&request, interrupt.as_fd(), &mut |doing| shown.tell(doing));
    drop(shown);
    let built = built.map_err(|error| match (&error, interrupt.signal()) {
        (KernelError::Interrupted, Some(signal)) => {
            Early { status: Status::Interrupted(signal), message: "interrupted: the cache is as it was".to_owned() }
        }
        _ => failed(error.to_string()),
    })?;
    let (release, image) = (&built.kernel.release, built.kernel.image.display());
    let how = if built.is_new { "built" } else { "already built" };
    let mut text = format!("Linux {release} from {}: {how}, {image}\n", built.source);
    if !built.not_taken.is_empty() {
        text += &format!("this source does not take {}\n", built.not_taken.join(" "));
    }
    out.write_all(text.as_bytes()).map_err(|error| failed(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}
