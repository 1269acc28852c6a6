//! Places and texts in the words that every report uses.

use crate::{CaseReport, Place};

/// Where a verdict was obtained: `rig, machine sim, Linux 7.3.4, kvm_amd`, or `the model, which is no hardware, kvm_amd`.
pub fn place(report: &CaseReport) -> String {
    place_of(report.on, report.machine.as_deref(), &report.kernel, &report.vendor, report.defect.as_deref())
}

/// A place with this machine, kernel, vendor and defect, in the words of [`place`].
pub fn place_of(on: Place, machine: Option<&str>, kernel: &str, vendor: &str, defect: Option<&str>) -> String {
    let mut place = match on {
        Place::Model => "the model, which is no hardware".to_owned(),
        on => on.to_string(),
    };
    if let Some(machine) = machine {
        place += &format!(", machine {machine}");
    }
    place += &match (on, kernel) {
        (Place::Model, _) => String::new(),
        (_, "") => ", without a kernel".to_owned(),
        (_, kernel) => format!(", Linux {kernel}"),
    };
    if !vendor.is_empty() {
        place += &format!(", kvm_{vendor}");
    }
    if let Some(defect) = defect {
        place += &format!(", with the defect {defect}");
    }
    place
}

/// `text` as one line without control characters, whatever a guest or a kernel has put into it.
pub fn one_line(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}
