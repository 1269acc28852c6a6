//! `privet measure` from outside, where nothing can be launched. What it tells of guests that are launched needs a kernel
//! with SEV: `.ci/run` looks at that.

use std::process::{Command, Output, Stdio};

/// `privet measure` with a cache that holds no kernel.
fn measure(args: &[&str]) -> Output {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.arg("measure").args(args).env("XDG_CACHE_HOME", cache.path()).stdin(Stdio::null());
    command.output().unwrap()
}

fn told(output: &Output) -> (Option<i32>, &str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_row_that_there_is_not_is_wrong_usage() {
    let output = measure(&["snp.ghcb.cpuit"]);
    let (status, stdout, stderr) = told(&output);
    assert_eq!((status, stdout), (Some(2), ""));
    assert!(stderr.contains("did you mean snp.ghcb.cpuid"), "{stderr}");
}

#[test]
fn what_describes_a_rig_is_not_for_the_host() {
    let output = measure(&["snp.ghcb.cpuid", "--on", "host", "--cpu-profile", "genoa"]);
    let (status, stdout, stderr) = told(&output);
    assert_eq!((status, stdout), (Some(2), ""));
    assert!(stderr.contains("need --on rig"), "{stderr}");
}

#[test]
fn without_a_place_nothing_is_measured() {
    let output = measure(&["snp.ghcb.cpuid", "--on", "rig"]);
    let (status, stdout, stderr) = told(&output);
    assert_eq!((status, stdout), (Some(4), ""));
    assert!(stderr.contains("rig build") && stderr.lines().count() == 1, "{stderr}");
}
