//! `--require VM`: on a machine that is supposed to have a VM type, a skip for want of it is a failure.

use privet_cases::Entry;
use privet_harness::outcome::LackOf;
use privet_harness::vm_type::VmType;
use privet_report::{CaseReport, Verdict};

/// Turns a skip of `row` into a failure if its VM type is required. What is skipped because it is about the other half of
/// the matrix (another setting, vendor, processor or kernel) stays skipped: no machine can run both at once.
pub fn hold_to(required: &[VmType], row: &Entry, report: &mut CaseReport) {
    let is_the_other_half = report.lacks.is_some_and(LackOf::is_the_other_half);
    if report.verdict == Verdict::Skip && required.contains(&row.vm) && !is_the_other_half {
        report.verdict = Verdict::Fail;
        report.reason = format!("required by --require {}, but skipped: {}", row.vm, report.reason);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use privet_cases::{Row, Types};
    use privet_rig::MachineKind;

    use super::*;
    use crate::place::Context;
    use crate::plan;

    fn held(verdict: Verdict, types: Types, lacks: Option<LackOf>) -> Verdict {
        let row = Entry::all_of(Row::new("slots.x", types, "", |_| Ok(()))).pop().unwrap();
        let jobs = plan::jobs(std::slice::from_ref(&row.id), 1, 1, Duration::ZERO);
        let place = Context::rig_without_guest("7.3", MachineKind::Sim, privet_harness::vendor::Vendor::Amd);
        let mut report = CaseReport { lacks, ..place.report(&jobs[0], verdict, "so".into()) };
        hold_to(&[VmType::Upm, VmType::Snp], &row, &mut report);
        assert!(report.reason.ends_with("so"));
        report.verdict
    }

    #[test]
    fn only_skips_of_required_types_become_failures() {
        for lacks in [None, Some(LackOf::Place), Some(LackOf::VmType), Some(LackOf::Feature), Some(LackOf::Resource)] {
            assert_eq!(held(Verdict::Skip, Types::UPM, lacks), Verdict::Fail);
            assert_eq!(held(Verdict::Skip, Types::PLAIN, lacks), Verdict::Skip);
        }
        assert_eq!(held(Verdict::Pass, Types::UPM, None), Verdict::Pass);
    }

    #[test]
    fn rows_about_the_other_half_stay_skipped() {
        for lacks in [LackOf::Setting, LackOf::Vendor, LackOf::Cpu, LackOf::Kernel] {
            assert_eq!(held(Verdict::Skip, Types::UPM, Some(lacks)), Verdict::Skip);
        }
    }
}
