//! JSON, one object a line: what is to run, every row as it ends, a summary at the end. `privet_results::run_file` says
//! what is in the first two, and reads them back.

use std::io::{self, Write};
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use nix::sys::utsname::uname;
use privet_report::Ending;
use privet_results::run_file::{self, Began, Planned};
use serde::Serialize;

use super::Report;
use crate::plan::Job;
use crate::row_facts::row_facts;
use crate::selection::Partition;
use crate::summary::Summary;

/// The last line.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Summary(&'a Summary),
}

/// Writes JSON lines.
pub struct Json<W> {
    out: W,
    partition: Option<Partition>,
    labels: Vec<String>,
}

impl<W: Write> Json<W> {
    /// Writes to `out` about a run of this slice of the rows.
    pub fn new(out: W, partition: Option<Partition>) -> Self {
        Self { out, partition, labels: Vec::new() }
    }

    fn line(&mut self, mut bytes: Vec<u8>) -> io::Result<()> {
        bytes.push(b'\n');
        self.out.write_all(&bytes)?;
        self.out.flush()
    }
}

impl<W: Write> Report for Json<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.labels = plan.iter().map(|job| job.label.clone()).collect();
        let here = uname()?;
        let table = privet_cases::table();
        let ids: std::collections::HashSet<&str> = plan.iter().map(|job| job.id.as_str()).collect();
        let began = Began {
            version: run_file::VERSION,
            privet: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args().collect(),
            seed: plan.first().map_or(0, |job| job.seed),
            began: DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Millis, true),
            host: here.nodename().to_string_lossy().into_owned(),
            host_kernel: here.release().to_string_lossy().into_owned(),
            partition: self.partition.map(|partition| partition.to_string()),
            plan: plan.iter().map(|job| Planned { label: job.label.clone(), id: job.id.clone() }).collect(),
            rows: table.iter().filter(|row| ids.contains(row.id.as_str())).map(row_facts).collect(),
        };
        self.line(run_file::first_line(&began)?)
    }

    fn finished(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        let line = run_file::case_line(&self.labels[index], ending)?;
        self.line(line)
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(serde_json::to_vec(&Line::Summary(summary))?)
    }
}
