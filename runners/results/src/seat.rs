//! A place as results tell it apart from others: a column of the matrix.

use privet_report::{CaseReport, Place, place_of};
use serde::{Deserialize, Serialize};

/// Where rows ran.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seat {
    /// The name of the machine, where verdicts say something about a machine: on a rig or a model it does not matter
    /// whose cores they are computed on. Empty there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Which kind of place; none if nobody knows, because no row came back from it.
    pub on: Option<Place>,
    /// What played the machine of a rig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The release of the kernel; empty on the model.
    #[serde(default)]
    pub kernel: String,
    /// Whose half of KVM.
    #[serde(default)]
    pub vendor: String,
    /// The module parameters in effect that rows depend on.
    #[serde(default)]
    pub module_params: Vec<String>,
    /// The defect of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
}

impl Seat {
    /// Where this verdict was obtained by privet on a machine of this name.
    pub fn of(report: &CaseReport, host: &str) -> Self {
        Self {
            host: if report.on == Place::Host { host.to_owned() } else { String::new() },
            on: Some(report.on),
            machine: report.machine.clone(),
            kernel: report.kernel.clone(),
            vendor: report.vendor.clone(),
            module_params: report.module_params.clone(),
            defect: report.defect.clone(),
        }
    }

    /// A place that nobody knows.
    pub fn unknown() -> Self {
        let (host, kernel, vendor) = (String::new(), String::new(), String::new());
        Self { host, on: None, machine: None, kernel, vendor, module_params: Vec::new(), defect: None }
    }

    /// Whether all that is known of this place is true of `other`, too: a row that was skipped before its machine was
    /// up knows less of it than others.
    pub fn is_part_of(&self, other: &Self) -> bool {
        let text = |this: &str, other: &str| this.is_empty() || this == other;
        self.on == other.on
            && text(&self.host, &other.host)
            && text(&self.kernel, &other.kernel)
            && text(&self.vendor, &other.vendor)
            && (self.machine.is_none() || self.machine == other.machine)
            && (self.module_params.is_empty() || self.module_params == other.module_params)
            && self.defect == other.defect
    }

    /// How alike two places are, to find out which column of another result this one is to be held against: the
    /// vendor matters most, the machine and its kernel least, since those are what is compared.
    pub fn likeness(&self, other: &Self) -> u32 {
        let same = |is: bool, weight| if is { weight } else { 0 };
        same(self.vendor == other.vendor, 16)
            + same(self.on == other.on, 8)
            + same(self.module_params == other.module_params, 4)
            + same(self.machine == other.machine, 2)
            + same(self.defect == other.defect, 2)
            + same(self.host == other.host, 1)
            + same(self.kernel == other.kernel, 1)
    }

    /// Whether verdicts from here are about hardware.
    pub fn is_hardware(&self) -> bool {
        self.on == Some(Place::Host)
    }

    /// It in as few words as tell it from most others: `sim amd 7.3.4`.
    pub fn short_name(&self) -> String {
        let played = match (self.on, self.machine.as_deref()) {
            (None, _) => "nowhere",
            (Some(Place::Host), _) => &self.host,
            (Some(Place::Rig), machine) => machine.unwrap_or("rig"),
            (Some(Place::Model), _) => "model",
        };
        let defect = self.defect.as_ref().map(|defect| format!("with {defect}"));
        let parts = [Some(played), Some(&self.vendor), Some(&self.kernel), defect.as_deref()];
        parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// It in words, without the parameters: `host genoa1, Linux 7.3.4, kvm_amd`.
    pub fn name(&self) -> String {
        let Some(on) = self.on else { return "nobody knows where".to_owned() };
        let words = place_of(on, self.machine.as_deref(), &self.kernel, &self.vendor, self.defect.as_deref());
        match self.host.as_str() {
            "" => words,
            host => words.replacen("host", &format!("host {host}"), 1),
        }
    }
}
