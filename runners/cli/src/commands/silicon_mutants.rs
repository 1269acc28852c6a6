//! `privet mutants --silicon`: do rows notice when the silicon of the sim forgets a rule?

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use privet_cases::Entry;
use privet_harness::vm_type::VmType;
use privet_kernel::Kernel;
use privet_report::{CaseReport, Verdict, one_line};
use privet_rig::{Event, Plan, Profile, Progress, RigError, Rule, SiliconVendor as Vendor, SimOptions};

use super::mutants::with_a_defect;
use crate::args::{Mutants, OneVendor, Selection};
use crate::dispatch::cores;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::plan::{self, Job};
use crate::rig::sim_plan;
use crate::selection::select;

/// Runs the rows on the sim, and those that pass again without each rule of its silicon, and writes to `out` what was
/// caught: `Failed` if a row is red with all rules or a rule goes unmissed of which nobody has said why.
///
/// # Errors
/// If the command line cannot be followed, there is no kernel for the sim, or the run is interrupted.
pub fn silicon_mutants(args: &Mutants, mut out: impl Write) -> Result<Status, Early> {
    let table = privet_cases::table();
    let mut selected = select(&table, &args.selection)?;
    let rules = rules(&args.rule, args.vendor.map(silicon_of))?;
    let vendor = rules[0].vendor();
    if is_everything(&args.selection) {
        let told_by = |row: &&Entry| match vendor {
            Vendor::Amd => row.vm.needs_secure_processor(),
            Vendor::Intel if rules[0].is_of_tdx() => row.vm == VmType::Tdx,
            Vendor::Intel => row.vm.vendor().is_none(),
        };
        let ids: BTreeSet<&str> = table.iter().filter(told_by).map(|row| row.id.as_str()).collect();
        selected.retain(|id| ids.contains(id.as_str()));
    }
    let seed = args.seed.unwrap_or_else(plan::fresh_seed);
    let jobs = plan::jobs(&selected, 1, seed, args.timeout);
    let worker =
        std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find this program: {error}")))?;
    let interrupt =
        Interrupt::on_signals().map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
    let kernel = Kernel::cached().map_err(|error| Early::nothing_ran(error.to_string()))?;
    let at_a_time = args.jobs.map_or_else(cores, usize::from);
    // A TD has no more vCPUs than there are processors.
    let cpus = if rules[0].is_of_tdx() { 4 } else { SimOptions::default().cpus };
    let sim = SimOptions { profile: Profile::default_for(vendor), cpus, ..SimOptions::default() };
    let machine = Mutant { kernel, worker, sim, at_a_time };
    let mut tell = |text: String| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error: io::Error| Early::usage(format!("cannot write to standard output: {error}")))
    };

    // Only a row that is green with all rules says something by being red.
    let (clean, trouble) = machine.run(None, &jobs, &interrupt)?;
    if let Some(trouble) = trouble {
        return Err(Early { status: Status::Failed, message: format!("with all rules: {trouble}") });
    }
    let red: Vec<_> = clean.iter().filter(|report| report.verdict.is_red()).collect();
    for report in &red {
        let (verdict, id, reason) = (report.verdict, &report.id, one_line(&report.reason));
        tell(format!("{verdict:<9} {id}, with all rules: {reason}\n"))?;
    }
    let passed = |job: &Job| {
        let report = clean.iter().find(|report| report.id == job.id && report.verdict == Verdict::Pass);
        report.map(|report| with_a_defect(job, report))
    };
    let green: Vec<Job> = jobs.iter().filter_map(passed).collect();
    if green.is_empty() {
        return Err(Early { status: Status::Failed, message: "no row passes on the sim with all rules".to_owned() });
    }

    let (mut unmissed, mut judged) = (0, 0);
    let mut useful: BTreeSet<String> = BTreeSet::new();
    for &rule in &rules {
        let (reports, trouble) = machine.run(Some(rule), &green, &interrupt)?;
        let red = reports.into_iter().filter(|report| report.verdict.is_red()).map(|report| report.id);
        let mut caught: Vec<String> = red.collect();
        useful.extend(caught.iter().cloned());
        // The kernel itself can be who notices.
        caught.extend(trouble.map(|trouble| format!("({})", one_line(&trouble))));
        match rule.why_no_row().filter(|_| caught.is_empty()) {
            Some(why) => {
                judged += 1;
                tell(format!("unasked   {}: {} No row: {why}.\n", rule.name(), rule.sentence()))?;
            }
            None if caught.is_empty() => {
                unmissed += 1;
                tell(format!("unmissed  {}: {}\n", rule.name(), rule.sentence()))?;
            }
            None => tell(format!("caught    {}: {}\n", rule.name(), caught.join(" ")))?,
        }
    }
    tell(format!(
        "on the sim, which is no hardware: {} rules, {} missed, {judged} that no row can miss, {unmissed} not; {} rows, \
         {} caught something, {} do not pass with all rules; seed {seed}\n",
        rules.len(),
        rules.len() - unmissed - judged,
        green.len(),
        useful.len(),
        red.len(),
    ))?;
    Ok(if red.is_empty() && unmissed == 0 { Status::Passed } else { Status::Failed })
}

/// The vendor of silicon.
fn silicon_of(vendor: OneVendor) -> Vendor {
    match vendor {
        OneVendor::Amd => Vendor::Amd,
        OneVendor::Intel => Vendor::Intel,
    }
}

/// The rules that are named, of one vendor. If none is, AMD's, or those of Intel's TDX module: what VMX refuses a hypervisor
/// without bugs never asks for, so that no row could miss most of that.
fn rules(named: &[Rule], vendor: Option<Vendor>) -> Result<Vec<Rule>, Early> {
    let Some(first) = named.first() else {
        let is_meant = |rule: &Rule| match vendor {
            None | Some(Vendor::Amd) => rule.vendor() == Vendor::Amd,
            Some(Vendor::Intel) => rule.is_of_tdx(),
        };
        return Ok(Rule::ALL.iter().copied().filter(is_meant).collect());
    };
    if let Some(vendor) = vendor.filter(|vendor| *vendor != first.vendor()) {
        let vendor = if vendor == Vendor::Amd { "amd" } else { "intel" };
        return Err(Early::usage(format!(
            "--rule {} is none of --vendor {vendor}: leave out one of them",
            first.name()
        )));
    }
    match named.iter().find(|rule| rule.vendor() != first.vendor()) {
        None => Ok(named.to_vec()),
        Some(other) => {
            let (first, other) = (first.name(), other.name());
            Err(Early::usage(format!(
                "--rule {first} and --rule {other} are of two vendors' silicon: try one at a time"
            )))
        }
    }
}

/// Whether the command line has left all rows.
fn is_everything(selection: &Selection) -> bool {
    selection.filters.is_empty() && selection.filtersets.is_empty()
}

/// A sim whose silicon can forget a rule.
struct Mutant {
    kernel: Kernel,
    worker: PathBuf,
    sim: SimOptions,
    at_a_time: usize,
}

impl Mutant {
    /// The reports of all jobs, and trouble that none of them can be blamed for.
    fn run(
        &self,
        without_rule: Option<Rule>,
        jobs: &[Job],
        interrupt: &Interrupt,
    ) -> Result<(Vec<CaseReport>, Option<String>), Early> {
        let (machines, sim) = (self.at_a_time, self.sim.clone());
        let plan = Plan { machines, sim, without_rule, ..sim_plan(self.kernel.clone(), &self.worker, jobs) };
        let mut reports = Vec::new();
        let ran = privet_rig::run(&plan, interrupt.as_fd(), &mut |progress| {
            if let Progress::Row(Event::Finished(_, report)) = progress {
                reports.push(*report);
            }
        });
        if let Some(signal) = interrupt.signal() {
            return Err(Early { status: Status::Interrupted(signal), message: "interrupted".to_owned() });
        }
        match ran {
            Ok(()) => Ok((reports, None)),
            Err(RigError::Unattributed(trouble)) => Ok((reports, Some(trouble))),
            Err(error) => Err(Early { status: Status::Failed, message: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_of_one_vendor() {
        assert!(rules(&[], None).unwrap().iter().all(|rule| rule.vendor() == Vendor::Amd));
        assert!(rules(&[], Some(Vendor::Intel)).unwrap().iter().all(|rule| rule.is_of_tdx()));
        assert_eq!(rules(&[Rule::EptWrites, Rule::LaunchState], None).unwrap().len(), 2);
        assert!(rules(&[Rule::EptWrites], Some(Vendor::Amd)).is_err());
        let refused = rules(&[Rule::EptWrites, Rule::Ciphertext], None).unwrap_err();
        assert!(refused.message.contains("--rule ept-writes and --rule ciphertext"), "{}", refused.message);
    }
}
