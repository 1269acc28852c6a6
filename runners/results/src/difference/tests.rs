use privet_report::CaseReport;

use super::*;
use crate::test_results::{document, fail, on_model, pass, skip};

fn told(difference: &Difference) -> Vec<String> {
    difference.changes.iter().map(|change| format!("{} {}", change.kind, change.label)).collect()
}

#[test]
fn changes_are_told_and_what_stays_is_not() {
    let before = document(vec![pass("a"), fail("b", "x"), skip("c", "x"), fail("d", "x"), pass("e"), pass("f")]);
    let now =
        document(vec![fail("a", "y"), pass("b"), pass("c"), fail("d", "y"), skip("e", "no upm"), fail("g", "new")]);
    let difference = Difference::between(&before, &now);
    assert_eq!(told(&difference), ["new failure a", "new failure g", "new skip e", "gone f", "fixed b", "runs now c"]);
    assert_eq!((difference.compared, difference.still_red), (5, 1));
    assert!(difference.is_worse());
    assert!(difference.in_words().contains("new skip     e (pass -> skip): no upm\n"), "{}", difference.in_words());
    assert!(Difference::between(&now, &now).changes.is_empty());
}

#[test]
fn a_row_is_slower_if_that_is_no_noise() {
    let lasting = |id: &str, us: u64| CaseReport { duration_us: us, ..pass(id) };
    let before = document(vec![lasting("a", 300_000), lasting("b", 1_000), lasting("c", 900_000)]);
    let now = document(vec![lasting("a", 700_000), lasting("b", 100_000), lasting("c", 1_500_000)]);
    let difference = Difference::between(&before, &now);
    assert_eq!(told(&difference), ["slower a"]);
    assert!(!difference.is_worse());
    assert_eq!(difference.duration_us, [1_201_000, 2_300_000]);
}

#[test]
fn columns_are_held_against_the_most_alike() {
    let intel = |report: CaseReport| CaseReport { vendor: "intel".into(), ..report };
    let newer = |report: CaseReport| CaseReport { kernel: "7.4".into(), ..report };
    let both = |reports: Vec<CaseReport>| document(reports);
    let before = both(vec![pass("a"), intel(pass("a")), on_model(pass("a"))]);
    let now = both(vec![newer(intel(fail("a", "y"))), newer(pass("a"))]);
    let difference = Difference::between(&before, &now);
    assert_eq!(told(&difference), ["new failure a"]);
    assert_eq!(
        difference.places,
        [
            ["rig, machine sim, Linux 7.3.4, kvm_amd", "rig, machine sim, Linux 7.4, kvm_amd"],
            ["rig, machine sim, Linux 7.3.4, kvm_intel", "rig, machine sim, Linux 7.4, kvm_intel"]
        ]
    );
    assert_eq!(difference.alone, ["the model, which is no hardware, kvm_amd"]);
}

#[test]
fn another_selection_is_told_in_one_line() {
    let many: Vec<CaseReport> = (0..30).map(|number| pass(&format!("upm.a.{number}"))).collect();
    let difference = Difference::between(&document(many), &document(vec![pass("upm.a.0")]));
    let text = difference.in_words();
    assert_eq!(text.matches("gone").count(), 2, "{text}");
    assert!(text.contains("29 results are not there any more"), "{text}");
}
