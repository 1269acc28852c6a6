//! The edits of the kernel that rows have to notice, held against the table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

/// What a file of `kernel-edits` holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edits {
    edit: Vec<Edit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    name: String,
    file: String,
    function: String,
    operator: Operator,
    target: Option<String>,
    ordinal: Option<u32>,
    about: String,
    red: Vec<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Operator {
    Never,
    Always,
    Succeed,
    Efault,
    Drop,
    Empty,
}

fn edits() -> Vec<Edit> {
    privet_cases::KERNEL_EDITS.iter().flat_map(|text| toml::from_str::<Edits>(text).unwrap().edit).collect()
}

/// Names of rows and the VM types that they are told for.
fn rows() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut rows: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for entry in privet_cases::table() {
        rows.entry(entry.name.clone()).or_default().insert(entry.vm.name());
    }
    rows
}

#[test]
fn every_file_of_edits_is_part_of_the_table() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel-edits");
    for entry in directory.read_dir().unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(privet_cases::KERNEL_EDITS.contains(&text.as_str()), "not in cases/src/kernel_edits.rs: {text}");
    }
}

#[test]
fn an_edit_is_at_one_place_and_turns_rows_red_that_there_are() {
    let (rows, mut names) = (rows(), BTreeSet::new());
    for edit in edits() {
        let name = &edit.name;
        assert!(names.insert(name.clone()), "{name} is there twice");
        assert!(edit.file.ends_with(".c") && !edit.function.is_empty() && !edit.about.is_empty(), "{name}");
        assert_eq!(edit.target.is_some(), edit.operator == Operator::Drop, "{name}");
        assert_eq!(edit.ordinal.is_none_or(|ordinal| ordinal == 0), edit.operator == Operator::Empty, "{name}");
        assert!(!edit.red.is_empty(), "{name}");
        edit.red.iter().for_each(|row| assert!(rows.contains_key(row), "{name}: there is no row {row}"));
    }
}

#[test]
fn every_group_about_running_encrypted_guests_has_an_edit_that_it_has_to_notice() {
    let red: BTreeSet<String> = edits().into_iter().flat_map(|edit| edit.red).collect();
    for group in ["access", "accept", "convert", "exits", "ghcb", "mmio", "populate", "psc"] {
        let prefix = format!("{group}.");
        assert!(red.iter().any(|row| row.starts_with(&prefix)), "no edit of the kernel turns a row of {group} red");
    }
}

#[test]
fn every_row_about_the_launch_of_encrypted_guests_has_an_edit_that_it_has_to_notice() {
    let red: BTreeSet<String> = edits().into_iter().flat_map(|edit| edit.red).collect();
    let is_of_sev_alone = |types: &BTreeSet<&str>| types.iter().all(|vm| ["sev", "sev_es", "snp"].contains(vm));
    let open: Vec<String> = rows()
        .into_iter()
        .filter(|(name, types)| name.starts_with("launch.") && is_of_sev_alone(types) && !red.contains(name))
        .map(|(name, _)| name)
        .collect();
    assert!(open.is_empty(), "no edit of the kernel turns these red: {open:?}");
}
