//! The kvm modules of the running kernel, and the parameters that rows depend on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::vendor::cpu_is_amd;

/// What `/sys/module` says about KVM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Modules {
    /// The module that drives the hardware: `kvm_amd`, `kvm_intel` or another `kvm_*`.
    pub vendor: Option<String>,
    root: PathBuf,
}

impl Modules {
    /// Finds them; what cannot be read is not there.
    pub fn read() -> Modules {
        Self::read_from(Path::new("/sys/module"), if cpu_is_amd() { "kvm_amd" } else { "kvm_intel" })
    }

    /// `of_cpu` is the module that the CPU is for: where both are built in, both are listed.
    fn read_from(root: &Path, of_cpu: &str) -> Modules {
        let names = fs::read_dir(root).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        // Only one can drive the hardware: one that somebody loaded besides those two, or the CPU's.
        let vendor = names.filter(|name| name.starts_with("kvm_")).min_by_key(|vendor| match vendor.as_str() {
            vendor if vendor == of_cpu => 1,
            "kvm_amd" | "kvm_intel" => 2,
            _ => 0,
        });
        Modules { vendor, root: root.to_owned() }
    }

    /// A parameter as in `kvm.mmio_caching`, as it is now; None if the module or the parameter does not exist.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let (module, parameter) = name.split_once('.')?;
        let value = fs::read_to_string(self.root.join(module).join("parameters").join(parameter)).ok()?;
        Some(value.trim_end().to_owned())
    }

    /// Whether the module of a parameter as in `kvm.mmio_caching` is loaded, and has no such parameter.
    pub(crate) fn has_no(&self, name: &str) -> bool {
        let module = name.split_once('.').map_or(name, |(module, _)| module);
        self.parameter(name).is_none() && self.root.join(module).is_dir()
    }

    /// Whether a boolean parameter exists and is off.
    pub(crate) fn is_off(&self, name: &str) -> bool {
        matches!(self.parameter(name).as_deref(), Some("N" | "0"))
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
        assert_eq!(modules.parameter("kvm_amd.npt").as_deref(), Some("1"));
        assert!(modules.is_off("kvm.tdp_mmu"));
        assert!(!modules.is_off("kvm_amd.npt"));
        assert!(!modules.is_off("kvm.no_such"));
        assert!(modules.has_no("kvm.no_such"));
        assert!(!modules.has_no("kvm.tdp_mmu"));
        assert!(!modules.has_no("kvm_intel.ept"), "the module is not loaded");
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
        for root in [root.path(), &root.path().join("absent")] {
            let modules = Modules::read_from(root, "kvm_amd");
            assert_eq!((&modules.vendor, modules.parameter("kvm.tdp_mmu")), (&None, None));
        }
    }
}
