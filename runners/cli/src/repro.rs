//! The command line that runs a row again in the same way.

use std::path::PathBuf;
use std::time::Duration;

use privet_machine::Defect;
use privet_report::{CaseReport, Place};

use crate::args::RigOptions;
use crate::plan::Job;

/// What all command lines of a run have in common.
#[derive(Debug)]
pub struct Repro<'a> {
    /// What the rig booted.
    pub rig: &'a RigOptions,
    /// `--timeout`, if it was given.
    pub timeout: Option<Duration>,
    /// Whether the model had the processors of the job's vendor; it has a machine of its own if not.
    pub vendor_on_model: bool,
    /// The defect of the model.
    pub defect: Option<Defect>,
}

impl Repro<'_> {
    /// The command line for a job that has this report, ready to be pasted into a shell.
    pub fn line(&self, job: &Job, report: &CaseReport) -> String {
        let on = report.on;
        let mut words = ["privet", "run", "--exact", &job.id, "--on", &on.to_string(), "--seed", &job.seed.to_string()]
            .map(String::from)
            .to_vec();
        if let Some(timeout) = self.timeout {
            words.extend(["--timeout".to_owned(), timeout.as_secs_f64().to_string()]);
        }
        if on == Place::Rig {
            let path = |path: &PathBuf| path.to_string_lossy().into_owned();
            words.extend(report.machine.iter().flat_map(|machine| ["--machine".to_owned(), machine.clone()]));
            words.extend(report.schedule.iter().flat_map(|seed| ["--schedule".to_owned(), seed.to_string()]));
            words.extend(self.rig.cpus.iter().flat_map(|cpus| ["--cpus".to_owned(), cpus.to_string()]));
            words.extend(self.rig.cpu_without.iter().flat_map(|w| ["--cpu-without".to_owned(), w.to_string()]));
            words.extend(self.rig.cpu_profile.iter().flat_map(|p| ["--cpu-profile".to_owned(), p.name().to_owned()]));
            for (option, value) in [("--kernel", &self.rig.kernel), ("--modules", &self.rig.modules)] {
                words.extend(value.iter().flat_map(|value| [option.to_owned(), path(value)]));
            }
        }
        if on == Place::Rig || on == Place::Model && self.vendor_on_model {
            words.extend(["--vendor".to_owned(), job.vendor.to_string()]);
        }
        if on != Place::Host {
            words.extend(self.rig.tdx_fault.iter().flat_map(|f| ["--tdx-fault".to_owned(), f.to_string()]));
            words.extend(self.rig.module_param.iter().flat_map(|p| ["--module-param".to_owned(), p.to_string()]));
        }
        if on == Place::Model {
            words.extend(self.defect.iter().flat_map(|defect| ["--defect".to_owned(), defect.name().to_owned()]));
        }
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use privet_report::Verdict;

    use crate::place::Context;
    use privet_harness::vendor::Vendor;
    use privet_rig::Profile;

    #[test]
    fn a_repro_carries_all_that_decides_the_result() {
        let rig = RigOptions {
            kernel: Some("/tmp/my kernel/bzImage".into()),
            modules: Some("/tmp/m".into()),
            machine: None,
            cpu_profile: Some(Profile::Plain),
            cpus: Some(4),
            cpu_without: None,
            tdx_fault: Vec::new(),
            module_param: vec!["kvm.mmio_caching=0".parse().unwrap()],
        };
        let timeout = Some(Duration::from_millis(1500));
        let repro = Repro { rig: &rig, timeout, vendor_on_model: false, defect: Some(Defect::HoleNotZeroed) };
        let (id, label) = ("upm.a.b".into(), "upm.a.b.intel".into());
        let job = Job {
            id,
            label,
            seed: 9,
            limit: Duration::ZERO,
            keep: false,
            vendor: Vendor::Intel,
            schedules: Vec::new(),
        };
        let report = |on| Context::nowhere(on).report(&job, Verdict::Fail, String::new());
        let on_sim = CaseReport { machine: Some("sim".to_owned()), schedule: Some(5), ..report(Place::Rig) };
        assert_eq!(
            repro.line(&job, &on_sim),
            "privet run --exact upm.a.b --on rig --seed 9 --timeout 1.5 --machine sim --schedule 5 --cpus 4 --cpu-profile plain --kernel '/tmp/my kernel/bzImage' \
             --modules /tmp/m --vendor intel --module-param kvm.mmio_caching=0"
        );
        assert_eq!(
            repro.line(&job, &report(Place::Host)),
            "privet run --exact upm.a.b --on host --seed 9 --timeout 1.5"
        );
        assert_eq!(
            repro.line(&job, &report(Place::Model)),
            "privet run --exact upm.a.b --on model --seed 9 --timeout 1.5 --module-param kvm.mmio_caching=0 \
             --defect hole-not-zeroed"
        );
    }
}
