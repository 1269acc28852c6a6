//! What cannot work is told before anything boots or runs, and what takes long says so.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn privet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(args).env("XDG_CACHE_HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn refused(output: &Output, status: i32, why: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert!(error.contains(why) && error.lines().count() == 1, "{error}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Writes the smallest thing that passes for a bzImage of Linux 7.3.4.
fn image(path: &Path) {
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
    image[0x211] = 1;
    image[0x400..0x405].copy_from_slice(b"7.3.4");
    fs::write(path, image).unwrap();
}

/// Writes a module of Linux 7.3.4 that says that it is `name`.
fn module(path: &Path, name: &str) {
    let source = path.with_extension("c");
    let info = format!("name={name}\\0vermagic=7.3.4 SMP\\0depends=");
    fs::write(&source, format!("const char info[] __attribute__((section(\".modinfo\"))) = \"{info}\";\n")).unwrap();
    assert!(Command::new("cc").arg("-c").arg(&source).arg("-o").arg(path).status().unwrap().success());
}

#[test]
fn a_kernel_that_is_no_file_and_a_module_that_is_another_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let run = |kernel: &str| {
        privet(&["run", "--on", "rig", "--kernel", kernel, "--modules", dir.path().to_str().unwrap()]).output().unwrap()
    };
    refused(&run("/dev/zero"), 2, "/dev/zero: is no regular file");
    refused(&run(&path("")), 2, "is no regular file");
    image(&dir.path().join("bzImage"));
    module(&dir.path().join("kvm.ko"), "irqbypass");
    refused(&run(&path("bzImage")), 2, "kvm.ko: is the module irqbypass under another name");
    fs::remove_file(dir.path().join("kvm.ko")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("kvm.ko")).unwrap();
    refused(&run(&path("bzImage")), 2, "is no regular file");
}

#[test]
fn too_few_open_files_are_one_reason_before_any_row_runs() {
    for command in ["run --on model", "run --on host", "mutants", "run --on model --jobs 1"] {
        let script = format!("ulimit -n 20; exec '{}' {command}", env!("CARGO_BIN_EXE_privet"));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        refused(&output, 4, "20 open files are too few");
    }
}

#[test]
fn a_low_limit_that_may_be_raised_is_raised() {
    let row = "run --on model --jobs 1 --exact upm.punch.while_shared";
    let script = format!("ulimit -S -n 20; exec '{}' {row}", env!("CARGO_BIN_EXE_privet"));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_long_build_tells_a_log_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("virt/kvm")).unwrap();
    fs::write(source.join("virt/kvm/kvm_main.c"), "").unwrap();
    fs::write(source.join("Makefile"), "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n").unwrap();
    let make = dir.path().join("make");
    fs::write(&make, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&make, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut command = privet(&["rig", "build", "--source", source.to_str().unwrap()]);
    command.env("PATH", path).env("XDG_CACHE_HOME", dir.path().join("cache"));
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (first, second) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    for line in [first, second] {
        let said = line.strip_prefix("privet: ").and_then(|rest| rest.split_once(" s: "));
        assert!(said.is_some_and(|(seconds, _)| seconds.parse::<u32>().is_ok()), "{line}");
    }
}
