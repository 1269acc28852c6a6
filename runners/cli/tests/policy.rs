//! What the command line makes of verdicts: which rows, how many attempts, how many failures, what is expected, and
//! the configuration file that says all that. Rows run on the model, whose defects make them red.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use privet_report::Verdict;
use serde_json::Value;

/// A row that passes on the model, and a defect of the model that turns it red.
const ROW: &str = "upm.punch.while_shared";
const DEFECT: &str = "hole-not-zeroed";

fn privet_in(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(args).current_dir(dir).env("XDG_CACHE_HOME", "/nonexistent").stdin(Stdio::null());
    command.output().unwrap()
}

fn privet(args: &[&str]) -> Output {
    privet_in(Path::new("/"), args)
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn listed(args: &[&str]) -> Vec<String> {
    let output = privet(&[&["list", "--format", "json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let rows = stdout(&output).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// The rows and the summary of a run on the model.
fn run_in(dir: &Path, args: &[&str]) -> (Vec<Value>, Value, Option<i32>) {
    let output = privet_in(dir, &[&["run", "--on", "model", "--format", "json"], args].concat());
    let mut lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("{}", stderr(&output)));
    // What is about to be run comes first.
    assert_eq!(lines.remove(0)["type"], "run");
    (lines, summary, output.status.code())
}

fn run(args: &[&str]) -> (Vec<Value>, Value, Option<i32>) {
    run_in(Path::new("/"), args)
}

#[test]
fn filters_expressions_and_skips_narrow_the_rows() {
    let all = listed(&[]);
    let expected: Vec<&String> = all.iter().filter(|id| id.starts_with("upm.mmio.") && !id.contains("cost")).collect();
    assert_eq!(listed(&["-E", "vm(upm) & group(mmio) - id(~cost)"]).iter().collect::<Vec<_>>(), expected);
    assert_eq!(listed(&["-E", "group(mmio)", "upm.", "--skip", "cost"]).iter().collect::<Vec<_>>(), expected);
    let both = listed(&["--filterset", "group(mmio)", "-E", "group(punch)"]);
    assert!(both.iter().all(|id| [".mmio.", ".punch."].iter().any(|group| id.contains(group))) && both.len() > 2);
    assert_eq!(listed(&["--exact", ROW, "-E", "all()"]), [ROW]);
    let (rows, ..) = run(&["-E", &format!("id(={ROW})")]);
    assert_eq!(rows.len(), 1);
    for (args, helps) in [
        (["list", "-E", "vm(ump)"], "\"ump\""),
        (["list", "-E", "vm(upm) &"], "at column 10"),
        (["list", "--skip", "no-such-row"], "no-such-row"),
        (["list", "-E", "vm(upm) & vm(plain)"], "no row meets the whole selection"),
    ] {
        let output = privet(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(helps) && stderr(&output).lines().count() == 1, "{}", stderr(&output));
    }
}

#[test]
fn enough_failures_end_the_run() {
    let red = ["--exact", ROW, "--defect", DEFECT, "--repeat", "50", "--jobs", "1"];
    for (limit, failed) in [(&["--fail-fast"][..], 1), (&["--max-fail", "3"], 3)] {
        let (rows, summary, status) = run(&[&red, limit].concat());
        assert_eq!((rows.len(), status), (failed, Some(1)), "{summary}");
        assert_eq!((&summary["fail"], &summary["not_run"]), (&failed.into(), &(50 - failed).into()), "{summary}");
        assert!(summary["ended_early"].as_str().unwrap().contains("--max-fail"), "{summary}");
    }
    let (rows, ..) = run(&[&red[..], &["--fail-fast", "--no-fail-fast"]].concat());
    assert_eq!(rows.len(), 50);
}

#[test]
fn a_run_that_takes_too_long_ends_and_has_failed() {
    let (rows, summary, status) = run(&["--exact", ROW, "--repeat", "100000", "--jobs", "1", "--global-timeout", "1"]);
    assert_eq!(status, Some(1), "{summary}");
    assert!(!rows.is_empty() && rows.iter().all(|row| row["verdict"] == "pass"));
    assert!(summary["trouble"].as_str().unwrap().contains("--global-timeout 1"), "{summary}");
}

#[test]
fn a_red_row_gets_more_attempts_and_all_of_them_are_told() {
    let args = ["--exact", ROW, "--defect", DEFECT, "--retries", "2"];
    let (rows, summary, status) = run(&args);
    assert_eq!((rows.len(), status, &summary["fail"]), (1, Some(1), &1.into()), "{summary}");
    let earlier = rows[0]["earlier"].as_array().unwrap();
    assert_eq!(earlier.len(), 2);
    assert!(earlier.iter().all(|attempt| attempt["verdict"] == "fail" && attempt["reason"] == rows[0]["reason"]));
    let output = privet(&[&["run", "--on", "model", "--format", "junit"], &args[..]].concat());
    assert_eq!(stdout(&output).matches("<rerunFailure").count(), 2, "{}", stdout(&output));
    // What passes at once is not tried again.
    let (rows, summary, status) = run(&["--exact", ROW, "--retries", "2"]);
    assert_eq!((rows.len(), status), (1, Some(0)));
    assert!(rows[0]["earlier"].is_null() && summary["flaky"].is_null());
}

/// Writes a quarantine for [`ROW`].
fn quarantine(dir: &Path, seen: &str, until: &str) -> String {
    let file = dir.join("quarantine.toml");
    let entry = format!("filter = \"id(={ROW})\"\nseen = \"{seen}\"\nreason = \"bug 7\"\nuntil = {until}\n");
    fs::write(&file, format!("[[row]]\n{entry}")).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn what_is_quarantined_is_excused_as_long_as_it_is_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let red = ["--exact", ROW, "--defect", DEFECT, "--quarantine"];
    let (rows, summary, status) = run(&[&red[..], &[&quarantine(dir.path(), "guest sees", "2999-12-31")]].concat());
    let reason = rows[0]["reason"].as_str().unwrap().to_owned();
    let seen = &reason[..reason.len().min(12)];

    let (rows, summary2, status2) = run(&[&red[..], &[&quarantine(dir.path(), seen, "2999-12-31")]].concat());
    assert_eq!((status2, &summary2["quarantined"]), (Some(0), &1.into()), "{reason}; {summary}; {status:?}");
    assert_eq!(rows[0]["quarantined"]["reason"], "bug 7");
    for (format, said) in [("ktap", "# XFAIL"), ("junit", "<skipped"), ("pretty", "xfail   upm.punch.while_shared: ")] {
        let args = [&["run", "--on", "model", "--format", format], &red[..]].concat();
        let output = privet(&[&args[..], &[&quarantine(dir.path(), seen, "2999-12-31")]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
        assert!(stdout(&output).contains(said) && stdout(&output).contains("bug 7"), "{}", stdout(&output));
    }

    let (rows, _, status) = run(&[&red[..], &[&quarantine(dir.path(), seen, "2020-01-01")]].concat());
    assert_eq!(status, Some(1));
    assert!(rows[0]["reason"].as_str().unwrap().contains("ended on 2020-01-01"), "{}", rows[0]);
    let (rows, _, status) = run(&[&red[..], &[&quarantine(dir.path(), "another thing", "2999-12-31")]].concat());
    assert_eq!(status, Some(1));
    assert!(rows[0]["reason"].as_str().unwrap().contains("something else"), "{}", rows[0]);
    let file = quarantine(dir.path(), seen, "2999-12-31");
    let output = privet(&["run", "--on", "model", "--exact", ROW, "--quarantine", &file]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("xpass   upm.punch.while_shared: it passes, but"), "{}", stdout(&output));
}

#[test]
fn junit_says_when_and_on_which_machine() {
    let output = privet(&["run", "--on", "model", "--exact", ROW, "--format", "junit"]);
    let junit = quick_junit::Report::deserialize_from_str(stdout(&output)).unwrap();
    let suite = &junit.test_suites[0];
    assert!(junit.timestamp.is_some() && suite.timestamp.is_some() && suite.test_cases[0].timestamp.is_some());
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(stdout(&output).contains(&format!("hostname=\"{}\"", hostname.trim())), "{}", stdout(&output));
}

#[test]
fn a_profile_gives_options_and_the_command_line_counts_more() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!(
        "[profile.default]\nseed = 7\nexact = true\n[profile.ci]\nretries = 1\nskip = [\"{ROW}\"]\nfilterset = \"group(punch)\"\n"
    );
    fs::write(dir.path().join("privet.toml"), file).unwrap();
    let (rows, ..) = run_in(dir.path(), &[ROW]);
    assert_eq!((rows.len(), &rows[0]["seed"]), (1, &7.into()));
    let (rows, ..) = run_in(dir.path(), &[ROW, "--seed", "8"]);
    assert_eq!(rows[0]["seed"], 8);
    let (rows, ..) = run_in(dir.path(), &["--profile", "ci"]);
    assert!(
        rows.len() > 1 && rows.iter().all(|row| row["id"].as_str().unwrap().contains(".punch.") && row["seed"] == 7)
    );
    assert!(rows.iter().all(|row| row["id"] != ROW));

    fs::write(dir.path().join("other.toml"), "[profile.default]\nrepeat = 0\n").unwrap();
    for (args, helps) in [
        (["run", "--profile", "nightly"], "only ci, default"),
        (["run", "--config-file", "other.toml"], "--repeat"),
        (["run", "--config-file", "none.toml"], "none.toml: No such file"),
    ] {
        let output = privet_in(dir.path(), &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(helps) && stderr(&output).lines().count() == 1, "{}", stderr(&output));
    }
}

#[test]
fn the_exits_of_a_pass_are_kept_if_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = dir.path().join("artifacts");
    let args = ["--exact", ROW, "--artifacts", artifacts.to_str().unwrap()];
    let (rows, ..) = run(&args);
    assert!(rows[0]["details"].is_null() && !artifacts.join(ROW).join("log.txt").exists());
    let (rows, ..) = run(&[&args[..], &["--keep"]].concat());
    let first = rows[0]["details"][0].as_str().unwrap();
    assert_eq!(rows[0]["verdict"], Verdict::Pass.to_string());
    assert!(fs::read_to_string(artifacts.join(ROW).join("log.txt")).unwrap().starts_with(first));
    let output = privet(&["run", "--on", "model", "--exact", ROW, "--keep"]);
    assert!(stdout(&output).starts_with(&format!("pass {ROW} (on the model")), "{}", stdout(&output));
}

#[test]
fn shells_and_man_get_what_they_want() {
    for (args, has) in [
        (&["completions", "bash"][..], "filterset"),
        (&["completions", "zsh"], "#compdef privet"),
        (&["man"], ".TH privet 1"),
        (&["man", "run"], "filterset"),
        (&["man", "rig", "build"], "FRAGMENT"),
    ] {
        let output = privet(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).contains(has), "{args:?}: {}", stdout(&output));
    }
    assert_eq!(privet(&["man", "frobnicate"]).status.code(), Some(2));
    let help = privet(&["run", "--help"]);
    for heading in ["Rows:", "Place:", "Limits:", "Verdicts:", "Reports:", "Rig and model:", "Profiles:"] {
        assert!(stdout(&help).contains(&format!("\n{heading}\n")), "{heading} is not in\n{}", stdout(&help));
    }
}
