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
    bug: Option<String>,
    /// The VM types that it is about; all, if there are none.
    #[serde(default)]
    vms: Vec<String>,
    red: Vec<String>,
}

impl Edit {
    /// Whether the row of this name has to be red for VMs of this type.
    fn names(&self, vm: &str, row: &str) -> bool {
        (self.vms.is_empty() || self.vms.iter().any(|of| of == vm)) && self.red.iter().any(|red| matches(red, row))
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Operator {
    Never,
    Always,
    Succeed,
    Efault,
    Negate,
    OtherErrno,
    PlusOne,
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
        assert!(edit.bug.as_ref().is_none_or(|bug| !bug.is_empty()), "{name}");
        let has_target = [Operator::Drop, Operator::PlusOne].contains(&edit.operator);
        assert_eq!(edit.target.is_some(), has_target, "{name}");
        assert_eq!(edit.ordinal.is_none_or(|ordinal| ordinal == 0), edit.operator == Operator::Empty, "{name}");
        assert!(!edit.red.is_empty(), "{name}");
        for red in &edit.red {
            let is_told =
                |types: &BTreeSet<&str>| edit.vms.is_empty() || edit.vms.iter().any(|vm| types.contains(vm.as_str()));
            assert!(
                rows.iter().any(|(row, types)| matches(red, row) && is_told(types)),
                "{name}: there is no row {red}"
            );
        }
    }
}

/// Rows that other settings of the modules need, another CPU or another vendor's, or that are red by a bug of every kernel:
/// no kernel is tried with those.
const ELSEWHERE: [&str; 8] = [
    "lifecycle.types_without_mmio_caching",
    "mmio.ioeventfd.ept",
    "mmio.ioeventfd.without_caching",
    "mmio.ioeventfd.without_next_rip",
    "mmio.nothing_is_cached",
    "mmio.slot_appears.cost_of_fresh_memory.ept",
    "psc.exit_flags",
    "slots.dirty_log.initially_set.huge_page.split_late",
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
    const ENCRYPTED: [&str; 3] = ["sev", "sev_es", "snp"];
    let edits = edits();
    let is_of_sev = |types: &BTreeSet<&str>| ENCRYPTED.iter().any(|vm| types.contains(vm));
    let open: Vec<String> = rows()
        .into_iter()
        .filter(|(name, types)| is_of_sev(types) && !ELSEWHERE.contains(&name.as_str()))
        .filter(|(name, _)| !edits.iter().any(|edit| ENCRYPTED.iter().any(|vm| edit.names(vm, name))))
        .map(|(name, _)| name)
        .collect();
    assert!(open.is_empty(), "no edit of the kernel turns these red: {open:?}");
}

#[test]
fn every_row_about_the_launch_of_tds_and_what_they_ask_has_an_edit_that_it_has_to_notice() {
    let edits = edits();
    let open: Vec<String> = rows()
        .into_iter()
        .filter(|(name, types)| types.iter().eq(["tdx"].iter()) && !edits.iter().any(|edit| edit.names("tdx", name)))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("launch.") || name.starts_with("tdvmcall."))
        .collect();
    assert!(open.is_empty(), "no edit of the kernel turns these red: {open:?}");
}
