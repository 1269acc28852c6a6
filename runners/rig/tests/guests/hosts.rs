//! What a host says that can, or cannot, launch guests: the kernel's own words, in its log.

use privet_kernel::Kernel;
use privet_rig::{ModuleParam, Profile, SimOptions};

use super::{NOTHING, OnHost};

/// What the three types of guests are, in one line each: enabled, unusable or disabled, and with which ASIDs.
const TYPES: [&str; 3] = ["kvm_amd: SEV ", "kvm_amd: SEV-ES ", "kvm_amd: SEV-SNP "];

/// Boots such a host: it says all of this, and of each type of guests `states`.
fn says(kernel: Kernel, sim: SimOptions, parameter: Option<&str>, words: &[&str], states: [&str; 3]) {
    let module_params: Vec<ModuleParam> =
        parameter.into_iter().map(|text| text.parse().expect("a test gives good parameters")).collect();
    let host = OnHost { sim, module_params, ..OnHost::new(kernel, vec![NOTHING.into()]) }.run();
    let types = TYPES.iter().zip(states).filter(|(_, state)| !state.is_empty());
    let types: Vec<String> = types.map(|(kind, state)| format!("{kind}{state}")).collect();
    for word in words.iter().copied().chain(types.iter().map(String::as_str)) {
        assert!(host.log.contains(word), "{word} is missing: {}", host.log);
    }
    host.assert_clean();
}

fn without(names: &str) -> SimOptions {
    SimOptions { without: names.parse().expect("a test knows the features"), ..SimOptions::default() }
}

/// A host of Intel's: it says all of this, and nothing of that.
fn granite(kernel: Kernel, names: &str, parameter: Option<&str>, words: &[&str], unsaid: &[&str]) {
    let lacking = if names.is_empty() { SimOptions::default() } else { without(names) };
    let sim = SimOptions { profile: Profile::Granite, ..lacking };
    let module_params: Vec<ModuleParam> =
        parameter.into_iter().map(|text| text.parse().expect("a test gives good parameters")).collect();
    let host = OnHost { sim, module_params, ..OnHost::new(kernel, vec![NOTHING.into()]) }.run();
    for word in words {
        assert!(host.log.contains(word), "{word} is missing: {}", host.log);
    }
    for word in unsaid {
        assert!(!host.log.contains(word), "{word}: {}", host.log);
    }
    host.assert_clean();
}

const INITIALIZED: &str = "virt/tdx: TDX-Module initialized";

pub(crate) fn tdx(kernel: Kernel) {
    let words = [
        "x86/tme: enabled by BIOS",
        "x86/mktme: BIOS enabled: x86_phys_bits reduced by 6",
        "virt/tdx: BIOS enabled: private KeyID range [32, 64)",
        "virt/tdx: Module version: 1.5.06",
        "KB allocated for PAMT",
        INITIALIZED,
    ];
    granite(kernel, "", None, &words, &["SEAMCALL", "initialization failed"]);
}

pub(crate) fn no_tdx(kernel: Kernel) {
    let word = "virt/tdx: TDX not supported by the host platform";
    granite(kernel, "tdx", None, &[word], &[INITIALIZED, "x86/tme"]);
}

/// Without posted interrupts there is no APICv, which the module demands.
pub(crate) fn tdx_without_apicv(kernel: Kernel) {
    let words = [INITIALIZED, "APICv is required for TDX"];
    granite(kernel, "posted_intr", None, &words, &[]);
}

/// MMIO of TDs is caught by entries that say so, or not at all.
pub(crate) fn tdx_without_cached_mmio(kernel: Kernel) {
    let words = [INITIALIZED, "TDP MMU and MMIO caching and EPT A/D bit is required for TDX"];
    granite(kernel, "", Some("kvm.mmio_caching=0"), &words, &[]);
}

const SEV: &str = "enabled (ASIDs 100 - 509)";
const ES: &str = "enabled (ASIDs 1 - 99)";

pub(crate) fn genoa(kernel: Kernel) {
    let words = [
        "SEV-SNP: RMP table physical range [0x000000007f600000 - 0x000000007fffffff]",
        "AMD-Vi: IOMMU SNP support enabled",
        "ccp 0000:00:02.0: SEV-SNP API:1.55",
    ];
    says(kernel, SimOptions::default(), None, &words, [SEV, ES, ES]);
}

/// The RMP is in two segments, and read by RMPREAD.
pub(crate) fn turin(kernel: Kernel) {
    let words = [
        "SEV-SNP: Segmented RMP base table physical range [0x000000007f600000 - 0x000000007f605000]",
        "SEV-SNP: Segmented RMP using 1GB segments",
        "SEV-SNP: RMP segment 0 physical address [0x7f800000 - 0x7fbfffff] covering [0x0 - 0x3fffffff]",
        "SEV-SNP: RMP segment 1 physical address [0x7fc00000 - 0x7fffffff] covering [0x40000000 - 0x7fffffff]",
        "AMD-Vi: IOMMU SNP support enabled",
        "ccp 0000:00:02.0: SEV-SNP API:1.55",
    ];
    let sim = SimOptions { profile: Profile::Turin, ..SimOptions::default() };
    says(kernel, sim, None, &words, [SEV, ES, ES]);
}

pub(crate) fn sev_parameter_off(kernel: Kernel) {
    let off = "disabled (ASIDs 0 - 0)";
    says(kernel, SimOptions::default(), Some("kvm_amd.sev=0"), &[], [off, off, off]);
}

/// MMIO of guests with encrypted registers is caught by reserved bits, or not at all.
pub(crate) fn mmio_caching_off(kernel: Kernel) {
    let off = "disabled (ASIDs 0 - 0)";
    says(kernel, SimOptions::default(), Some("kvm.mmio_caching=0"), &[], [SEV, off, off]);
}

pub(crate) fn firmware_without_snp(kernel: Kernel) {
    says(kernel, without("snp_firmware"), None, &["SNP PLATFORM_STATUS command failed"], ["", "", "disabled"]);
}

pub(crate) fn no_rmp(kernel: Kernel) {
    let word = "SEV-SNP: Memory for the RMP table has not been reserved by BIOS";
    says(kernel, without("rmp_memory"), None, &[word], [SEV, ES, ""]);
}

pub(crate) fn no_snp(kernel: Kernel) {
    says(kernel, without("sev_snp"), None, &[], [SEV, ES, ""]);
}
