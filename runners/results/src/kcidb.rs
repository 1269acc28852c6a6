//! Results for KCIDB, the database of kernel tests that kernelci.org keeps: a report of its I/O schema v5.3.
//!
//! Each place is a build (of a kernel that was not built here: KCIDB knows where its source is from no more than we do)
//! and each run of a row a test of it. Rows on simulated silicon and on the model say so in the test's environment.

use serde_json::{Value, json};

use crate::document::{Document, Outcome, Word};
use crate::seat::Seat;

/// The longest log that a test may carry (`log_excerpt`).
const LOG_MAX: usize = 16_384;

/// The report, of results that come from `origin`, as KCIDB's operators know it: lower-case letters, digits and `_`.
pub fn kcidb(document: &Document, origin: &str) -> Value {
    let builds: Vec<Value> =
        document.places.iter().enumerate().map(|(number, seat)| build(number, seat, document, origin)).collect();
    let mut checkouts: Vec<&str> = document.places.iter().map(release).collect();
    checkouts.sort_unstable();
    checkouts.dedup();
    let checkouts: Vec<Value> = checkouts
        .into_iter()
        .map(|release| json!({ "id": checkout_id(origin, release), "origin": origin, "tree_name": "unknown", "comment": format!("Linux {release}") }))
        .collect();
    let tests: Vec<Value> =
        document.results.iter().enumerate().map(|(number, result)| test(number, result, document, origin)).collect();
    json!({
        "version": { "major": 5, "minor": 3 },
        "checkouts": checkouts,
        "builds": builds,
        "tests": tests,
    })
}

/// The kernel of a place, or what stands for it.
fn release(seat: &Seat) -> &str {
    match seat.kernel.as_str() {
        "" => "none",
        release => release,
    }
}

fn checkout_id(origin: &str, release: &str) -> String {
    format!("{origin}:privet-linux-{release}")
}

fn build_id(origin: &str, number: usize, document: &Document) -> String {
    format!("{origin}:privet-{}-place-{number}", document.made)
}

fn build(number: usize, seat: &Seat, document: &Document, origin: &str) -> Value {
    json!({
        "id": build_id(origin, number, document),
        "checkout_id": checkout_id(origin, release(seat)),
        "origin": origin,
        "architecture": "x86_64",
        "comment": seat.name(),
        "misc": { "place": seat },
    })
}

fn test(number: usize, result: &Outcome, document: &Document, origin: &str) -> Value {
    let seat = &document.places[result.place];
    let row = document.rows.iter().find(|row| row.id == result.id);
    let mut test = json!({
        "id": format!("{}-{number}", build_id(origin, result.place, document)),
        "build_id": build_id(origin, result.place, document),
        "origin": origin,
        "path": path(&result.id),
        "status": status(result),
        "environment": {
            "comment": seat.name(),
            "misc": { "place": seat, "is_hardware": seat.is_hardware() },
        },
        "misc": {
            "label": result.label,
            "about": row.map(|row| row.about.as_str()).unwrap_or_default(),
            "seed": result.seed,
            "repeat": result.repro,
            "verdict": result.verdict.name(),
        },
    });
    if result.verdict != Word::Missing {
        test["duration"] = json!(result.duration_us as f64 / 1e6);
    }
    if !result.reason.is_empty() {
        test["comment"] = json!(result.reason);
    }
    if !result.details.is_empty() {
        test["log_excerpt"] = json!(excerpt(&result.details));
    }
    let shard = &document.shards[result.shard];
    if !shard.began.is_empty() {
        test["start_time"] = json!(shard.began);
    }
    test
}

/// `kvm.privet.` and the id, in the characters that KCIDB allows.
fn path(id: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    format!("kvm.privet.{}", id.chars().map(allowed).collect::<String>())
}

/// What KCIDB calls it. A row that took too long has failed; one that broke says nothing about the kernel.
fn status(result: &Outcome) -> &'static str {
    match result.verdict {
        Word::Pass => "PASS",
        Word::Fail | Word::Timeout => "FAIL",
        Word::Error => "ERROR",
        Word::Missing => "MISS",
        Word::Skip => "SKIP",
    }
}

/// The last lines that fit.
fn excerpt(details: &[String]) -> String {
    let mut length = 0;
    let fits = |line: &&String| {
        length += line.chars().count() + 1;
        length <= LOG_MAX
    };
    let mut lines: Vec<&str> = details.iter().rev().take_while(fits).map(String::as_str).collect();
    lines.reverse();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
