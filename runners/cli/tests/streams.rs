//! Where a run writes: standard output and `--output`, whole, cut short, closed and full.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use privet_harness::vm_type::VmType;
use serde_json::Value;

/// A row of the model's that always passes.
const ROW: &str = "upm.punch.while_shared";

fn privet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(args).env("XDG_CACHE_HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// Runs `privet` with these arguments under a shell that changes its streams.
fn under_shell(args: &str, redirections: &str) -> Output {
    let script = format!("exec '{}' {args} {redirections}", env!("CARGO_BIN_EXE_privet"));
    Command::new("sh").args(["-c", &script]).env("XDG_CACHE_HOME", "/nonexistent").output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn output_that_nobody_gets_is_an_error() {
    let run = format!("run --on model --exact {ROW}");
    for (args, redirections, why) in [
        (run.as_str(), ">&-", "closed"),
        ("list", ">&-", "closed"),
        ("--help", ">&-", "closed"),
        ("probe", ">&-", "closed"),
        ("--help", ">/dev/full", "No space left"),
        ("run --help", ">/dev/full", "No space left"),
        ("--version", ">/dev/full", "No space left"),
        ("list", ">/dev/full", "No space left"),
        (&format!("{run} --format junit"), ">/dev/full", "No space left"),
        (&format!("{run} --format json"), ">/dev/full", "No space left"),
        (&run, ">/dev/full", "No space left"),
        (&format!("{run} --output /dev/full"), "", "No space left"),
    ] {
        let output = under_shell(args, redirections);
        assert_eq!(output.status.code(), Some(2), "{args} {redirections}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{args} {redirections}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{args} {redirections}: {}", stderr(&output));
    }
    assert!(stdout(&under_shell("--help", "")).contains("Usage"));
}

#[test]
fn a_dash_is_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", "--on", "model", "--exact", ROW, "--format", "json", "--output", "-"];
    let output = privet(&args).current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", stdout(&output));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_summary_says_with_which_seed_and_on_what() {
    let args = ["run", "--on", "model", "--exact", ROW, "--format", "json", "--seed", "5"];
    let output = privet(&args).output().unwrap();
    let summary: Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    assert_eq!((&summary["seed"], &summary["places"][0]["on"]), (&5.into(), &"model".into()), "{summary}");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(summary["host_kernel"], release.trim());
}

/// Starts a run that goes on for ever, waits until `has_some` says that its partial report has something, kills it, and
/// gives what is left.
fn left_by_a_killed_run(format: &str, has_some: fn(&str) -> bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report");
    let partial = dir.path().join("report.partial");
    let args =
        ["run", "--on", "model", "--exact", ROW, "--repeat", "10000", "--jobs", "1", "--format", format, "--output"];
    let mut child = privet(&args).arg(&file).stdout(Stdio::null()).spawn().unwrap();
    while !fs::read_to_string(&partial).is_ok_and(|text| has_some(&text)) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["report.partial"]);
    let left = fs::read_to_string(&partial).unwrap();

    // The next run takes its place.
    let again = ["run", "--on", "model", "--exact", ROW, "--format", format, "--output"];
    assert_eq!(privet(&again).arg(&file).output().unwrap().status.code(), Some(0));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["report"]);
    left
}

#[test]
fn a_killed_run_leaves_what_it_knew() {
    let json = left_by_a_killed_run("json", |text| text.lines().count() > 2);
    assert!(json.lines().skip(1).take(1).all(|line| serde_json::from_str::<Value>(line).unwrap()["verdict"] == "pass"));
    let junit = left_by_a_killed_run("junit", |text| text.contains("</testcase>") && text.contains("</testsuites>"));
    assert_eq!(quick_junit::Report::deserialize_from_str(&junit).unwrap().tests, 10000);
    let pretty = left_by_a_killed_run("pretty", |text| text.lines().count() > 2);
    assert!(pretty.starts_with("pass "), "{pretty}");
    let ktap = left_by_a_killed_run("ktap-flat", |text| text.contains("\nok 2 "));
    assert!(ktap.starts_with("KTAP version 1\n1..10000\n"), "{ktap}");
}

#[test]
fn a_log_hears_of_each_row_as_it_ends() {
    let args = ["run", "--on", "model", "--exact", ROW, "--repeat", "10000", "--jobs", "1"];
    let mut child = privet(&args).stdout(Stdio::piped()).spawn().unwrap();
    let first = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(first.starts_with(&format!("pass    {ROW}.iteration-1 (on model, ")), "{first}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn two_runs_do_not_write_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report");
    let theirs = File::create(dir.path().join("report.partial")).unwrap();
    theirs.lock().unwrap();
    let args = ["run", "--on", "model", "--exact", ROW, "--output"];
    let output = privet(&args).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("another run is writing it"), "{}", stderr(&output));
    assert!(!file.exists());
}

#[test]
fn colours_are_for_those_who_want_them() {
    let run = |args: &[&str], no_color: &str| {
        let mut command = privet(&[&["run", "--on", "model", "--exact", ROW], args].concat());
        stdout(&command.env("NO_COLOR", no_color).output().unwrap()).contains('\u{1b}')
    };
    assert!(!run(&[], ""), "a pipe is no terminal");
    assert!(run(&["--color", "always"], "1"));
    assert!(!run(&["--color", "never"], ""));
}

/// What `--require` of this VM type makes of a run with these arguments where there is nothing but the model.
fn required(vm: VmType, args: &[&str]) -> Output {
    let mut command = privet(&["run", "--require", vm.name(), ROW]);
    command.args(args).env("HOME", "/nonexistent").env("PATH", "").output().unwrap()
}

#[test]
fn a_requirement_is_met_by_a_real_kernel_only() {
    if Path::new("/sys/module/kvm_amd").exists() || Path::new("/sys/module/kvm_intel").exists() {
        return;
    }
    for args in [&["--format", "pretty"][..], &["--on", "model"], &["--on", "model", "--repeat", "2"]] {
        let output = required(VmType::Upm, args);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        let text = stdout(&output);
        assert!(text.contains("required by --require upm") && text.contains("the model is no kernel"), "{text}");
    }
}

#[test]
fn auto_says_first_where_it_runs_and_why() {
    let output = privet(&["run", ROW]).env("HOME", "/nonexistent").env("PATH", "").output().unwrap();
    let first = stdout(&output).lines().next().unwrap();
    assert!(first.starts_with("auto: 1 row "), "{first}");
    if !first.ends_with("on the host") {
        assert!(
            first.contains("on the model, which is no hardware, because ") && first.contains("no rig: "),
            "{first}"
        );
    }
    let output = privet(&["run", ROW, "--defect", "hole-not-zeroed"]).output().unwrap();
    assert!(stdout(&output).starts_with("auto: on the model, which is no hardware: --defect"), "{}", stdout(&output));
}
