//! A saved machine whose guest is ready for rows, and rows in it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use privet_rig::{CaseRun, Request};
use privet_sim::{Limits, Machine, Outcome};

/// Has privet make a snapshot in a cache of its own, in this empty directory.
pub(crate) fn snapshot(cache: &Path) -> PathBuf {
    own_cache(cache);
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(["run", "--on", "rig", "--machine", "sim", "--exact", "plain.lifecycle.vm_types"]);
    assert!(command.env("XDG_CACHE_HOME", cache).output().unwrap().status.success());
    let snapshots = std::fs::read_dir(cache.join("privet/snapshots")).unwrap();
    snapshots.map(|entry| entry.unwrap().path().join("machine")).find(|path| path.exists()).unwrap()
}

/// Makes a cache that has the user's kernels, and no snapshots.
pub(crate) fn own_cache(cache: &Path) {
    let kernels = privet_kernel::cache_dir().unwrap();
    std::fs::create_dir(cache.join("privet")).unwrap();
    symlink(&kernels, cache.join("privet").join(kernels.file_name().unwrap())).unwrap();
}

/// Runs a row to its guest's last word, which has to be good; what the guest has said.
pub(crate) fn perform(machine: &mut Machine, row: &str) -> Vec<u8> {
    let (id, label) = (row.to_owned(), row.to_owned());
    let case = CaseRun { id, label, seed: 1, limit_ms: 60_000, keep: false, schedules: Vec::new() };
    machine.feed_port(format!("{}\n", serde_json::to_string(&Request::Rows(vec![case])).unwrap()).as_bytes());
    let mut said = Vec::new();
    while !said.ends_with(b"\"done\"\n") {
        assert_eq!(machine.run(&Limits::default()), Outcome::Port, "{}", String::from_utf8_lossy(&said));
        said.extend(machine.take_port());
    }
    assert!(String::from_utf8_lossy(&said).contains("\"pass\""), "{}", String::from_utf8_lossy(&said));
    said
}
