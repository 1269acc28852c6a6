use std::fs;

use tempfile::TempDir;

use super::*;
use crate::fleet_plan::{Array, PlannedShard};
use crate::skips::skip_reasons;
use crate::test_results::{Run, ended, fail, on_model, pass, skip};

fn facts(ids: &[&str]) -> Vec<RowFacts> {
    ids.iter().map(|id| RowFacts { id: id.to_string(), about: format!("about {id}"), ..RowFacts::default() }).collect()
}

fn collected(dir: &Path) -> Document {
    let mut collector = Collector::new("1", "2026-01-01T00:00:00Z".into(), facts(&["upm.a.1", "upm.a.2", "upm.b.1"]));
    collector.add(dir).unwrap();
    collector.finish()
}

fn verdicts(document: &Document) -> Vec<(String, Word, usize)> {
    document.results.iter().map(|result| (result.label.clone(), result.verdict, result.place)).collect()
}

/// The plan of a fleet with one array of one shard for each of these lists of rows.
fn plan(dir: &TempDir, work: Work, shards: &[&[&str]]) {
    let shard = |(number, rows): (usize, &&[&str])| PlannedShard {
        file: format!("results/upm-{}.json", number + 1),
        rows: rows.iter().map(ToString::to_string).collect(),
    };
    let shards = shards.iter().enumerate().map(shard).collect();
    let arrays = vec![Array { name: "upm".into(), features: vec!["upm".into()], shards }];
    let plan = FleetPlan { version: crate::fleet_plan::VERSION, work, arrays };
    fs::create_dir(dir.path().join("results")).unwrap();
    fs::write(dir.path().join(crate::fleet_plan::NAME), serde_json::to_string(&plan).unwrap()).unwrap();
}

#[test]
fn a_shard_that_never_came_back_is_missing_where_its_siblings_ran_and_red() {
    let dir = tempfile::tempdir().unwrap();
    plan(&dir, Work::Rows, &[&["upm.b.1", "upm.a.1"], &["upm.a.2"]]);
    Run::of(&["upm.b.1", "upm.a.1"])
        .with(pass("upm.b.1"))
        .with(pass("upm.a.1"))
        .whole()
        .write(&dir.path().join("results/upm-1.json"));
    let document = collected(dir.path());
    assert_eq!(
        verdicts(&document),
        [("upm.a.1".into(), Word::Pass, 0), ("upm.a.2".into(), Word::Missing, 0), ("upm.b.1".into(), Word::Pass, 0)]
    );
    assert_eq!(document.places.len(), 1);
    assert_eq!(document.shards[1].state, ShardState::Missing);
    assert_eq!(document.rows[1].about, "about upm.a.2", "the table describes what nobody else did");
    assert!(document.is_red());
    assert_eq!(document.counts().in_words(), "2 passed, 1 missing");
}

#[test]
fn what_a_killed_job_has_left_counts_and_the_rest_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    plan(&dir, Work::Rows, &[&["upm.a.1", "upm.a.2"], &["upm.b.1"]]);
    let left = dir.path().join("results/upm-1.json.partial");
    Run::of(&["upm.a.1", "upm.a.2"]).with(pass("upm.a.1")).with(pass("upm.a.2")).write(&left);
    let text = fs::read_to_string(&left).unwrap();
    fs::write(&left, &text[..text.len() - 5]).unwrap();
    // It died before it had written anything.
    fs::write(dir.path().join("results/upm-2.json.partial"), "{\"type\"").unwrap();
    let document = collected(dir.path());
    let words: Vec<Word> = document.results.iter().map(|result| result.verdict).collect();
    assert_eq!(words, [Word::Pass, Word::Missing, Word::Missing]);
    assert!(document.disagreeing().is_empty(), "a verdict that is missing says nothing else than others");
    assert_eq!(
        document.shards.iter().map(|shard| shard.state).collect::<Vec<_>>(),
        [ShardState::Cut, ShardState::Missing]
    );
}

#[test]
fn nothing_came_back_and_nobody_knows_from_where() {
    let dir = tempfile::tempdir().unwrap();
    plan(&dir, Work::Rows, &[&["upm.a.1"]]);
    let document = collected(dir.path());
    assert_eq!(document.places[0].name(), "nobody knows where");
    assert!(document.is_red());
}

#[test]
fn trials_of_a_fleet_are_collected_and_lists_that_are_not_there_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    plan(&dir, Work::KernelMutants, &[&[], &[]]);
    let trial = r#"{"name":"f:negate:1","content":"c","judge":"j","fate":"killed","by":"upm.a.1","reason":"x","rows":1,"milliseconds":2}"#;
    let survivor = r#"{"name":"f:drop:1","content":"c","judge":"j","fate":"survived","rows":1,"milliseconds":2}"#;
    fs::write(dir.path().join("results/upm-1.json"), format!("{trial}\n{survivor}\n")).unwrap();
    let document = collected(dir.path());
    let told: Vec<_> = document.mutants.iter().map(|trial| (trial.fate.as_str(), trial.by.as_deref())).collect();
    assert_eq!(told, [("killed", Some("upm.a.1")), ("survived", None)]);
    assert_eq!(document.shards.len(), 1);
    assert!(document.is_red());
}

#[test]
fn a_slice_that_is_not_in_the_directory_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    for number in [1, 3] {
        let run = Run::of(&["upm.a.1"]).with(pass("upm.a.1")).whole().slice(&format!("{number}/3"));
        run.write(&dir.path().join(format!("{number}.json")));
    }
    let document = collected(dir.path());
    let missing: Vec<&str> = document
        .shards
        .iter()
        .filter(|shard| shard.state == ShardState::Missing)
        .map(|shard| shard.name.as_str())
        .collect();
    assert_eq!(missing, ["slice 2/3"]);
    assert!(document.is_red());
}

#[test]
fn the_same_row_on_two_kernels_stands_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    Run::of(&["upm.a.1"]).with(pass("upm.a.1")).whole().write(&dir.path().join("a.json"));
    let other = on_model(fail("upm.a.1", "it: succeeded, expected EEXIST"));
    Run::of(&["upm.a.1"]).with(other).whole().write(&dir.path().join("b.json"));
    let document = collected(dir.path());
    assert_eq!(document.places.len(), 2);
    assert_eq!(document.disagreeing().into_iter().collect::<Vec<_>>(), ["upm.a.1"]);
    assert_eq!(document.matrix()["upm.a.1"].len(), 2);
}

#[test]
fn a_place_that_is_known_in_part_is_no_place_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut unknown = ended(skip("upm.a.2", "no upm"));
    (unknown.ending.report.kernel, unknown.ending.report.module_params) = (String::new(), Vec::new());
    let mut run = Run::of(&["upm.a.1", "upm.a.2"]).with(pass("upm.a.1"));
    run.file.ended.push(unknown);
    run.whole().write(&dir.path().join("a.json"));
    let document = collected(dir.path());
    assert_eq!(document.places.len(), 1);
    assert_eq!(document.places[0].kernel, "7.3.4");
}

#[test]
fn a_document_is_read_back_and_can_be_collected_again() {
    let dir = tempfile::tempdir().unwrap();
    Run::of(&["upm.a.1", "upm.a.2"])
        .with(pass("upm.a.1"))
        .with(skip("upm.a.2", "no upm"))
        .whole()
        .write(&dir.path().join("a.json"));
    let document = collected(dir.path());
    let file = dir.path().join("report.json");
    fs::write(&file, document.to_json()).unwrap();
    assert_eq!(Document::read(&file).unwrap(), document);
    assert_eq!(collected(&file), document);
    assert_eq!(skip_reasons(&document)[0].nowhere.len(), 1);
}

#[test]
fn other_files_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.json");
    let document = Document::empty("1", String::new());
    let other_version = serde_json::to_string(&Document { version: 9, ..document.clone() }).unwrap();
    let run = "{\"type\":\"run\",\"version\":1}\n".to_owned();
    for text in [String::new(), "# no table\n".into(), "{}".into(), "[1".into(), other_version, run, "hello\n".into()] {
        fs::write(&file, &text).unwrap();
        let mut collector = Collector::new("1", String::new(), Vec::new());
        let error = collector.add(&file).unwrap_err().to_string();
        assert!(error.contains("a.json") && !error.contains('\n'), "{text}: {error}");
    }
    let empty = tempfile::tempdir().unwrap();
    let mut collector = Collector::new("1", String::new(), Vec::new());
    assert!(collector.add(empty.path()).unwrap_err().to_string().contains("has no results"));
}

#[test]
fn what_upstream_says_and_what_was_executed_belongs_to_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let compared = dir.path().join("compare");
    let line = r#"{"type":"comparison","test":"vm_types_test","subtest":null,"upstream":{"verdict":"pass","reason":"","duration_us":1},"functions":1,"covered":1,"rows":[],"relation":"stricter","rows_duration_us":1,"duration_ratio":null}"#;
    fs::write(&compared, format!("{line}\n{{\"type\":\"summary\"}}\n")).unwrap();
    let coverage = dir.path().join("coverage");
    fs::write(&coverage, "TN:upm.a.1\nSF:virt/kvm/guest_memfd.c\nDA:10,3\nDA:11,0\nend_of_record\nTN:upm.a.2\nSF:virt/kvm/guest_memfd.c\nDA:11,1\nDA:12,0\nend_of_record\n").unwrap();
    let table = dir.path().join("table");
    fs::write(&table, "# t\n\n| a |\n|---|\n| b |\n").unwrap();
    let mut collector = Collector::new("1", String::new(), Vec::new());
    for path in [&compared, &coverage, &table] {
        collector.add(path).unwrap();
    }
    let document = collector.finish();
    assert_eq!(document.upstream[0].relation, "stricter");
    assert_eq!((document.coverage[0].executed, document.coverage[0].lines), (2, 3));
    assert_eq!(document.truth_tables[0].title, "t");
}
