use super::*;
use crate::test_results::{document, fail, pass, skip};
use privet_report::CaseReport;

#[test]
fn every_result_is_a_test_of_a_build_that_is_there() {
    let long = CaseReport { details: vec!["x".repeat(1000); 40], ..fail("upm.a.2", "it: saw 1, expected 2") };
    let kcidb = kcidb(&document(vec![pass("upm.a.1"), long, skip("upm.a.3#", "no upm")]), "lab");
    let tests = kcidb["tests"].as_array().unwrap();
    let told: Vec<_> =
        tests.iter().map(|test| (test["path"].as_str().unwrap(), test["status"].as_str().unwrap())).collect();
    assert_eq!(told, [("kvm.privet.upm.a.1", "PASS"), ("kvm.privet.upm.a.2", "FAIL"), ("kvm.privet.upm.a.3_", "SKIP")]);
    assert!(tests.iter().all(|test| test["build_id"] == kcidb["builds"][0]["id"]));
    assert_eq!(kcidb["builds"][0]["checkout_id"], kcidb["checkouts"][0]["id"]);
    assert_eq!(tests[0]["environment"]["misc"]["is_hardware"], false);
    let log = tests[1]["log_excerpt"].as_str().unwrap();
    assert!(log.len() <= LOG_MAX && log.len() > LOG_MAX - 1002);
}
