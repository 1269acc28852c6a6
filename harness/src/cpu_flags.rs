//! The features of the CPU as the kernel lists them; it lists none that it does not use.

use std::fs;

/// Whether `/proc/cpuinfo` lists this feature.
pub(crate) fn kernel_lists(feature: &str) -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == feature)
}
