//! `privet rig snapshots`: the booted machines that rows are run in copies of.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use privet_rig::{Facts, RigError, drop_snapshots, snapshots};

use crate::args::Snapshots;
use crate::exit::{Early, Status};

/// Lists the snapshots to `out`, the one that was used last first, or drops those that nobody is using.
///
/// # Errors
/// If there is no cache directory, or `out` cannot be written.
pub fn rig_snapshots(what: &Snapshots, mut out: impl Write) -> Result<Status, Early> {
    let failed = |error: RigError| Early { status: Status::Failed, message: error.to_string() };
    let text = match what {
        Snapshots::List => {
            let lines: Vec<String> = snapshots().map_err(failed)?.iter().map(|(dir, facts)| line(dir, facts)).collect();
            if lines.is_empty() {
                "no snapshots: the first run on the sim makes one\n".to_owned()
            } else {
                lines.concat()
            }
        }
        Snapshots::Drop => format!("{} dropped\n", drop_snapshots().map_err(failed)?),
    };
    out.write_all(text.as_bytes())
        .map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}

fn line(dir: &Path, facts: &Facts) -> String {
    let Facts { kernel, module_params, options, trouble, without_modules } = facts;
    let kvm = if *without_modules { ", before KVM is loaded" } else { "" };
    let params = if module_params.is_empty() { String::new() } else { format!(" ({})", module_params.join(" ")) };
    let trouble = trouble.as_ref().map_or_else(String::new, |trouble| format!(", complained: {trouble}"));
    let without = options.without;
    let without = if without.is_empty() { String::new() } else { format!(" without {without}") };
    format!(
        "Linux {kernel}{params}{kvm}, {} processors ({}{without}), {} MiB of memory, {} MiB on disk{trouble}: {}\n",
        options.cpus,
        options.profile.name(),
        options.memory_mib,
        on_disk(dir) >> 20,
        dir.display()
    )
}

/// The bytes that the files of a directory take on disk: those of a machine have holes.
fn on_disk(dir: &Path) -> u64 {
    const BLOCK: u64 = 512;
    let files = dir.read_dir().into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.blocks() * BLOCK)).sum()
}
