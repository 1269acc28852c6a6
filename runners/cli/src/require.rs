//! `--require VM`: on a machine that is supposed to have a VM type, a skip for want of it is a failure.

use privet_cases::Entry;
use privet_harness::need::Need;
use privet_harness::vm_type::VmType;
use privet_report::{CaseReport, Verdict};

/// Turns a skip of `row` into a failure if its VM type is required. A row about another setting of a module
/// parameter, about the other vendor's half of KVM, or about kernels that lack something, stays skipped: no
/// machine can run both at once.
pub fn hold_to(required: &[VmType], row: &Entry, report: &mut CaseReport) {
    let is_required = required.contains(&row.vm);
    if report.verdict == Verdict::Skip && is_required && !row.needs.iter().any(|need| is_the_other_half(need, report)) {
        report.verdict = Verdict::Fail;
        report.reason = format!("required by --require {}, but skipped: {}", row.vm, report.reason);
    }
}

/// Whether the place of the report is of another vendor than `need` is about, or `need` is that something is missing, or
/// is another setting or CPU, and that is why the row was skipped.
fn is_the_other_half(need: &Need, report: &CaseReport) -> bool {
    match need {
        Need::Vendor(vendor, _) => !report.vendor.is_empty() && report.vendor != vendor.to_string(),
        Need::NoSystemCapability(_) => true,
        // Only if that is why: such a row can also be skipped for want of its VM type.
        Need::Parameter(..) => {
            // A need that has alternatives tells what is wrong with each.
            report.reason.split("; or ").any(|part| part.starts_with(&format!("needs {need}, is ")))
        }
        Need::NoDecodeAssists | Need::KernelSince(..) => report.reason.starts_with(&format!("needs {need}")),
        Need::All(needs) | Need::Any(needs) => needs.iter().any(|need| is_the_other_half(need, report)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use privet_harness::uapi::Capability;

    use privet_cases::{Row, Types};

    use privet_harness::vendor::Vendor;
    use privet_rig::MachineKind;

    use super::*;
    use crate::place::Context;
    use crate::plan;

    /// A row as the table has it for UPM VMs.
    fn upm(row: Row) -> Entry {
        Entry::all_of(row).pop().unwrap()
    }

    fn row() -> Row {
        Row::new("slots.x", Types::UPM, "", |_| Ok(()))
    }

    fn held(verdict: Verdict, row: &Entry) -> Verdict {
        let jobs = plan::jobs(std::slice::from_ref(&row.id), 1, 1, Duration::ZERO);
        let place = Context::rig_without_guest("7.3", MachineKind::Sim);
        let mut report = place.report(&jobs[0], verdict, "no such VMs here".into());
        hold_to(&[VmType::Upm, VmType::Snp], row, &mut report);
        assert!(report.reason.ends_with("no such VMs here"));
        report.verdict
    }

    #[test]
    fn only_skips_of_required_types_become_failures() {
        let required = upm(row());
        assert_eq!(held(Verdict::Skip, &required), Verdict::Fail);
        assert_eq!(held(Verdict::Pass, &required), Verdict::Pass);
        let plain = Entry::all_of(Row::new("slots.x", Types::PLAIN, "", |_| Ok(()))).pop().unwrap();
        assert_eq!(held(Verdict::Skip, &plain), Verdict::Skip);
    }

    #[test]
    fn rows_about_kernels_that_lack_something_stay_skipped() {
        let need = Need::NoSystemCapability(Capability::GUEST_MEMFD);
        assert_eq!(held(Verdict::Skip, &upm(row().needs(need))), Verdict::Skip);
        let need = Need::SystemCapability(Capability::GUEST_MEMFD, 1);
        assert_eq!(held(Verdict::Skip, &upm(row().needs(need))), Verdict::Fail);
    }

    #[test]
    fn rows_about_other_cpus_and_settings_stay_skipped_only_for_that_reason() {
        // `held` skips for want of VMs of the type.
        assert_eq!(held(Verdict::Skip, &upm(row().needs(Need::NoDecodeAssists))), Verdict::Fail);
        let other_half = |need: Need, reason: &str| {
            let jobs = plan::jobs(&["upm.slots.x".to_owned()], 1, 1, Duration::ZERO);
            let place = Context::rig_without_guest("7.3", MachineKind::Sim);
            is_the_other_half(&need, &place.report(&jobs[0], Verdict::Skip, reason.into()))
        };
        assert!(other_half(Need::NoDecodeAssists, "needs a CPU without decode assists: so"));
        assert!(other_half(Need::KernelSince((7, 1), "so"), "needs Linux 7.1 or newer, this is 7.0: so"));
        let setting = || Need::All(vec![Need::Hypercall, Need::Parameter("kvm.mmio_caching", "N")]);
        assert!(other_half(setting(), "needs kvm.mmio_caching=N, is Y; reload with `modprobe kvm mmio_caching=N`"));
        let either = "needs kvm_amd.npt=N, but there is no such parameter here; or needs kvm.mmio_caching=N, is Y";
        assert!(other_half(setting(), either));
        assert!(!other_half(setting(), "hypercalls do not reach userspace here"));
        assert!(!other_half(setting(), "no such VMs here"));
        assert!(!other_half(Need::KernelSince((7, 1), "so"), "no such VMs here"));
    }

    #[test]
    fn rows_about_another_vendor_stay_skipped() {
        let about = |vendor| upm(row().needs(Need::Vendor(vendor, "so")));
        assert_eq!(held(Verdict::Skip, &about(Vendor::Intel)), Verdict::Skip);
        assert_eq!(held(Verdict::Skip, &about(Vendor::Amd)), Verdict::Fail);
    }
}
