//! `privet collect`: many results as one.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use privet_harness::vendor::Vendor;
use privet_report::{CaseReport, Ending, Place, Verdict, one_line};
use privet_results::collect::Collector;
use privet_results::document::{Document, Outcome, ShardState, Word};
use privet_results::kcidb;

use super::show::show;
use crate::args::{Collect, CollectFormat};
use crate::exit::{Early, Status};
use crate::output::Output;
use crate::plan::Job;
use crate::report::{Format, in_format};
use crate::row_facts::all_row_facts;
use crate::summary::Summary;

/// Collects results and writes them: `Failed` if something in them is red or missing, `NothingRan` if nothing ran.
///
/// # Errors
/// If a result cannot be read, or nothing can be written.
pub fn collect(args: &Collect, out: impl Write) -> Result<Status, Early> {
    let document = collected(&args.results.results)?;
    let text = match args.format {
        CollectFormat::Json => document.to_json(),
        CollectFormat::Pretty => in_words(&document),
        CollectFormat::Kcidb => format!("{:#}\n", kcidb::kcidb(&document, &args.origin)),
        CollectFormat::Ktap => retold(&document, Format::Ktap)?,
        CollectFormat::KtapFlat => retold(&document, Format::KtapFlat)?,
        CollectFormat::Junit => retold(&document, Format::Junit)?,
    };
    match &args.output {
        None => show(&text, out)?,
        Some(path) => {
            let mut output = Output::create(path, "--output")?;
            let written = output.write_all(text.as_bytes()).and_then(|()| output.finish());
            written.map_err(|error| Early::usage(format!("cannot write {}: {error}", path.display())))?;
            show(&in_words(&document), out)?
        }
    };
    Ok(status(&document))
}

/// All of these results as one.
///
/// # Errors
/// If one cannot be read.
pub(super) fn collected(paths: &[PathBuf]) -> Result<Document, Early> {
    let now = DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Secs, true);
    let mut collector = Collector::new(env!("CARGO_PKG_VERSION"), now, all_row_facts());
    for path in paths {
        collector.add(path).map_err(|error| Early::usage(error.to_string()))?;
    }
    Ok(collector.finish())
}

/// The exit status that goes with it.
pub(super) fn status(document: &Document) -> Status {
    match document.is_red() {
        true => Status::Failed,
        false if document.counts().with(Word::Pass) == 0 => Status::NothingRan,
        false => Status::Passed,
    }
}

/// What is red, missing, or differs between places; and the counts.
fn in_words(document: &Document) -> String {
    let mut text = String::new();
    let differs = document.disagreeing();
    for (id, cells) in document.matrix() {
        let results = || cells.values().flatten();
        // What is missing is told by run below.
        let is_told = |result: &&&Outcome| {
            !matches!(result.verdict, Word::Missing | Word::Skip) && (result.is_red() || differs.contains(id))
        };
        for result in results().filter(is_told) {
            let reason = match result.reason.as_str() {
                "" => String::new(),
                reason => format!(": {}", one_line(reason)),
            };
            let verdict = result.verdict.name();
            text += &format!("{verdict:<8}{} [{}]{reason}\n", result.label, result.place + 1);
        }
    }
    for shard in document.shards.iter().filter(|shard| shard.state != ShardState::Whole || shard.trouble.is_some()) {
        let trouble = shard.trouble.as_ref().map_or_else(String::new, |trouble| format!(": {}", one_line(trouble)));
        let (state, name) = (shard.state.name(), &shard.name);
        let lost = match shard.planned {
            0 => "nothing came back, and nobody knows of which rows".to_owned(),
            planned => format!("{} of {planned} rows without a verdict", shard.missing),
        };
        text += &format!("{state:<8}{name}: {lost}{trouble}\n");
    }
    for (number, seat) in document.places.iter().enumerate() {
        let counts = privet_results::difference::counts_in(document, number);
        text += &format!("[{}] {}: {}\n", number + 1, seat.name(), counts.in_words());
    }
    text + &document.in_words() + "\n"
}

/// The document as a run in one of its formats would have told it. What is missing broke.
fn retold(document: &Document, format: Format) -> Result<String, Early> {
    let several = document.places.len() > 1;
    let jobs: Vec<Job> = document.results.iter().map(|result| job(result, several)).collect();
    let endings: Vec<Ending> = document.results.iter().map(|result| ending(result, document)).collect();
    let mut summary = Summary::default();
    endings.iter().for_each(|ending| summary.add(ending));
    summary.duration_us = document.shards.iter().filter_map(|shard| shard.duration_us).max().unwrap_or_default();
    let mut text = Vec::new();
    let told = || -> io::Result<()> {
        let mut report = in_format(format, None, Box::new(&mut text));
        report.begin(&jobs)?;
        for (index, ending) in endings.iter().enumerate() {
            report.finished(index, ending)?;
        }
        report.end(&summary)
    }();
    told.map_err(|error| Early::usage(format!("cannot write the report: {error}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A result as a job, whose name tells its place if there are several.
fn job(result: &Outcome, several: bool) -> Job {
    let label = if several { format!("{}.place_{}", result.label, result.place + 1) } else { result.label.clone() };
    Job {
        id: result.id.clone(),
        label,
        seed: result.seed,
        limit: Duration::ZERO,
        keep: false,
        vendor: Vendor::Amd,
        schedules: Vec::new(),
    }
}

fn ending(result: &Outcome, document: &Document) -> Ending {
    let seat = &document.places[result.place];
    let (verdict, reason) = match result.verdict {
        Word::Pass => (Verdict::Pass, result.reason.clone()),
        Word::Fail => (Verdict::Fail, result.reason.clone()),
        Word::Error => (Verdict::Error, result.reason.clone()),
        Word::Timeout => (Verdict::Timeout, result.reason.clone()),
        Word::Skip => (Verdict::Skip, result.reason.clone()),
        Word::Missing => (Verdict::Error, format!("missing: {}", result.reason)),
    };
    let report = CaseReport {
        id: result.id.clone(),
        on: seat.on.unwrap_or(Place::Host),
        machine: seat.machine.clone(),
        kernel: seat.kernel.clone(),
        vendor: seat.vendor.clone(),
        vm: result.id.split('.').next().unwrap_or_default().to_owned(),
        module_params: seat.module_params.clone(),
        defect: seat.defect.clone(),
        verdict,
        reason,
        lacks: result.lacks,
        duration_us: result.duration_us,
        exits: result.exits,
        seed: result.seed,
        schedule: result.schedule,
        repro: result.repro.clone(),
        details: result.details.clone(),
    };
    let (earlier, quarantined, surprise) =
        (result.earlier.clone(), result.quarantined.clone(), result.surprise.clone());
    Ending { earlier, quarantined, surprise, ..Ending::of(report) }
}
