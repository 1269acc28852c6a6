//! One vendor's half of KVM: its module, and the machine that runs it.

use privet_harness::vendor::Vendor;
use privet_harness::vm_type::VmType;
use privet_rig::{SimOptions, profile_of};

/// Whose half it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Half(pub(super) Vendor);

impl Half {
    /// The modules of KVM that a boot needs.
    pub(super) fn modules(self) -> [&'static str; 2] {
        ["kvm", self.0.module()]
    }

    /// The machine.
    pub(super) fn sim(self) -> SimOptions {
        let sim = SimOptions { profile: profile_of(self.0), ..SimOptions::default() };
        match self.0 {
            Vendor::Amd => sim,
            // A TD has no more vCPUs than there are processors.
            Vendor::Intel => SimOptions { cpus: 4, ..sim },
        }
    }

    /// Whether rows of VMs of this type run on it.
    pub(super) fn runs(self, vm: &str) -> bool {
        vm.parse().ok().and_then(VmType::vendor).is_none_or(|vendor| vendor == self.0)
    }

    /// Whether a file of the kernel's source is not the other vendor's.
    pub(super) fn has(self, file: &str) -> bool {
        let others = match self.0 {
            Vendor::Amd => ["arch/x86/kvm/vmx/", "arch/x86/virt/vmx/"],
            Vendor::Intel => ["arch/x86/kvm/svm/", "arch/x86/virt/svm/"],
        };
        !others.iter().any(|other| file.starts_with(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_secure_vms_are_of_one_half() {
        let [amd, intel] = [Vendor::Amd, Vendor::Intel].map(Half);
        for vm in VmType::ALL.map(|vm| vm.name()) {
            let is_of_both = ["plain", "upm"].contains(&vm);
            assert_eq!((amd.runs(vm), intel.runs(vm)), (is_of_both || vm != "tdx", is_of_both || vm == "tdx"), "{vm}");
        }
    }

    #[test]
    fn files_are_of_one_half_or_of_both() {
        let [amd, intel] = [Vendor::Amd, Vendor::Intel].map(Half);
        for (file, of_amd, of_intel) in [
            ("arch/x86/kvm/svm/sev.c", true, false),
            ("arch/x86/virt/svm/sev.c", true, false),
            ("arch/x86/kvm/vmx/tdx.c", false, true),
            ("arch/x86/virt/vmx/tdx/tdx.c", false, true),
            ("virt/kvm/guest_memfd.c", true, true),
        ] {
            assert_eq!((amd.has(file), intel.has(file)), (of_amd, of_intel), "{file}");
        }
    }
}
