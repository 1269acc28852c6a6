//! What programs ask for that the model does not know, told once a question to `PRIVET_MODEL_LOG`.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::options;

/// The open log; None if there is none.
fn sink() -> Option<&'static File> {
    static SINK: OnceLock<Option<File>> = OnceLock::new();
    SINK.get_or_init(|| {
        let path = std::env::var_os(options::LOG).filter(|path| !path.is_empty())?;
        if path == "stderr" {
            // A duplicate, since the program may close or redirect its own.
            return nix::unistd::dup(std::io::stderr()).ok().map(|fd: OwnedFd| File::from(fd));
        }
        OpenOptions::new().create(true).append(true).open(path).ok()
    })
    .as_ref()
}

/// Writes one line, the first time that it comes up.
pub(crate) fn once(line: impl FnOnce() -> String) {
    static TOLD: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Some(mut sink) = sink() else { return };
    let line = line();
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.get_or_insert_default().insert(line.clone()) {
        // A log that cannot be written must not change what the program sees.
        let _ = writeln!(sink, "privet-model: {line}");
    }
}
