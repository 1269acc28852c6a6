//! Results for the tests of this crate, as runs leave them.

use std::fs;
use std::path::Path;

use privet_report::{CaseReport, Ending, Place, Verdict};

use crate::collect::Collector;
use crate::document::Document;
use crate::run_file::{self, Began, Ended, Planned, RowFacts, RunFile, Summary};

/// A run of rows on the sim.
pub(crate) struct Run {
    pub(crate) file: RunFile,
}

impl Run {
    /// A run that is to run these rows and has not begun with them.
    pub(crate) fn of(ids: &[&str]) -> Self {
        let began = Began {
            version: run_file::VERSION,
            privet: "1".into(),
            command: vec!["privet".into(), "run".into()],
            seed: 7,
            began: "2026-01-01T00:00:00Z".into(),
            host: "genoa1".into(),
            host_kernel: "7.3.4".into(),
            partition: None,
            plan: ids.iter().map(|id| Planned { label: id.to_string(), id: id.to_string() }).collect(),
            rows: ids
                .iter()
                .map(|id| RowFacts { id: id.to_string(), about: format!("What {id} is."), ..RowFacts::default() })
                .collect(),
        };
        Self { file: RunFile { began, ..RunFile::default() } }
    }

    pub(crate) fn with(mut self, report: CaseReport) -> Self {
        self.file.ended.push(ended(report));
        self
    }

    pub(crate) fn whole(mut self) -> Self {
        self.file.summary = Some(Summary::default());
        self
    }

    pub(crate) fn slice(mut self, slice: &str) -> Self {
        self.file.began.partition = Some(slice.to_owned());
        self
    }

    /// Its text, as the command writes it.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![run_file::first_line(&self.file.began).unwrap()];
        lines.extend(self.file.ended.iter().map(|ended| run_file::case_line(&ended.label, &ended.ending).unwrap()));
        let mut text: String = lines.iter().map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
        if self.file.summary.is_some() {
            text += "{\"type\":\"summary\",\"duration_us\":1000,\"pass\":1}\n";
        }
        text
    }

    pub(crate) fn write(&self, path: &Path) {
        fs::write(path, self.text()).unwrap();
    }
}

/// The end of a row that was run once.
pub(crate) fn ended(report: CaseReport) -> Ended {
    Ended { label: report.id.clone(), ending: Ending::of(report) }
}

fn report(id: &str, verdict: Verdict, reason: &str) -> CaseReport {
    CaseReport {
        id: id.to_owned(),
        on: Place::Rig,
        machine: Some("sim".into()),
        kernel: "7.3.4".into(),
        vendor: "amd".into(),
        vm: "upm".into(),
        module_params: vec!["kvm.tdp_mmu=Y".into()],
        defect: None,
        verdict,
        reason: reason.to_owned(),
        lacks: None,
        duration_us: 1_000,
        exits: 3,
        seed: 7,
        schedule: None,
        repro: format!("privet run --exact {id}"),
        details: Vec::new(),
    }
}

pub(crate) fn pass(id: &str) -> CaseReport {
    report(id, Verdict::Pass, "")
}

pub(crate) fn fail(id: &str, reason: &str) -> CaseReport {
    report(id, Verdict::Fail, reason)
}

pub(crate) fn skip(id: &str, reason: &str) -> CaseReport {
    report(id, Verdict::Skip, reason)
}

/// The same on the model.
pub(crate) fn on_model(report: CaseReport) -> CaseReport {
    CaseReport { on: Place::Model, machine: None, kernel: String::new(), ..report }
}

/// The document of one run with these reports.
pub(crate) fn document(reports: Vec<CaseReport>) -> Document {
    let ids: Vec<String> = reports.iter().map(|report| report.id.clone()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.json");
    reports.into_iter().fold(Run::of(&ids), Run::with).whole().write(&path);
    let mut collector = Collector::new("1", "2026-01-01T00:00:00Z".into(), Vec::new());
    collector.add(&path).unwrap();
    collector.finish()
}
