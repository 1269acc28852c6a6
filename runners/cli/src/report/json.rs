//! JSON, one object a line: every row as it ends, a summary at the end.

use std::io::{self, Write};

use serde::Serialize;

use super::Report;
use crate::ending::Ending;
use crate::plan::Job;
use crate::summary::Summary;

/// A line, told from others by its `type`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Case(&'a Ending),
    Summary(&'a Summary),
}

/// Writes JSON lines.
pub struct Json<W> {
    out: W,
}

impl<W: Write> Json<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.out.write_all(&bytes)?;
        self.out.flush()
    }
}

impl<W: Write> Report for Json<W> {
    fn begin(&mut self, _plan: &[Job]) -> io::Result<()> {
        Ok(())
    }

    fn finished(&mut self, _index: usize, ending: &Ending) -> io::Result<()> {
        self.line(&Line::Case(ending))
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(&Line::Summary(summary))
    }
}
