//! Features that a machine can be made without: those of its processors, by the names that CPUID's bits have, and what
//! firmware does for SNP.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::SimError;

/// A feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "their names are said by `Feature::name`")]
pub enum Feature {
    NestedPaging,
    NextRip,
    TscRatio,
    VmcbClean,
    FlushByAsid,
    DecodeAssists,
    PauseFilter,
    PauseFilterThreshold,
    Sev,
    SevEs,
    SevSnp,
    SnpFirmware,
    RmpMemory,
    VirtualNmis,
    PreemptionTimer,
    TprShadow,
    ApicAccesses,
    VirtualX2apic,
    ApicRegisters,
    VirtualInterrupts,
    PostedInterrupts,
    Ept,
    EptAccessedDirty,
    Ept1g,
    EptExecuteOnly,
    Vpid,
    UnrestrictedGuest,
    Pml,
    TscScaling,
    Tdx,
}

impl Feature {
    /// All features. Those of processors have the names of their bits (CPUID Fn8000_000A_EDX and Fn8000_001F_EAX; AMD64
    /// Architecture Programmer's Manual, volume 3, E.4.9 and E.4.17), in small letters. Then come that the secure
    /// processor's firmware knows SNP, and that the BIOS has set memory aside for the RMP. Those of VMX have the names
    /// that Linux has for them (`vmx flags` of /proc/cpuinfo). Without `tdx` the BIOS has divided no KeyIDs and loaded no
    /// module.
    pub const ALL: &'static [(Feature, &'static str)] = &[
        (Feature::NestedPaging, "npt"),
        (Feature::NextRip, "nrips"),
        (Feature::TscRatio, "tscratemsr"),
        (Feature::VmcbClean, "vmcbclean"),
        (Feature::FlushByAsid, "flushbyasid"),
        (Feature::DecodeAssists, "decodeassists"),
        (Feature::PauseFilter, "pausefilter"),
        (Feature::PauseFilterThreshold, "pausefilterthreshold"),
        (Feature::Sev, "sev"),
        (Feature::SevEs, "sev_es"),
        (Feature::SevSnp, "sev_snp"),
        (Feature::SnpFirmware, "snp_firmware"),
        (Feature::RmpMemory, "rmp_memory"),
        (Feature::VirtualNmis, "vnmi"),
        (Feature::PreemptionTimer, "preemption_timer"),
        (Feature::TprShadow, "vtpr"),
        (Feature::ApicAccesses, "flexpriority"),
        (Feature::VirtualX2apic, "vx2apic"),
        (Feature::ApicRegisters, "vapic_reg"),
        (Feature::VirtualInterrupts, "vid"),
        (Feature::PostedInterrupts, "posted_intr"),
        (Feature::Ept, "ept"),
        (Feature::EptAccessedDirty, "ept_ad"),
        (Feature::Ept1g, "ept_1gb"),
        (Feature::EptExecuteOnly, "ept_x_only"),
        (Feature::Vpid, "vpid"),
        (Feature::UnrestrictedGuest, "unrestricted_guest"),
        (Feature::Pml, "pml"),
        (Feature::TscScaling, "tsc_scaling"),
        (Feature::Tdx, "tdx"),
    ];
}

/// The features that a machine lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Without(u64);

impl Without {
    /// Whether it lacks this one.
    #[must_use]
    pub fn lacks(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u32 != 0
    }

    /// Whether it lacks none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacking: Vec<_> =
            Feature::ALL.iter().filter(|(feature, _)| self.lacks(*feature)).map(|(_, name)| *name).collect();
        f.write_str(&lacking.join(","))
    }
}

impl FromStr for Without {
    type Err = SimError;

    /// Names, with commas between them.
    fn from_str(names: &str) -> Result<Without, SimError> {
        let bit = |name: &str| {
            let known = Feature::ALL.iter().find(|(_, known)| *known == name);
            known.map(|(feature, _)| 1 << *feature as u32).ok_or_else(|| {
                let known: Vec<_> = Feature::ALL.iter().map(|(_, name)| *name).collect();
                SimError::Description(format!("no feature is named \"{name}\": there is {}", known.join(", ")))
            })
        };
        names.split(',').try_fold(0, |without, name| Ok(without | bit(name)?)).map(Without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_found_by_name() {
        for (feature, name) in Feature::ALL {
            let without: Without = name.parse().unwrap();
            assert!(without.lacks(*feature), "{name}");
            assert_eq!(without.to_string(), *name);
        }
        let without: Without = "nrips,decodeassists".parse().unwrap();
        assert!(without.lacks(Feature::NextRip) && without.lacks(Feature::DecodeAssists));
        assert!(!without.lacks(Feature::NestedPaging) && !without.is_empty());
        assert!("nrips,avic".parse::<Without>().unwrap_err().to_string().contains("decodeassists"));
    }
}
