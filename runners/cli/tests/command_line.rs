//! The command line from outside: what it prints, writes and exits with. Rows that must not really run are
//! sent to a rig without a kernel, where each is skipped.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use privet_report::{CaseReport, Place, Verdict};
use serde_json::Value;
use tempfile::TempDir;

/// `privet` with a cache that holds no kernel.
struct Privet {
    cache: TempDir,
}

impl Privet {
    fn new() -> Self {
        Self { cache: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
        command.args(args).env("XDG_CACHE_HOME", self.cache.path()).stdin(Stdio::null());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs with these arguments where everything is skipped, and gives the reports and the summary.
    fn skipped_run(&self, args: &[&str]) -> (Vec<CaseReport>, Value, i32) {
        let output = self.output(&[&["run", "--on", "rig", "--format", "json"], args].concat());
        let (reports, summary) = json(&output);
        (reports, summary, output.status.code().unwrap())
    }

    fn ids(&self) -> Vec<String> {
        let output = self.output(&["list", "--format", "json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(output: &Output) -> (Vec<CaseReport>, Value) {
    let mut lines: Vec<Value> = stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("no summary; {}", stderr(output)));
    assert_eq!(summary["type"], "summary");
    assert_eq!(lines.first().unwrap_or(&Value::Null)["type"], "run");
    (lines.into_iter().skip(1).map(|line| serde_json::from_value(line).unwrap()).collect(), summary)
}

#[test]
fn the_list_is_the_table() {
    let privet = Privet::new();
    let table = privet_cases::table();
    let expected: Vec<&str> = table.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(privet.ids(), expected);
    let output = privet.output(&["list"]);
    assert_eq!(output.status.code(), Some(0));
    for (line, row) in stdout(&output).lines().zip(&table) {
        assert!(line.starts_with(&row.id) && line.ends_with(row.about), "{line}");
    }
    let output = privet.output(&["list", "--exact", expected[1]]);
    assert_eq!(stdout(&output).lines().count(), 1);
}

#[test]
fn a_row_is_explained_with_all_that_the_table_knows() {
    let table = privet_cases::table();
    let row = table.iter().find(|row| !row.upstream.is_empty() && !row.needs.is_empty()).unwrap();
    let output = Privet::new().output(&["explain", &row.id]);
    assert_eq!(output.status.code(), Some(0));
    let needs: Vec<String> = row.needs.iter().map(ToString::to_string).collect();
    let upstream: Vec<String> = row.upstream.iter().map(ToString::to_string).collect();
    let facts =
        row.basis.iter().copied().chain(upstream.iter().map(String::as_str)).chain(needs.iter().map(String::as_str));
    for fact in facts.chain([row.id.as_str(), row.about]) {
        assert!(stdout(&output).contains(fact), "{fact} is not in\n{}", stdout(&output));
    }
}

#[test]
fn bad_input_is_told_in_one_line_that_helps_and_nothing_runs() {
    let privet = Privet::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "kept").unwrap();
    fs::write(path("truncated"), [0; 600]).unwrap();
    let (file, directory, missing) = (path("file"), path(""), path("no/such/file"));
    let truncated = path("truncated");
    let some_id = privet.ids().remove(0);
    let near = &some_id[..some_id.len() - 1];
    for (args, helps) in [
        (vec!["run", "--exact", near], some_id.as_str()),
        (vec!["run", "no-such-row-at-all"], "privet list"),
        (vec!["run", &some_id, "no-such-row-at-all"], "no-such-row-at-all"),
        (vec!["list", "no-such-row-at-all"], "privet list"),
        (vec!["explain", near], some_id.as_str()),
        (vec!["run", "--exact"], "FILTER"),
        (vec!["run", "--partition", "0/2"], "1 <= M <= N"),
        (vec!["run", "--partition", "3/2"], "1 <= M <= N"),
        (vec!["run", "--partition", "half"], "1 <= M <= N"),
        (vec!["run", "--jobs", "0"], "1 or more"),
        (vec!["run", "--repeat", "0"], "--repeat"),
        (vec!["run", "--timeout", "0"], "--timeout"),
        (vec!["run", "--timeout", "nan"], "--timeout"),
        (vec!["run", "--seed=-1"], "--seed"),
        (vec!["run", "--seed", "-1"], "0 or more"),
        (vec!["run", "--timeout", "-1"], "above 0"),
        (vec!["run", "--on", "moon"], "host, rig, model, auto"),
        (vec!["run", "--on", "model", "--defect", "hole-not-zero"], "hole-not-zeroed"),
        (vec!["run", "--on", "rig", "--defect", "hole-not-zeroed"], "--on model"),
        (vec!["run", "--on", "model", "--diff", "model"], "--diff"),
        (vec!["run", "--on", "model", "--module-param", "kvm.no_such=0"], "kvm.mmio_caching"),
        (vec!["run", "--on", "model", "--kernel", &truncated, "--modules", &directory], "--on rig"),
        (vec!["list", "--defects", "hole-not-zerod"], "hole-not-zeroed"),
        (vec!["model", "no-such-program-at-all"], "no-such-program-at-all"),
        (vec!["sim", "--cpu-without", "nrip", "--", "ls"], "nrips"),
        (vec!["run", "--on", "rig", "--machine", "qemu", "--cpu-without", "nrips"], "--cpu-without nrips"),
        (vec!["run", "--on", "rig", "--machine", "qemu", "--cpus", "4"], "--cpus 4"),
        (vec!["run", "--on", "rig", "--tdx-fault", "TDH.MEM.PAGE.AUG:1:OPERAND_BUSY"], "--vendor intel"),
        (vec!["run", "--on", "model", "--coverage", "coverage.info"], "--machine sim"),
        (vec!["run", "--on", "rig", "--machine", "qemu", "--instruction-profile"], "--machine sim"),
        (vec!["sim", "--cpus", "0", "--", "ls"], "1..=8"),
        (vec!["sim", "--cpu-profile", "naples", "--", "ls"], "plain, milan, genoa"),
        (vec!["probe", "--machine", "sim"], "--on rig"),
        (vec!["probe", "--on", "model"], "host, rig"),
        (vec!["run", "--format", "yaml"], "ktap-flat"),
        (vec!["run", "--require", "xen"], "sev_es"),
        (vec!["run", "plain.", "--require", "tdx"], "tdx"),
        (vec!["run", "--module-param", "kvm"], "kvm.mmio_caching=0"),
        (vec!["run", "--on", "host", "--module-param", "kvm.mmio_caching=0"], "--on rig"),
        (vec!["run", "--on", "host", "--vendor", "both"], "--on rig"),
        (vec!["run", "--vendor", "via"], "amd, intel, both"),
        (vec!["run", "--on", "rig", "--kernel", &truncated], "--modules"),
        (vec!["run", "--on", "rig", "--kernel", &truncated, "--modules", &directory], "privet rig build"),
        (vec!["run", "--on", "rig", "--kernel", &missing, "--modules", &directory], "privet rig build"),
        (vec!["run", "--on", "rig", "--output", &missing], "directory that you can write"),
        (vec!["run", "--on", "rig", "--output", &directory], "--output"),
        (vec!["run", "--on", "rig", "--artifacts", &file], "--artifacts"),
        (vec!["frobnicate"], "privet help"),
    ] {
        let output = privet.output(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(helps), "{args:?}: {}", stderr(&output));
    }
    let left: BTreeSet<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file", "truncated"].map(Into::into).into());
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_place_that_is_not_there_skips_every_row_and_exits_with_4() {
    let privet = Privet::new();
    let output = privet.output(&["run", "--on", "rig", "--format", "json"]);
    let (reports, summary) = json(&output);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("privet rig build"), "{}", stderr(&output));
    assert_eq!(summary["skip"], reports.len());
    assert_eq!(reports.len(), privet.ids().len());
    assert!(reports.iter().all(|report| report.verdict == Verdict::Skip && report.on == Place::Rig));
    assert!(reports.iter().all(|report| report.reason.contains("privet rig build")));
}

#[test]
fn what_is_required_must_not_be_skipped() {
    let privet = Privet::new();
    let (reports, summary, status) = privet.skipped_run(&["--require", "upm"]);
    assert_eq!(status, 1);
    for report in &reports {
        let expected = if report.vm == "upm" { Verdict::Fail } else { Verdict::Skip };
        assert_eq!(report.verdict, expected, "{}", report.id);
        assert!(report.reason.contains("privet rig build"), "{}", report.reason);
    }
    let upm = reports.iter().filter(|report| report.vm == "upm").count();
    assert!(upm > 0 && summary["fail"] == upm, "{summary}");
}

#[test]
fn partitions_cover_every_row_exactly_once() {
    let privet = Privet::new();
    let mut seen: Vec<String> = Vec::new();
    for number in 1..=3 {
        let (reports, ..) = privet.skipped_run(&["--partition", &format!("{number}/3")]);
        seen.extend(reports.into_iter().map(|report| report.id));
    }
    let mut ids = privet.ids();
    ids.sort();
    seen.sort();
    assert_eq!(seen, ids);
    let many = ids.len() + 1;
    let (reports, _, status) = privet.skipped_run(&["--partition", &format!("{many}/{many}")]);
    assert_eq!((reports.len(), status), (0, 4));
}

#[test]
fn iterations_have_seeds_of_their_own_and_the_first_has_the_given_one() {
    let privet = Privet::new();
    let id = privet.ids().remove(0);
    let (reports, ..) = privet.skipped_run(&["--exact", &id, "--repeat", "3", "--seed", "77"]);
    let seeds: BTreeSet<u64> = reports.iter().map(|report| report.seed).collect();
    assert_eq!((reports.len(), seeds.len(), reports[0].seed), (3, 3, 77));
    let repro = format!("privet run --exact {id} --on rig --seed {} --machine sim --vendor amd", reports[2].seed);
    assert_eq!(reports[2].repro, repro);
    let words: Vec<&str> = repro.split(' ').skip(2).collect();
    let (again, ..) = privet.skipped_run(&[words[0], words[1], words[4], words[5]]);
    assert_eq!(again[0], reports[2]);
}

#[test]
fn an_output_file_is_whole_and_alone() {
    let privet = Privet::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.xml");
    fs::write(&file, "an older report").unwrap();
    let id = privet.ids().remove(0);
    let args = ["run", "--on", "rig", "--exact", &id, "--format", "junit", "--output", file.to_str().unwrap()];
    let output = privet.output(&args);
    assert_eq!(output.status.code(), Some(4));
    let junit = quick_junit::Report::deserialize_from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(junit.tests, 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(stdout(&output).contains("1 row: 1 skipped"), "{}", stdout(&output));
}

#[test]
fn artifacts_tell_each_job_and_the_run() {
    let privet = Privet::new();
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("a/b");
    let id = privet.ids().remove(0);
    let read = |path: &Path| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    privet.skipped_run(&["--exact", &id, "--seed", "5", "--artifacts", below.to_str().unwrap()]);
    assert_eq!(read(&below.join("run.json"))["jobs"], serde_json::json!([id]));
    assert_eq!(read(&below.join(&id).join("started.json"))["seed"], 5);
    assert_eq!(read(&below.join(&id).join("report.json"))["verdict"], "skip");
}

#[test]
fn on_the_host_every_row_gets_a_verdict_and_the_status_follows() {
    let privet = Privet::new();
    let output = privet.output(&["run", "--on", "host", "--format", "json", "plain"]);
    let (reports, summary) = json(&output);
    let expected = privet.ids().iter().filter(|id| id.contains("plain")).count();
    assert_eq!(reports.len(), expected);
    assert!(reports.iter().all(|report| report.on == Place::Host && !report.kernel.is_empty()));
    assert!(reports.iter().all(|report| (report.verdict == Verdict::Pass) == report.reason.is_empty()));
    let bad = ["fail", "error", "timeout"].map(|word| summary[word].as_u64().unwrap()).iter().sum::<u64>();
    let status = match (bad, summary["pass"].as_u64().unwrap()) {
        (1.., _) => 1,
        (0, 0) => 4,
        (0, _) => 0,
    };
    assert_eq!(output.status.code(), Some(status), "{summary}");
}

#[test]
fn an_interrupt_reports_what_ran_and_exits_with_130() {
    let privet = Privet::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let args = ["run", "--on", "rig", "--repeat", "2000", "--format", "json", "--output", file.to_str().unwrap()];
    let artifacts = dir.path().join("artifacts");
    let mut command = privet.command(&args);
    command.args(["--artifacts", artifacts.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Its first job has started, so that it listens to signals.
    while !artifacts.join("run.json").exists() || fs::read_dir(&artifacts).unwrap().count() < 2 {
        if child.try_wait().unwrap().is_some() {
            panic!("it ended by itself: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let said: Vec<_> = BufReader::new(child.stderr.take().unwrap()).lines().collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    let text = fs::read_to_string(&file).unwrap();
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let (ran, left) = (summary["skip"].as_u64().unwrap(), summary["not_run"].as_u64().unwrap());
    // Besides, what was to run, and the summary.
    assert_eq!(ran as usize, text.lines().count() - 2);
    assert!(ran > 0 && left > 0 && summary["signal"] == 2, "{summary}");
}
