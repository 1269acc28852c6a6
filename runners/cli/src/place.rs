//! Where a row runs, and what that place is.

use std::sync::Arc;

use privet_cases::Entry;
use privet_harness::host::Host;
use privet_harness::module::Modules;
use privet_harness::outcome::{Lack, LackOf};
use privet_harness::vendor::Vendor;
use privet_report::{CaseReport, Place, Verdict};
use privet_rig::MachineKind;
use serde::{Deserialize, Serialize};

use crate::args::On;
use crate::plan::Job;
use crate::report::pretty::rows;

/// A place as reports describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Which place.
    pub on: Place,
    /// What plays the machine of a rig; none elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
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
        let (vendor, module_params) = (vendor.to_owned(), decisive(&modules));
        Self { kernel, vendor, module_params, ..Self::nowhere(on) }
    }

    /// A rig that has not come up: there is only its kernel, if that.
    pub fn rig_without_guest(kernel: &str, machine: MachineKind, vendor: Vendor) -> Self {
        let (machine, vendor) = (Some(machine.to_string()), vendor.to_string());
        Self { machine, kernel: kernel.to_owned(), vendor, ..Self::nowhere(Place::Rig) }
    }

    /// A place of which nothing is known but its name.
    pub fn nowhere(on: Place) -> Self {
        let (kernel, vendor) = (String::new(), String::new());
        Self { on, machine: None, kernel, vendor, module_params: Vec::new(), defect: None }
    }

    /// The report of a job that was, or should have been, run here. It has taken no time, and nothing
    /// repeats it.
    pub fn report(&self, job: &Job, verdict: Verdict, reason: String) -> CaseReport {
        CaseReport {
            id: job.id.clone(),
            on: self.on,
            machine: self.machine.clone(),
            kernel: self.kernel.clone(),
            vendor: self.vendor.clone(),
            vm: job.vm().to_owned(),
            module_params: self.module_params.clone(),
            defect: self.defect.clone(),
            schedule: None,
            verdict,
            reason,
            lacks: None,
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
    /// It runs in the rig; the text says why not on the host, where `auto` had the choice.
    Rig(Option<String>),
    /// A worker runs it on the model; the text says why not on a real kernel, where `auto` had the choice.
    Model(Option<String>),
    /// It cannot run, for want of this.
    Skip(Place, Lack),
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
    let without = |of| move |reason| Lack { of, reason };
    let unmet_on_host = || host().map_err(without(LackOf::Place)).map_or_else(Some, |host| row.unmet(&host));
    let skip = |place, why| Assigned::Skip(place, without(LackOf::Place)(why));
    match on {
        On::Host => unmet_on_host().map_or(Assigned::Host, |why| Assigned::Skip(Place::Host, why)),
        On::Rig => rig().map_or_else(|why| skip(Place::Rig, why), |()| Assigned::Rig(None)),
        On::Model => model().map_or_else(|why| skip(Place::Model, why), |()| Assigned::Model(None)),
        On::Auto => {
            let Some(why_not_host) = unmet_on_host() else { return Assigned::Host };
            let Lack { of, reason: why_not_host } = why_not_host;
            let Err(why_not_rig) = rig() else { return Assigned::Rig(Some(why_not_host)) };
            let why = format!("{why_not_host}; and no rig: {why_not_rig}");
            match model() {
                Ok(()) => Assigned::Model(Some(why)),
                Err(why_not_model) => {
                    Assigned::Skip(Place::Host, Lack { of, reason: format!("{why}; and no model: {why_not_model}") })
                }
            }
        }
    }
}

/// Where `auto` runs how many rows, and why not all of them on the host: one line.
pub fn chosen<'a>(assigned: impl Iterator<Item = &'a Assigned> + Clone) -> String {
    let here = assigned.clone().filter(|one| **one == Assigned::Host).count();
    let because = |why_of: fn(&Assigned) -> Option<&String>| -> (usize, String) {
        let mut reasons: Vec<&String> = Vec::new();
        let all = assigned.clone().filter_map(why_of);
        let count = all
            .inspect(|why| {
                if !reasons.contains(why) {
                    reasons.push(why)
                }
            })
            .count();
        let others = if reasons.len() > 1 { format!(" (and {} more)", reasons.len() - 1) } else { String::new() };
        (count, format!("{}{others}", reasons.first().map_or("", |why| why.as_str())))
    };
    let elsewhere = [
        ("in the rig", because(|one| if let Assigned::Rig(why) = one { why.as_ref() } else { None })),
        (
            "on the model, which is no hardware",
            because(|one| if let Assigned::Model(why) = one { why.as_ref() } else { None }),
        ),
        ("nowhere", because(|one| if let Assigned::Skip(_, why) = one { Some(&why.reason) } else { None })),
    ];
    let elsewhere = elsewhere.into_iter().filter(|(_, (count, _))| *count > 0);
    let elsewhere = elsewhere.map(|(place, (count, why))| format!("{} {place}, because {why}", rows(count)));
    let here = (here > 0).then(|| format!("{} on the host", rows(here)));
    format!("auto: {}", here.into_iter().chain(elsewhere).collect::<Vec<_>>().join("; "))
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
        let skipped = |place, of, reason: &str| Assigned::Skip(place, Lack { of, reason: reason.to_owned() });
        assert_eq!(assigned(On::Host, Ok(()), Ok(())), skipped(Place::Host, LackOf::Place, "no /dev/kvm"));
        assert_eq!(assigned(On::Rig, Ok(()), Ok(())), Assigned::Rig(None));
        assert_eq!(assigned(On::Rig, no_rig(), Ok(())), skipped(Place::Rig, LackOf::Place, "no kernel"));
        assert_eq!(assigned(On::Model, Ok(()), Ok(())), Assigned::Model(None));
        assert_eq!(assigned(On::Model, Ok(()), no_model()), skipped(Place::Model, LackOf::Place, "no library"));
        assert_eq!(assigned(On::Auto, Ok(()), Ok(())), Assigned::Rig(Some("no /dev/kvm".into())));
        let no_kernel = "no /dev/kvm; and no rig: no kernel".to_owned();
        assert_eq!(assigned(On::Auto, no_rig(), Ok(())), Assigned::Model(Some(no_kernel)));
        let all = "no /dev/kvm; and no rig: no kernel; and no model: no library".to_owned();
        assert_eq!(assigned(On::Auto, no_rig(), no_model()), skipped(Place::Host, LackOf::Place, &all));
    }

    #[test]
    fn what_auto_chose_is_told_in_one_line() {
        let rig = |why: &str| Assigned::Rig(Some(why.to_owned()));
        assert_eq!(chosen([Assigned::Host, Assigned::Host].iter()), "auto: 2 rows on the host");
        assert_eq!(
            chosen([Assigned::Host, rig("no upm"), rig("no upm"), rig("no ring 0")].iter()),
            "auto: 1 row on the host; 3 rows in the rig, because no upm (and 1 more)"
        );
    }
}
