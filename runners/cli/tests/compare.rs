//! `privet compare` from outside, with programs that behave as upstream's selftests can.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Writes a shell script in place of a test of upstream's.
fn put(dir: &Path, test: &str, script: &str) {
    let path = dir.join(test);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn compare(dir: &Path, arguments: &[&str]) -> Output {
    compare_on("host", dir, arguments)
}

fn compare_on(place: &str, dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_privet"))
        .args(["compare", "--on", place, "--kselftests"])
        .arg(dir)
        .args(arguments)
        .output()
        .unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Verdict and reason of each comparison, by name.
fn upstream(output: &Output) -> Vec<(String, String, String)> {
    let comparisons = lines(output).into_iter().filter(|line| line["type"] == "comparison");
    comparisons
        .map(|line| {
            let name = line["subtest"].as_str().or(line["test"].as_str()).unwrap().to_owned();
            let said = |key: &str| line["upstream"][key].as_str().unwrap().to_owned();
            (name, said("verdict"), said("reason"))
        })
        .collect()
}

/// The one verdict of a script, and its reason. These tests have no rows, which would only take time.
fn verdict_of(script: &str) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "coalesced_io_test", script);
    let output = compare(dir.path(), &["--format", "json", "--timeout", "1", "coalesced_io_test"]);
    // The last one is about the whole program.
    let (_, verdict, reason) = upstream(&output).pop().unwrap();
    (verdict, reason)
}

#[test]
fn verdicts_follow_from_how_a_program_ends() {
    for (script, verdict, reason) in [
        ("exit 0", "pass", ""),
        ("echo; echo broken >&2; exit 1", "fail", "broken"),
        ("echo '1..0 # SKIP - Requirement not met: x'; exit 4", "skip", "Requirement not met: x"),
        ("echo 'TAP version 13'; echo 1..1; echo ok 1 a; kill -SEGV $$", "error", "SIGSEGV"),
        ("sleep 1000 & wait", "timeout", "within 1 s"),
    ] {
        let (said, why) = verdict_of(script);
        assert_eq!(said, verdict, "{script}: {why}");
        assert!(why.contains(reason), "{script}: {why}");
    }
}

#[test]
fn printed_results_are_lines_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let results =
        "echo 'TAP version 13'; echo 1..2; echo 'ok 1 gmem.init_private'; echo 'not ok 2 gmem.truncate'; exit 1";
    put(dir.path(), "x86/guest_memfd_conversions_test", results);
    let output = compare(dir.path(), &["--format", "json", "guest_memfd_conversions"]);
    let seen: Vec<_> = upstream(&output).into_iter().map(|(name, verdict, _)| (name, verdict)).collect();
    let wanted = [("gmem.init_private", "pass"), ("gmem.truncate", "fail")];
    assert_eq!(seen, wanted.map(|(name, verdict)| (name.to_owned(), verdict.to_owned())));
}

#[test]
fn a_failure_against_a_row_that_passes_is_a_disagreement() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "vm_types_test", "exit 254");
    let output = compare(dir.path(), &["--format", "json", "vm_types_test"]);
    let line = lines(&output).remove(0);
    let row = line["rows"][0]["verdict"].as_str().unwrap();
    // Without /dev/kvm the row is skipped, and nothing is said.
    let (relation, status) = if row == "pass" { ("disagree", 1) } else { ("not-covered", 0) };
    assert_eq!(line["relation"], relation, "{line}");
    assert_eq!(output.status.code(), Some(status));
}

#[test]
fn on_the_model_both_sides_have_it_under_them_and_the_report_says_so() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "vm_types_test", "case \"$LD_PRELOAD\" in *libprivet_model.so*) exit 0;; esac; exit 1");
    let output = compare_on("model", dir.path(), &["--format", "json", "vm_types_test"]);
    let lines = lines(&output);
    assert_eq!(lines[0]["relation"], "agree", "{}", lines[0]);
    assert_eq!(lines[0]["rows"][0]["verdict"], "pass", "{}", lines[0]);
    assert_eq!(lines.last().unwrap()["on"], "model");
    assert_eq!(output.status.code(), Some(0));
    for format in ["pretty", "ktap", "junit"] {
        let output = compare_on("model", dir.path(), &["--format", format, "vm_types_test"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("on the model, which is no hardware, kvm_amd"), "{text}");
    }
}

#[test]
fn a_static_program_cannot_be_on_the_model() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "vm_types_test", "");
    // The header of an x86-64 executable without segments: none names a loader.
    let mut header = [0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[16..21].copy_from_slice(&[2, 0, 62, 0, 1]);
    header[52] = 64;
    fs::write(dir.path().join("vm_types_test"), header).unwrap();
    let output = compare_on("model", dir.path(), &["vm_types_test"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("vm_types_test is linked statically") && error.contains("--static"), "{error}");
}

#[test]
fn a_baseline_tells_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("baseline.json");
    let file = file.to_str().unwrap();
    put(dir.path(), "coalesced_io_test", "exit 0");
    put(dir.path(), "x86/userspace_io_test", "exit 1");
    let filters = ["coalesced_io_test", "userspace_io_test"];
    let run = |options: &[&str]| compare(dir.path(), &[options, &filters].concat());
    assert_eq!(run(&["--save", file]).status.code(), Some(0));
    assert_eq!(run(&["--against", file]).status.code(), Some(0));

    put(dir.path(), "coalesced_io_test", "echo not today; exit 1");
    put(dir.path(), "x86/userspace_io_test", "echo '1..0 # SKIP no port'; exit 4");
    let output = run(&["--against", file, "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let told = lines(&output).into_iter().filter(|line| line["type"] == "change");
    let told: Vec<_> = told.map(|line| format!("{} {} {}", line["kind"], line["name"], line["reason"])).collect();
    assert_eq!(
        told,
        [
            r#""new-failure" "coalesced_io_test" "exit status 1: not today""#,
            r#""new-skip" "x86/userspace_io_test" "no port""#
        ]
    );
}

#[test]
fn every_format_can_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "coalesced_io_test", "exit 0");
    let text = |format| String::from_utf8(compare(dir.path(), &["--format", format, "coalesced"]).stdout).unwrap();
    let ktap = privet_kselftest::ktap::Document::read(&text("ktap"));
    assert_eq!(ktap.results.len(), 1);
    assert!(ktap.problems.is_empty(), "{ktap:?}");
    assert!(
        text("junit").contains("<testsuite name=\"coalesced_io_test\" tests=\"1\" skipped=\"1\""),
        "{}",
        text("junit")
    );
    assert!(text("pretty").contains("not-covered"));
}

#[test]
fn an_interrupted_comparison_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    // Whichever comes second hangs.
    let script = format!(
        "[ -e '{0}' ] || {{ : > '{0}'; exit 0; }}; : > '{1}'; exec sleep 1000",
        first.display(),
        second.display()
    );
    put(dir.path(), "coalesced_io_test", &script);
    put(dir.path(), "x86/userspace_io_test", &script);
    let baseline = dir.path().join("baseline");
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(["compare", "--on", "host", "--format", "json", "--kselftests"]).arg(dir.path());
    command.arg("--save").arg(&baseline).args(["coalesced_io_test", "userspace_io_test"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !second.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(128 + 15), "{error}");
    assert!(error.contains("1 tests and rows did not run") && error.contains("nothing is saved"), "{error}");
    let upstream = upstream(&output);
    assert_eq!(upstream.len(), 1, "{upstream:?}");
    assert_eq!(upstream[0].1, "pass");
    assert!(!baseline.exists());
}

#[test]
fn both_sides_say_how_long_they_took() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "vm_types_test", "exit 0");
    let line = lines(&compare_on("model", dir.path(), &["--format", "json", "vm_types_test"])).remove(0);
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{line}"));
    let (theirs, ours) = (number(&line["upstream"]["duration_us"]), number(&line["rows_duration_us"]));
    assert_eq!(number(&line["rows"][0]["duration_us"]), ours, "{line}");
    assert!(theirs > 0.0 && ours > 0.0 && (number(&line["duration_ratio"]) - theirs / ours).abs() < 1e-9, "{line}");
}

#[test]
fn bad_input_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = |output: Output, status: i32, help: &str| {
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(error.contains(help) && error.lines().count() == 1, "{error}");
    };
    wrong(compare(dir.path(), &[]), 2, "privet kselftests build");
    put(dir.path(), "coalesced_io_test", "exit 0");
    wrong(compare(dir.path(), &["no_such_test"]), 2, "no_such_test");
    wrong(compare(dir.path(), &["--against", "/nonexistent", "coalesced"]), 2, "--save");
    let file = dir.path().join("baseline.json");
    let file = file.to_str().unwrap();
    assert!(compare(dir.path(), &["--save", file, "coalesced"]).status.success());
    wrong(compare_on("model", dir.path(), &["--against", file, "coalesced"]), 2, "a baseline of the host");
    wrong(compare_on("model", dir.path(), &["--kernel", file, "--modules", file, "coalesced"]), 2, "--on rig");
    wrong(compare(dir.path(), &["--save", "/nonexistent/file", "coalesced"]), 2, "--save");
    let none = Command::new(env!("CARGO_BIN_EXE_privet")).args(["compare"]).env("XDG_CACHE_HOME", dir.path()).output();
    wrong(none.unwrap(), 4, "privet kselftests build");
}
