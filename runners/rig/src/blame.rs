//! Why a row has no report of its own: what became of the machine while it was running.

use std::time::Duration;

use privet_report::{CaseReport, Place, Verdict};

use crate::boot::{End, Limits};
use crate::console::{find_panic, last_lines, since_start_of};
use crate::plan::{CaseRun, Plan};

/// The lines of the console that go into the report of a row that brought the machine down.
const CONSOLE_LINES: usize = 100;

/// Why a boot ended early, with the console since the running row started, as the report of that row says it.
pub(crate) struct Blame {
    pub(crate) verdict: Verdict,
    pub(crate) reason: String,
    details: Vec<String>,
}

impl Blame {
    pub(crate) fn new(end: &End, console: &str, running: Option<&CaseRun>, limits: Limits) -> Self {
        let (verdict, reason) = match (find_panic(console), end) {
            (Some(panic), _) => {
                let verdict = if panic.kernel_is_wrong { Verdict::Fail } else { Verdict::Error };
                (verdict, format!("the rig's kernel panicked: {}", panic.cause))
            }
            (None, End::Hung) => (
                Verdict::Timeout,
                format!(
                    "the rig hung{}",
                    running.map_or_else(String::new, |case| {
                        format!(": this row had not ended after {} s", limits.of_row(case).as_secs_f64().round())
                    })
                ),
            ),
            (None, End::Silent(long)) => {
                let last = last_lines(console, 1).pop();
                let last =
                    last.map_or("it never said anything".to_owned(), |line| format!("its last line was \"{line}\""));
                let long = long.as_secs_f64().round();
                (
                    Verdict::Timeout,
                    format!("the rig's kernel did not come up: its console was silent for {long} s, {last}"),
                )
            }
            (None, End::Stuck(why)) => (Verdict::Timeout, format!("the rig hung: {why}")),
            (None, End::Closed(how)) => (Verdict::Error, format!("the rig ended: {how}")),
            (None, End::Broken(why)) => (Verdict::Error, format!("the rig's init gave up: {why}")),
            (None, End::Garbage(line)) => (Verdict::Error, format!("the rig talked nonsense: \"{line}\"")),
            (None, End::Done | End::Interrupted) => (Verdict::Error, "the worker ended without a report".into()),
        };
        let details = last_lines(since_start_of(running.map(|case| case.label.as_str()), console), CONSOLE_LINES)
            .into_iter()
            .map(|line| format!("console: {line}"))
            .collect();
        Self { verdict, reason, details }
    }

    /// The report of the row that was running, for so long.
    pub(crate) fn report(&self, plan: &Plan, case: &CaseRun, passed: Duration) -> CaseReport {
        CaseReport {
            id: case.label.clone(),
            on: Place::Rig,
            machine: Some(plan.machine.to_string()),
            kernel: plan.kernel.release.clone(),
            vendor: plan.vendor().to_string(),
            vm: case.id.split('.').next().unwrap_or_default().to_owned(),
            module_params: plan.module_params.iter().map(ToString::to_string).collect(),
            defect: None,
            schedule: None,
            verdict: self.verdict,
            reason: self.reason.clone(),
            lacks: None,
            duration_us: u64::try_from(passed.as_micros()).unwrap_or(u64::MAX),
            exits: 0,
            seed: case.seed,
            repro: String::new(),
            details: self.details.clone(),
        }
    }
}
