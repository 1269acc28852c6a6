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
        for red in &edit.red {
            assert!(rows.keys().any(|row| matches(red, row)), "{name}: there is no row {red}");
        }
    }
}

/// Rows that other settings of the modules need, another CPU or another vendor's: no kernel is tried with those.
const ELSEWHERE: [&str; 6] = [
    "lifecycle.types_without_mmio_caching",
    "mmio.ioeventfd.ept",
    "mmio.ioeventfd.without_caching",
    "mmio.ioeventfd.without_next_rip",
    "mmio.nothing_is_cached",
    "mmio.slot_appears.cost_of_fresh_memory.ept",
];

/// Whether a name fits a pattern in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => {
            name.strip_prefix(head).is_some_and(|tail| (0..=tail.len()).any(|at| matches(rest, &tail[at..])))
        }
    }
}

#[test]
fn every_row_about_encrypted_guests_has_an_edit_that_it_has_to_notice() {
    let red: Vec<String> = edits().into_iter().flat_map(|edit| edit.red).collect();
    let is_of_sev = |types: &BTreeSet<&str>| ["sev", "sev_es", "snp"].iter().any(|vm| types.contains(vm));
    let open: Vec<String> = rows()
        .into_iter()
        .filter(|(name, types)| is_of_sev(types) && !ELSEWHERE.contains(&name.as_str()))
        .filter(|(name, _)| !red.iter().any(|red| matches(red, name)))
        .map(|(name, _)| name)
        .collect();
    assert!(open.is_empty(), "no edit of the kernel turns these red: {open:?}");
}

#[test]
fn every_row_about_the_launch_of_tds_and_what_they_ask_has_an_edit_that_it_has_to_notice() {
    let red: BTreeSet<String> = edits().into_iter().flat_map(|edit| edit.red).collect();
    let open: Vec<String> = rows()
        .into_iter()
        .filter(|(name, types)| types.iter().eq(["tdx"].iter()) && !red.contains(name))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("launch.") || name.starts_with("tdvmcall."))
        .collect();
    assert!(open.is_empty(), "no edit of the kernel turns these red: {open:?}");
}
