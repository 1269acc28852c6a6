use super::*;
use crate::test_results::{document, on_model, pass, skip};

#[test]
fn what_would_enable_most_rows_comes_first() {
    let document = document(vec![
        skip("upm.a.1", "needs a"),
        on_model(pass("upm.a.1")),
        skip("upm.a.2", "needs a"),
        skip("upm.a.3", "needs b"),
        skip("upm.a.4", "needs b"),
        pass("upm.a.5"),
    ]);
    let reasons = skip_reasons(&document);
    let told: Vec<_> =
        reasons.iter().map(|reason| (reason.reason.as_str(), reason.nowhere.len(), reason.elsewhere.len())).collect();
    assert_eq!(told, [("needs b", 2, 0), ("needs a", 1, 1)]);
}
