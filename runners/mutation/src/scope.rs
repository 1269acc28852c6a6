//! Which functions of the kernel are the table's business, if nobody says otherwise.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The scope as data, with reasons for what is not in it.
const DEFAULT: &str = include_str!("scope.toml");

/// A part of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The file, below the top of the source.
    pub file: String,
    /// The names of the functions that count, `*` for any text; all if there are none.
    #[serde(default)]
    pub functions: Vec<String>,
    /// Of those, the ones that do not count.
    #[serde(default)]
    pub without: Vec<String>,
    /// The types of the VMs that it is for, as rows name them; all if there are none.
    #[serde(default)]
    pub vms: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    part: Vec<Part>,
}

impl Part {
    /// What is mutated if nobody says otherwise: the code for private memory, of plain, upm and AMD's encrypted guests.
    ///
    /// # Panics
    /// If the data is no scope, which a test would see.
    #[must_use]
    pub fn default_scope() -> Vec<Self> {
        toml::from_str::<Parts>(DEFAULT).expect("scope.toml is a scope").part
    }

    /// A whole file.
    #[must_use]
    pub fn whole(file: &str) -> Self {
        Self { file: file.to_owned(), functions: Vec::new(), without: Vec::new(), vms: Vec::new() }
    }

    /// Whether it is for VMs of one of these types.
    #[must_use]
    pub fn is_for(&self, vms: &BTreeSet<&str>) -> bool {
        self.vms.is_empty() || self.vms.iter().any(|vm| vms.contains(vm.as_str()))
    }

    /// Whether a function of this file counts.
    #[must_use]
    pub fn has(&self, function: &str) -> bool {
        let among = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, function));
        (self.functions.is_empty() || among(&self.functions)) && !among(&self.without)
    }
}

/// Whether a name fits a pattern in which `*` stands for any text.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name
            .strip_prefix(head)
            .is_some_and(|tail| (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        assert!(matches("kvm_gmem_*", "kvm_gmem_bind") && matches("*fault*", "kvm_mmu_faultin_pfn"));
        assert!(!matches("kvm_gmem_*", "kvm_get") && !matches("a", "ab") && matches("*", ""));
    }

    #[test]
    fn what_is_left_out_is_not_in_scope() {
        let scope = Part::default_scope();
        let main = scope.iter().find(|part| part.file == "virt/kvm/kvm_main.c").unwrap();
        assert!(main.has("kvm_vm_set_mem_attributes") && !main.has("kvm_vcpu_on_spin"));
        let mmu = scope.iter().find(|part| part.file == "arch/x86/kvm/mmu/mmu.c").unwrap();
        assert!(mmu.has("kvm_mmu_page_fault") && !mmu.has("mmu_alloc_shadow_roots"));
    }

    #[test]
    fn what_is_for_encrypted_guests_is_no_business_of_others() {
        let scope = Part::default_scope();
        let sev = scope.iter().find(|part| part.file == "arch/x86/kvm/svm/sev.c").unwrap();
        assert!(sev.is_for(&["plain", "snp"].into()) && !sev.is_for(&["plain", "upm"].into()));
        assert!(Part::whole("virt/kvm/guest_memfd.c").is_for(&["upm"].into()));
    }
}
