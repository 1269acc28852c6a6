//! Where a row runs, and what that place is.

use std::sync::Arc;

use privet_cases::Entry;
use privet_harness::host::Host;
use privet_harness::module::Modules;
use privet_harness::vendor::Vendor;
use privet_report::{CaseReport, Place, Verdict};
use serde::{Deserialize, Serialize};

use crate::args::On;
use crate::plan::Job;

/// A place as reports describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Which place.
    pub on: Place,
    /// The release of its kernel, as `uname -r` prints it; empty if there is none.
    pub kernel: String,
    /// Whose half of KVM it has, as [`CaseReport::vendor`] says it.
    pub vendor: String,
    /// The module parameters that rows depend on, as they are in effect: `kvm.mmio_caching=Y`.
    pub module_params: Vec<String>,
    /// The defect of a model, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
}

impl Context {
    /// This machine, seen as `on`: a rig's kernel runs this program, too, and the model lies under it.
    pub fn here(on: Place) -> Self {
        let kernel = match on {
            Place::Host | Place::Rig => nix::sys::utsname::uname().ok(),
            // The kernel that is running has no part in what the model does.
            Place::Model => None,
        };
        let kernel = kernel.map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
        let modules = Modules::read();
        let vendor = modules.vendor.as_deref().map(|module| module.trim_start_matches("kvm_")).unwrap_or_default();
        Self { on, kernel, vendor: vendor.to_owned(), module_params: decisive(&modules), defect: None }
    }

    /// A rig that has not come up: there is only its kernel, if that.
    pub fn rig_without_guest(kernel: &str, vendor: Vendor) -> Self {
        Self { kernel: kernel.to_owned(), vendor: vendor.to_string(), ..Self::nowhere(Place::Rig) }
    }

    /// A place of which nothing is known but its name.
    pub fn nowhere(on: Place) -> Self {
        Self { on, kernel: String::new(), vendor: String::new(), module_params: Vec::new(), defect: None }
    }

    /// The report of a job that was, or should have been, run here. It has taken no time, and nothing
    /// repeats it.
    pub fn report(&self, job: &Job, verdict: Verdict, reason: String) -> CaseReport {
        CaseReport {
            id: job.id.clone(),
            on: self.on,
            kernel: self.kernel.clone(),
            vendor: self.vendor.clone(),
            vm: job.vm().to_owned(),
            module_params: self.module_params.clone(),
            defect: self.defect.clone(),
            verdict,
            reason,
            duration_us: 0,
            exits: 0,
            seed: job.seed,
            repro: String::new(),
            details: Vec::new(),
        }
    }
}

/// The parameters that decide which code of KVM runs, of those that there are.
fn decisive(modules: &Modules) -> Vec<String> {
    const DECISIVE: [&str; 9] = [
        "kvm.mmio_caching",
        "kvm.tdp_mmu",
        "kvm_amd.npt",
        "kvm_amd.nrips",
        "kvm_amd.sev",
        "kvm_amd.sev_es",
        "kvm_amd.sev_snp",
        "kvm_intel.ept",
        "kvm_intel.tdx",
    ];
    let in_effect = |name: &str| Some(format!("{name}={}", modules.parameter(name)?));
    DECISIVE.into_iter().filter_map(in_effect).collect()
}

/// What becomes of a row before any worker starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// A worker runs it on this machine.
    Host,
    /// It runs in the rig.
    Rig,
    /// A worker runs it on the model.
    Model,
    /// It cannot run, for this reason.
    Skip(Place, String),
}

/// Decides where `row` runs. `host`, `rig` and `model` say why they cannot be used, and are only asked if need be.
/// Left to decide, it prefers what tells most: hardware, then a real kernel, then the model.
pub fn assign(
    on: On,
    row: &Entry,
    host: impl FnOnce() -> Result<Arc<Host>, String>,
    rig: impl FnOnce() -> Result<(), String>,
    model: impl FnOnce() -> Result<(), String>,
) -> Assigned {
    let unmet_on_host = || host().map_or_else(Some, |host| row.unmet(&host));
    match on {
        On::Host => unmet_on_host().map_or(Assigned::Host, |why| Assigned::Skip(Place::Host, why)),
        On::Rig => rig().map_or_else(|why| Assigned::Skip(Place::Rig, why), |()| Assigned::Rig),
        On::Model => model().map_or_else(|why| Assigned::Skip(Place::Model, why), |()| Assigned::Model),
        On::Auto => {
            let Some(why_not_host) = unmet_on_host() else { return Assigned::Host };
            let Err(why_not_rig) = rig() else { return Assigned::Rig };
            let Err(why_not_model) = model() else { return Assigned::Model };
            let why = format!("{why_not_host}; and no rig: {why_not_rig}; and no model: {why_not_model}");
            Assigned::Skip(Place::Host, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(on: On, rig: Result<(), String>, model: Result<(), String>) -> Assigned {
        let table = privet_cases::table();
        assign(on, &table[0], || Err("no /dev/kvm".to_owned()), || rig, || model)
    }

    #[test]
    fn a_row_goes_where_it_can_run_and_says_why_it_cannot() {
        let no_rig = || Err("no kernel".to_owned());
        let no_model = || Err("no library".to_owned());
        assert_eq!(assigned(On::Host, Ok(()), Ok(())), Assigned::Skip(Place::Host, "no /dev/kvm".into()));
        assert_eq!(assigned(On::Rig, Ok(()), Ok(())), Assigned::Rig);
        assert_eq!(assigned(On::Rig, no_rig(), Ok(())), Assigned::Skip(Place::Rig, "no kernel".into()));
        assert_eq!(assigned(On::Model, Ok(()), Ok(())), Assigned::Model);
        assert_eq!(assigned(On::Model, Ok(()), no_model()), Assigned::Skip(Place::Model, "no library".into()));
        assert_eq!(assigned(On::Auto, Ok(()), Ok(())), Assigned::Rig);
        assert_eq!(assigned(On::Auto, no_rig(), Ok(())), Assigned::Model);
        let all = "no /dev/kvm; and no rig: no kernel; and no model: no library".to_owned();
        assert_eq!(assigned(On::Auto, no_rig(), no_model()), Assigned::Skip(Place::Host, all));
    }
}
