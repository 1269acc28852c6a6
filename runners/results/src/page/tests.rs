use privet_report::CaseReport;

use super::*;
use crate::test_results::{Run, document, fail, on_model, pass, skip};

fn red() -> CaseReport {
    let details = [
        "exit 1 +10 us vm 1 vcpu 0: Nop: done",
        "exit 2 +15 us vm 1 vcpu 0: Convert 0x1 0x1: HYPERCALL 12 (0x1, 0x1, 0x10), flags 0x1 at rip 0x1002d6 `vmmcall`",
        "host +18 us vm 1: SET_MEMORY_ATTRIBUTES private, gpa 0x1000, 0x1000 bytes",
        "kernel log: [    1.000002] WARNING: <it> broke",
    ];
    CaseReport {
        details: details.map(String::from).to_vec(),
        ..fail("upm.a.2", "slot 3: succeeded, expected EEXIST; <b>")
    }
}

#[test]
fn a_red_row_is_told_with_its_step_its_picture_and_what_repeats_it() {
    let html = page(&document(vec![pass("upm.a.1"), red(), skip("upm.a.3", "needs a <kernel>")]));
    for part in [
        "<dt>step</dt><dd>slot 3</dd><dt>expected</dt><dd class=\"good\">EEXIST</dd><dt>seen</dt><dd class=\"bad\">succeeded</dd>",
        "<code>vmmcall</code>",
        "<svg role=\"img\"",
        "WARNING: &lt;it&gt; broke",
        "privet run --exact upm.a.2",
        "needs a &lt;kernel&gt;",
        "No verdict here was obtained on hardware.",
    ] {
        assert!(html.contains(part), "{part} is not in {html}");
    }
    // Every link leads somewhere.
    for target in html.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(html.contains(&format!("id=\"{target}\"")), "{target}");
    }
    assert!(!html.contains("http"), "a page without network");
}

#[test]
fn shapes_of_the_picture_are_the_events() {
    let html = page(&document(vec![red()]));
    for (class, count) in [("mark conversion", 2 + 1), ("mark done", 1 + 1), ("mark host-step", 0)] {
        // The legend has one more of each that is there.
        assert_eq!(html.matches(&format!("class=\"{class}\"")).count(), count, "{class}");
    }
}

#[test]
fn a_row_in_two_places_has_two_cells_and_can_be_chosen() {
    let html = page(&document(vec![pass("upm.a.2"), on_model(red())]));
    assert!(html.contains("<tr id=\"upm.a.2\" class=\"is-red is-pass is-differ\">"), "{html}");
    assert!(
        html.contains("<td class=\"pass\">pass") && html.contains("<td class=\"fail\"><a href=\"#red-1\">fail</a>"),
        "{html}"
    );
}

#[test]
fn upstreams_counterpart_is_told_with_its_verdict() {
    let mut document = document(vec![pass("upm.a.1")]);
    let (test, function) = ("guest_memfd_test".to_owned(), "test_fallocate".to_owned());
    document.rows[0].upstream = vec![crate::run_file::Counterpart { test: test.clone(), function, exceeded: true }];
    let (verdict, relation) = (Some("skip".to_owned()), "stricter".to_owned());
    document.upstream = vec![crate::document::UpstreamVerdict { test, verdict, reason: String::new(), relation }];
    let html = page(&document);
    assert!(html.contains("guest_memfd_test: test_fallocate (which checks less): <b>skip</b>"), "{html}");
    assert!(html.contains("<b>stricter</b>"), "{html}");
}

#[test]
fn a_cell_of_a_truth_table_leads_to_its_row() {
    let mut document = document(vec![pass("upm.a.1")]);
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    document.truth_tables = vec![crate::document::TruthTable {
        title: "What becomes".into(),
        columns: words(&["upm", "snp", "row"]),
        lines: vec![words(&["done", "faulted", "a.1"])],
    }];
    let html = page(&document);
    assert!(html.contains("<td><a href=\"#upm.a.1\">done</a></td><td>faulted</td><td>a.1</td>"), "{html}");
    assert!(html.contains("<tr id=\"upm.a.1\""), "{html}");
}

#[test]
fn runs_that_did_not_come_back_are_red() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.json");
    Run::of(&["upm.a.1", "upm.a.2"]).with(pass("upm.a.1")).write(&path);
    let mut collector = crate::collect::Collector::new("1", String::new(), Vec::new());
    collector.add(&path).unwrap();
    let html = page(&collector.finish());
    assert!(
        html.contains("Something is red") && html.contains("<td class=\"missing\"><a href=\"#red-1\">missing</a>"),
        "{html}"
    );
}
