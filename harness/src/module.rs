//! The kvm modules of the running kernel, and the parameters that rows depend on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::vendor::cpu_is_amd;

/// What `/sys/module` says about KVM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Modules {
    /// The module that drives the hardware: `kvm_amd`, `kvm_intel` or another `kvm_*`.
    pub vendor: Option<String>,
    parameters: BTreeMap<String, String>,
}

impl Modules {
    /// Reads them; what cannot be read is not there.
    pub fn read() -> Modules {
        Self::read_from(Path::new("/sys/module"), if cpu_is_amd() { "kvm_amd" } else { "kvm_intel" })
    }

    /// Those of a kernel that has `vendor` and these parameters.
    #[cfg(test)]
    pub(crate) fn with(vendor: &str, parameters: &[(&str, &str)]) -> Modules {
        let named = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Modules { vendor: Some(vendor.to_owned()), parameters: named.collect() }
    }

    /// `of_cpu` is the module that the CPU is for: where both are built in, both are listed.
    fn read_from(root: &Path, of_cpu: &str) -> Modules {
        let mut modules = Modules::default();
        let mut vendors = Vec::new();
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let Ok(module) = entry.file_name().into_string() else { continue };
            if module != "kvm" && !module.starts_with("kvm_") {
                continue;
            }
            if module != "kvm" {
                vendors.push(module.clone());
            }
            for parameter in fs::read_dir(entry.path().join("parameters")).into_iter().flatten().flatten() {
                if let (Ok(name), Ok(value)) =
                    (parameter.file_name().into_string(), fs::read_to_string(parameter.path()))
                {
                    modules.parameters.insert(format!("{module}.{name}"), value.trim_end().to_owned());
                }
            }
        }
        // Only one can drive the hardware: one that somebody loaded besides those two, or the CPU's.
        modules.vendor = vendors.into_iter().min_by_key(|vendor| match vendor.as_str() {
            vendor if vendor == of_cpu => 1,
            "kvm_amd" | "kvm_intel" => 2,
            _ => 0,
        });
        modules
    }

    /// A parameter as in `kvm.mmio_caching`; None if the module or the parameter does not exist.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Whether a boolean parameter exists and is off.
    pub(crate) fn is_off(&self, name: &str) -> bool {
        matches!(self.parameter(name), Some("N" | "0"))
    }

    /// All of them, by name.
    pub fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_named_by_module_and_the_vendor_is_found() {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in [("kvm/parameters/tdp_mmu", "N\n"), ("kvm_amd/parameters/npt", "1\n"), ("ccp/x", "")] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        let modules = Modules::read_from(root.path(), "kvm_amd");
        assert_eq!(modules.vendor.as_deref(), Some("kvm_amd"));
        assert_eq!(modules.parameters().len(), 2);
        assert!(modules.is_off("kvm.tdp_mmu"));
        assert!(!modules.is_off("kvm_amd.npt"));
        assert!(!modules.is_off("kvm.no_such"));
    }

    #[test]
    fn of_modules_that_are_built_in_the_one_of_the_cpu_counts_unless_another_is_loaded() {
        let root = tempfile::tempdir().unwrap();
        let vendor = |of_cpu| Modules::read_from(root.path(), of_cpu).vendor.unwrap();
        for module in ["kvm", "kvm_amd", "kvm_intel"] {
            fs::create_dir(root.path().join(module)).unwrap();
        }
        assert_eq!([vendor("kvm_amd"), vendor("kvm_intel")], ["kvm_amd", "kvm_intel"]);
        fs::create_dir(root.path().join("kvm_pvm")).unwrap();
        assert_eq!([vendor("kvm_amd"), vendor("kvm_intel")], ["kvm_pvm", "kvm_pvm"]);
    }

    #[test]
    fn a_system_without_kvm_has_no_modules() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Modules::read_from(root.path(), "kvm_amd"), Modules::default());
        assert_eq!(Modules::read_from(&root.path().join("absent"), "kvm_amd"), Modules::default());
    }
}
