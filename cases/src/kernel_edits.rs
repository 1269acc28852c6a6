//! Edits of the kernel's source that rows have to notice, as data (`cases/kernel-edits`).

/// The text of each file, in TOML.
pub const KERNEL_EDITS: &[&str] = &[
    include_str!("../kernel-edits/all-guests.toml"),
    include_str!("../kernel-edits/known-bugs.toml"),
    include_str!("../kernel-edits/launch-sev.toml"),
    include_str!("../kernel-edits/running-guests.toml"),
    include_str!("../kernel-edits/tdx.toml"),
];
