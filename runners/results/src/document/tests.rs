//! `report.schema.json` says what documents are.

use serde_json::{Value, json};

use super::*;
use crate::test_results::{document, fail, pass};

fn schema() -> Value {
    serde_json::from_str(include_str!("../../report.schema.json")).unwrap()
}

/// The schema with nothing else allowed in any object, so that what a type has and the schema has not is seen.
fn strict(mut schema: Value) -> Value {
    fn close(schema: &mut Value) {
        match schema {
            Value::Object(members) => {
                members.values_mut().for_each(close);
                if members.get("type") == Some(&json!("object")) {
                    members.insert("additionalProperties".into(), json!(false));
                }
            }
            Value::Array(items) => items.iter_mut().for_each(close),
            _ => {}
        }
    }
    close(&mut schema);
    schema
}

fn problems(schema: &Value, document: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).unwrap();
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// A document in which nothing is left out.
fn full() -> Document {
    let mut full = document(vec![pass("upm.a.1"), fail("upm.a.2", "slot 3: succeeded, expected EEXIST")]);
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    full.places[0] = Seat {
        host: "n1".into(),
        machine: Some("sim".into()),
        module_params: words(&["kvm.tdp_mmu=Y"]),
        defect: Some("hole-not-zeroed".into()),
        ..full.places[0].clone()
    };
    let (test, function) = ("guest_memfd_test".to_owned(), "test_fallocate".to_owned());
    full.rows[0] = RowFacts {
        basis: words(&["virt/kvm/guest_memfd.c"]),
        needs: words(&["a kernel"]),
        upstream: vec![crate::run_file::Counterpart { test: test.clone(), function, exceeded: true }],
        ..full.rows[0].clone()
    };
    full.results[1] = Outcome {
        lacks: Some(LackOf::VmType),
        schedule: Some(u64::MAX),
        details: words(&["kernel log: WARNING"]),
        earlier: vec![Attempt { verdict: Verdict::Timeout, reason: "30 s".into(), duration_us: 30_000_000 }],
        quarantined: Some(Excuse { reason: "known".into(), until: "2026-12-31".into() }),
        surprise: Some("it passed".into()),
        ..full.results[1].clone()
    };
    full.shards[0] = Shard { trouble: Some("the host is tainted".into()), ..full.shards[0].clone() };
    let (verdict, relation) = (Some("skip".into()), "stricter".into());
    full.upstream = vec![UpstreamVerdict { test, verdict, reason: String::new(), relation }];
    let (columns, lines) = (words(&["upm", "row"]), vec![words(&["done", "a.1"])]);
    full.truth_tables = vec![TruthTable { title: "What becomes".into(), columns, lines }];
    full.coverage = vec![CoveredFile { file: "mmu.c".into(), executed: 1, lines: 2 }];
    full.mutants = vec![MutantTrial { name: "mmu.c:1".into(), fate: "killed".into(), by: Some("upm.a.1".into()) }];
    full
}

/// The names of members that objects have, with what leads to them.
fn members(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            let path = format!("{path}.{name}");
            members(value, &path, into);
            into.insert(path);
        }),
        Value::Array(items) => items.iter().for_each(|item| members(item, path, into)),
        _ => {}
    }
}

/// The same of what a schema describes.
fn described(root: &Value, schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|of| of.strip_prefix("#/$defs/")) {
        described(root, &root["$defs"][name], path, into);
    }
    if !schema["items"].is_null() {
        described(root, &schema["items"], path, into);
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        described(root, schema, &path, into);
        into.insert(path);
    }
}

#[test]
fn the_schema_has_every_member_that_there_is_and_no_other() {
    let (schema, full) = (schema(), serde_json::to_value(full()).unwrap());
    assert_eq!(problems(&strict(schema.clone()), &full), [""; 0]);
    let (mut in_documents, mut in_schema) = (BTreeSet::new(), BTreeSet::new());
    members(&full, "", &mut in_documents);
    described(&schema, &schema, "", &mut in_schema);
    assert_eq!(in_documents, in_schema);
}

#[test]
fn the_schema_knows_every_word() {
    let schema = schema();
    let names = |words: &[&str]| json!(words);
    assert_eq!(schema["$defs"]["result"]["properties"]["verdict"]["enum"], names(&Word::ALL.map(Word::name)));
    for state in [ShardState::Whole, ShardState::Cut, ShardState::Missing] {
        let mut document = full();
        document.shards[0].state = state;
        assert_eq!(problems(&schema, &serde_json::to_value(document).unwrap()), [""; 0]);
    }
}

#[test]
fn documents_of_little_are_valid_and_others_are_not() {
    let schema = schema();
    let valid = |document: &Document| serde_json::to_value(document).unwrap();
    assert_eq!(problems(&schema, &valid(&Document::empty("1", "2026-01-01T00:00:00Z".into()))), [""; 0]);
    assert_eq!(problems(&schema, &valid(&document(vec![pass("upm.a.1")]))), [""; 0]);
    let mut nowhere = full();
    (nowhere.places[0], nowhere.results[0]) =
        (Seat::unknown(), Outcome::missing("upm.a.1", "upm.a.1", "nothing came back".into(), 0, 0));
    assert_eq!(problems(&schema, &valid(&nowhere)), [""; 0]);

    let mut other = valid(&full());
    other["more"] = json!("a newer privet says more");
    assert_eq!(problems(&schema, &other), [""; 0]);
    for (pointer, wrong) in
        [("/version", json!(2)), ("/results/0/verdict", json!("ok")), ("/results/0/place", json!(-1))]
    {
        let mut document = valid(&full());
        *document.pointer_mut(pointer).unwrap() = wrong;
        assert_eq!(problems(&schema, &document).len(), 1, "{pointer}");
    }
}
