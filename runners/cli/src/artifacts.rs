//! What a run leaves below `--artifacts DIR`: `run.json`, and for each job a directory with `started.json`
//! (written before its worker starts), `report.json` (written after: a job with the one and without the
//! other died with its runner), `log.txt`, `stdout.txt` and `stderr.txt`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::exit::Early;
use crate::output::write_whole;
use crate::place::Context;
use crate::plan::Job;
use privet_report::Ending;

/// A directory of artifacts.
#[derive(Debug)]
pub struct Artifacts {
    dir: PathBuf,
}

/// The facts of a whole run.
#[derive(Debug, Serialize)]
pub struct RunFacts<'a> {
    /// The version of privet.
    pub version: &'static str,
    /// The command line.
    pub command: Vec<String>,
    /// The seed of the run.
    pub seed: u64,
    /// This machine.
    pub host: &'a Context,
    /// The labels of all jobs, in order.
    pub jobs: Vec<&'a str>,
}

impl Artifacts {
    /// Makes the directory and writes `run.json`.
    ///
    /// # Errors
    /// One line that names the directory and says why it cannot be used.
    pub fn create(dir: &Path, facts: &RunFacts<'_>) -> Result<Self, Early> {
        let made = fs::create_dir_all(dir).and_then(|()| write_json(&dir.join("run.json"), facts));
        made.map_err(|error| {
            Early::usage(format!(
                "cannot write {}: {error}; give --artifacts a directory that you can write",
                dir.display()
            ))
        })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// A job is about to start: what an earlier run left of it goes.
    ///
    /// # Errors
    /// Of the file system.
    pub fn started(&self, job: &Job) -> io::Result<()> {
        let dir = self.dir.join(&job.label);
        fs::create_dir_all(&dir)?;
        for old in ["report.json", "log.txt", "stdout.txt", "stderr.txt"] {
            match fs::remove_file(dir.join(old)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        write_json(&dir.join("started.json"), &serde_json::json!({ "id": job.id, "seed": job.seed }))
    }

    /// A job has ended.
    ///
    /// # Errors
    /// Of the file system.
    pub fn finished(&self, job: &Job, ending: &Ending, stdout: &[u8], stderr: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(&job.label);
        let log = ending.report.details.iter().map(|line| format!("{line}\n")).collect::<String>();
        for (name, contents) in [("log.txt", log.as_bytes()), ("stdout.txt", stdout), ("stderr.txt", stderr)] {
            if !contents.is_empty() {
                write_whole(&dir.join(name), contents)?;
            }
        }
        // The report comes last: where it is, the rest is, too.
        write_json(&dir.join("report.json"), ending)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write_whole(path, &text)
}
