//! For other code: the reports of all jobs, kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use privet_report::{CaseReport, Ending};

use super::Report;
use crate::plan::Job;
use crate::summary::Summary;

/// Keeps the reports of all jobs, by label.
pub struct Seen {
    plan: Vec<Job>,
    kept: Rc<RefCell<BTreeMap<String, CaseReport>>>,
}

impl Seen {
    /// Keeps them in `kept`.
    pub fn into(kept: &Rc<RefCell<BTreeMap<String, CaseReport>>>) -> Self {
        Self { plan: Vec::new(), kept: Rc::clone(kept) }
    }
}

impl Report for Seen {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.plan = plan.to_vec();
        Ok(())
    }

    fn finished(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        self.kept.borrow_mut().insert(self.plan[index].label.clone(), ending.report.clone());
        Ok(())
    }

    fn end(&mut self, _summary: &Summary) -> io::Result<()> {
        Ok(())
    }
}
