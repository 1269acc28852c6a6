//! What is done with results, from outside: `privet collect`, `privet diff`, `privet report`, `privet fleet` and
//! `privet probe` for schedulers.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use privet_results::document::Document;
use serde_json::Value;
use tempfile::TempDir;

const ROW: &str = "upm.punch.while_shared";

fn privet(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_privet")).args(args).current_dir(dir).output().unwrap()
}

/// What a command prints that exits with this status.
fn says(dir: &Path, args: &[&str], status: i32) -> String {
    let output = privet(dir, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory with `good.json` and `bad.json`: the same rows on the model as it is and with a defect.
fn two_results() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let run = ["run", "--on", "model", "--format", "json", "--exact", ROW];
    says(dir.path(), &[&run[..], &["-o", "good.json"]].concat(), 0);
    says(dir.path(), &[&run[..], &["-o", "bad.json", "--defect", "hole-not-zeroed"]].concat(), 1);
    dir
}

#[test]
fn results_become_one_that_shows_where_they_differ() {
    let dir = two_results();
    let told = says(dir.path(), &["collect", "good.json", "bad.json", "-o", "report.json"], 1);
    assert!(told.contains(&format!("pass    {ROW} [1]\nfail    {ROW} [2]: the guest sees")), "{told}");
    assert!(told.ends_with("1 row in 2 places: 1 passed, 1 failed\n"), "{told}");
    let document = Document::read(&dir.path().join("report.json")).unwrap();
    assert_eq!((document.rows.len(), document.places.len(), document.results.len()), (1, 2, 2));
    assert!(!document.rows[0].basis.is_empty());
    let steps = |line: &&String| line.starts_with("host +");
    assert!(document.results[1].details.iter().filter(steps).count() > 0, "{:?}", document.results[1].details);
    // The same in the words of others.
    let ktap = says(dir.path(), &["collect", "report.json", "--format", "ktap-flat"], 1);
    assert!(ktap.contains("\nok 1 upm.punch.while_shared.place_1\n"), "{ktap}");
    assert!(ktap.contains("\nnot ok 2 upm.punch.while_shared.place_2\n"), "{ktap}");
    let junit = says(dir.path(), &["collect", "report.json", "--format", "junit"], 1);
    let junit = quick_junit::Report::deserialize_from_str(&junit).unwrap();
    assert_eq!((junit.tests, junit.failures), (2, 1));
    let kcidb: Value =
        serde_json::from_str(&says(dir.path(), &["collect", "report.json", "--format", "kcidb"], 1)).unwrap();
    assert_eq!(kcidb["tests"][1]["status"], "FAIL");
}

#[test]
fn a_difference_is_told_and_a_new_failure_is_one() {
    let dir = two_results();
    let told = says(dir.path(), &["diff", "good.json", "bad.json"], 1);
    assert!(told.starts_with(&format!("new failure  {ROW} (pass -> fail): the guest sees")), "{told}");
    assert!(told.contains("1 results in both: 1 new failure"), "{told}");
    let told = says(dir.path(), &["diff", "bad.json", "good.json", "--format", "json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["changes"][0]["kind"], "fixed");
    let told = says(dir.path(), &["diff", "good.json", "good.json"], 0);
    assert!(told.contains("no difference"), "{told}");
}

#[test]
fn a_page_has_the_red_row_and_what_repeats_it() {
    let dir = two_results();
    says(dir.path(), &["report", "good.json", "bad.json", "-o", "page.html"], 1);
    let page = fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains(&format!("privet run --exact {ROW} --on model")), "{page}");
    assert!(page.contains("<svg") && page.contains("SET_MEMORY_ATTRIBUTES private"), "{page}");
}

#[test]
fn what_is_no_result_is_refused_in_one_line() {
    let dir = two_results();
    fs::write(dir.path().join("other.json"), "{}\n").unwrap();
    for args in [&["collect", "other.json"][..], &["report", "."], &["diff", "good.json", "missing.json"], &["collect"]]
    {
        let output = privet(dir.path(), args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{args:?}: {stderr}");
    }
    assert!(!dir.path().join("report.html").exists());
}

#[test]
fn a_fleet_is_written_and_what_never_came_back_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let told = says(
        dir.path(),
        &[
            "fleet",
            "slurm",
            "--out",
            "f",
            "--shards",
            "2",
            "upm.punch.while_shared",
            "upm.punch.within",
            "--",
            "--on",
            "model",
        ],
        0,
    );
    assert!(told.starts_with("rows          2 jobs, 2 rows, any node, 6 min\n"), "{told}");
    let run =
        ["run", "--on", "model", "--format", "json", "-o", "f/results/rows-2.json", "--partition", "2/2", "--exact"];
    says(dir.path(), &[&run[..], &["upm.punch.while_shared", "upm.punch.within"]].concat(), 0);
    let told = says(dir.path(), &["collect", "f", "--format", "pretty"], 1);
    assert!(told.contains("missing results/rows-1.json: 1 of 1 rows without a verdict"), "{told}");
    // A second fleet would mix its results with those of the first.
    let again = privet(dir.path(), &["fleet", "slurm", "--out", "f", "plain.punch"]);
    assert_eq!(again.status.code(), Some(2));
}

#[test]
fn rows_of_a_fleet_go_where_their_vms_are_and_risky_ones_come_last() {
    let dir = tempfile::tempdir().unwrap();
    let told = says(dir.path(), &["fleet", "slurm", "--out", "f", "--require", "snp", "--jobs", "3"], 0);
    let names: Vec<&str> = told.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let first_risky = names.iter().position(|name| name.ends_with("-risky")).unwrap();
    assert!(names[first_risky..names.len() - 1].iter().all(|name| name.ends_with("-risky")), "{told}");
    let script = fs::read_to_string(dir.path().join("f/snp.sbatch")).unwrap();
    assert!(script.contains("--constraint=snp\n") && script.contains("--jobs 3 --on host --require snp"), "{script}");
    assert!(script.contains("--licenses=sev_es_asid:"), "{script}");
    // Every row is in one array.
    let listed = says(dir.path(), &["list"], 0).lines().count();
    let lists = fs::read_dir(dir.path().join("f/rows")).unwrap();
    let planned: usize = lists.map(|list| fs::read_to_string(list.unwrap().path()).unwrap().lines().count()).sum();
    assert_eq!(planned, listed);
}

#[test]
fn options_of_jobs_are_looked_at_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for options in [&["--on", "moon"][..], &["--partition", "1/2"], &["upm.punch"], &["--no-such-option"]] {
        let output = privet(dir.path(), &[&["fleet", "slurm", "--out", "f", "plain.punch", "--"], options].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{options:?}: {stderr}");
    }
    assert!(!dir.path().join("f").exists());
}

#[test]
fn a_node_is_told_to_schedulers() {
    let dir = tempfile::tempdir().unwrap();
    assert!(says(dir.path(), &["probe", "--format", "slurm"], 0).starts_with("NodeName="));
    assert!(says(dir.path(), &["probe", "--format", "nfd"], 0).contains("kernel-version.full="));
    let json: Value = serde_json::from_str(&says(dir.path(), &["probe", "--format", "json"], 0)).unwrap();
    assert!(json["cpus"].as_u64().unwrap() > 0, "{json}");
}
