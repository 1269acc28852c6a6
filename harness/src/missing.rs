//! Why a VM type is missing: what the kernel's own tests of the hardware leave to be seen.

use crate::vm_type::VmType;

/// What a VM type depends on, after `arch/x86/kvm/x86.c`, `svm/sev.c:sev_hardware_setup` and
/// `vmx/tdx.c:tdx_hardware_setup`.
struct Conditions {
    /// The modules that have it.
    vendors: &'static [&'static str],
    /// What `/proc/cpuinfo` lists if the processor, its firmware and the kernel all have it.
    flag: Option<&'static str>,
    /// Parameters that have to be on. The kernel turns some off that depend on others, so the others are first.
    switches: &'static [&'static str],
    /// What it is if all of these are as they should be.
    otherwise: &'static str,
}

const fn conditions(vm_type: VmType) -> Conditions {
    match vm_type {
        VmType::Plain => Conditions { vendors: &[], flag: None, switches: &[], otherwise: "" },
        VmType::Upm => Conditions {
            vendors: &["kvm_amd", "kvm_intel"],
            flag: None,
            switches: &["kvm.tdp_mmu", "kvm_amd.npt", "kvm_intel.ept"],
            otherwise: "the kernel lacks CONFIG_KVM_SW_PROTECTED_VM (distribution kernels do; use the rig)",
        },
        VmType::Sev => Conditions {
            vendors: &["kvm_amd"],
            flag: Some("sev"),
            switches: &["kvm_amd.npt", "kvm_amd.nrips", "kvm_amd.sev"],
            otherwise: "all ASIDs are for SEV-ES, or the secure processor failed (see dmesg, `SEV` and `ccp`)",
        },
        VmType::SevEs => Conditions {
            vendors: &["kvm_amd"],
            flag: Some("sev_es"),
            switches: &[
                "kvm_amd.npt",
                "kvm_amd.nrips",
                "kvm_amd.lbrv",
                "kvm.mmio_caching",
                "kvm_amd.sev",
                "kvm_amd.sev_es",
            ],
            otherwise: "there are no ASIDs for it, or the secure processor failed (see dmesg, `SEV-ES` and `ccp`)",
        },
        VmType::Snp => Conditions {
            vendors: &["kvm_amd"],
            flag: Some("sev_snp"),
            switches: &[
                "kvm_amd.npt",
                "kvm_amd.nrips",
                "kvm_amd.lbrv",
                "kvm.mmio_caching",
                "kvm_amd.sev",
                "kvm_amd.sev_es",
                "kvm_amd.sev_snp",
            ],
            otherwise: "the secure processor has not initialized it (see dmesg, `SEV-SNP` and `ccp`)",
        },
        VmType::Tdx => Conditions {
            vendors: &["kvm_intel"],
            flag: Some("tdx_host_platform"),
            switches: &[
                "kvm_intel.ept",
                "kvm_intel.eptad",
                "kvm_intel.enable_apicv",
                "kvm.tdp_mmu",
                "kvm.mmio_caching",
                "kvm_intel.tdx",
            ],
            otherwise: "the TDX module has not been initialized (see dmesg, `tdx`)",
        },
    }
}

/// What `/proc/cpuinfo` not listing a flag means, and what would change it.
fn unlisted(flag: &str) -> String {
    let (cure, subject) = match flag {
        "tdx_host_platform" => (
            "it needs a Xeon whose firmware has TME-MT and TDX set up, with KeyIDs for TDX, CONFIG_INTEL_TDX_HOST, and a \
             kernel that cannot hibernate (nohibernate)",
            "tdx",
        ),
        "sev_snp" => (
            "SEV-SNP needs a processor of the third generation or later, SNP and an RMP that covers all memory set in \
             the firmware's setup, and an IOMMU that translates (no iommu=pt)",
            "SEV",
        ),
        _ => ("it needs an EPYC processor with SEV and SME set in the firmware's setup, and CONFIG_KVM_AMD_SEV", "SEV"),
    };
    format!("/proc/cpuinfo lists no `{flag}`: {cure}; see dmesg, `{subject}`")
}

/// Why there are no VMs of this type, and what to do; `module` drives the hardware, `is_off` says whether a parameter as
/// in `kvm.mmio_caching` exists and is off, `cpu_lists` whether `/proc/cpuinfo` lists a flag.
pub(crate) fn cause(
    vm_type: VmType,
    module: Option<&str>,
    is_off: &dyn Fn(&str) -> bool,
    cpu_lists: &dyn Fn(&str) -> bool,
) -> String {
    let Conditions { vendors, flag, switches, otherwise } = conditions(vm_type);
    match module {
        Some(module) if !vendors.contains(&module) => {
            return format!("it needs {}, this is {module}", vendors.join(" or "));
        }
        _ => {}
    }
    if let Some(flag) = flag.filter(|flag| !cpu_lists(flag)) {
        return unlisted(flag);
    }
    match switches.iter().find(|switch| is_off(switch)) {
        Some(switch) => match switch.split_once('.') {
            Some((module, parameter)) => format!("{switch}=N; reload {module} with {parameter}=1"),
            None => format!("{switch}=N"),
        },
        None => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause_with(module: &str, vm_type: VmType, parameters: &[(&str, &str)], flags: &[&str]) -> String {
        let is_off =
            |switch: &str| parameters.iter().any(|(name, value)| *name == switch && ["N", "0"].contains(value));
        cause(vm_type, Some(module), &is_off, &|flag| flags.contains(&flag))
    }

    #[test]
    fn the_first_cause_is_told_and_not_what_follows_from_it() {
        let seen =
            |vm_type, parameters: &[(&str, &str)], flags: &[&str]| cause_with("kvm_amd", vm_type, parameters, flags);
        let all = ["sev", "sev_es", "sev_snp"];
        let off = [("kvm_amd.sev", "N"), ("kvm_amd.sev_es", "N"), ("kvm_amd.sev_snp", "N")];
        assert!(seen(VmType::Sev, &off, &[]).contains("lists no `sev`"));
        assert!(seen(VmType::Snp, &off, &["sev", "sev_es"]).contains("RMP"));
        assert!(seen(VmType::Snp, &off, &all).starts_with("kvm_amd.sev=N; reload kvm_amd with sev=1"));
        let uncached = [&off[..], &[("kvm.mmio_caching", "N")]].concat();
        assert!(seen(VmType::SevEs, &uncached, &all).starts_with("kvm.mmio_caching=N"));
        assert!(seen(VmType::Sev, &[("kvm_amd.nrips", "0")], &all).starts_with("kvm_amd.nrips=N"));
        assert!(seen(VmType::Snp, &[], &all).contains("secure processor"));
        assert_eq!(seen(VmType::Tdx, &[], &all), "it needs kvm_intel, this is kvm_amd");
    }

    #[test]
    fn what_tdx_lacks_is_told_from_the_firmware_up() {
        let seen =
            |parameters: &[(&str, &str)], flags: &[&str]| cause_with("kvm_intel", VmType::Tdx, parameters, flags);
        let off = [("kvm_intel.tdx", "N")];
        assert!(seen(&off, &[]).contains("lists no `tdx_host_platform`"));
        assert!(seen(&off, &["tdx_host_platform"]).starts_with("kvm_intel.tdx=N; reload kvm_intel with tdx=1"));
        let uncached = [("kvm_intel.tdx", "N"), ("kvm.mmio_caching", "N")];
        assert!(seen(&uncached, &["tdx_host_platform"]).starts_with("kvm.mmio_caching=N"));
        assert!(seen(&[], &["tdx_host_platform"]).contains("has not been initialized"));
    }
}
