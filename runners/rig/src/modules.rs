//! The modules that a rig loads, with their parameters.

use privet_harness::vendor::Vendor;
use privet_kernel::{Kernel, Module};

use crate::error::RigError;
use crate::initramfs::guest_path;
use crate::plan::{ModuleLoad, ModuleParam, Plan};

/// Whether a rig with this kernel and vendor loads a module that has each of these parameters. The kernel ignores
/// parameters that it does not know, and then rows would not run as they were asked to.
///
/// # Errors
/// [`RigError::ModuleParam`] for the first that has no effect, and whatever is wrong with the kernel's modules.
pub fn check_module_params(kernel: &Kernel, vendor: Vendor, params: &[ModuleParam]) -> Result<(), RigError> {
    let modules = modules(kernel, vendor)?;
    for param in params {
        let module = modules.iter().find(|module| module.name == param.module).ok_or_else(|| {
            let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
            RigError::ModuleParam { param: param.to_string(), why: format!("the rig only loads {}", names.join(", ")) }
        })?;
        let (name, _) = param.setting.split_once('=').unwrap_or((&param.setting, ""));
        if !module.params.iter().any(|known| known == name) {
            let why = format!("in Linux {} {} has {}", kernel.release, module.name, module.params.join(", "));
            return Err(RigError::ModuleParam { param: param.to_string(), why });
        }
    }
    Ok(())
}

/// The modules that a rig loads, in this order.
pub(crate) fn modules(kernel: &Kernel, vendor: Vendor) -> Result<Vec<Module>, RigError> {
    Ok(kernel.load_order(&["kvm", vendor.module()])?)
}

/// What is off unless somebody asks for it: the module, its parameter, and the setting. Where the machine cannot do it the
/// kernel turns it off again.
const OFFERED: [(&str, &str, &str); 1] = [("kvm_intel", "tdx", "tdx=1")];

/// Each module with its parameters: what the plan says comes last, and counts.
pub(crate) fn module_loads(plan: &Plan, modules: &[Module]) -> Vec<ModuleLoad> {
    let load = |module: &Module| {
        let offered = OFFERED.iter().filter(|(name, parameter, _)| {
            *name == module.name && module.params.iter().any(|known| known == parameter)
        });
        let own = plan.module_params.iter().filter(|param| param.module == module.name);
        let own = own.map(|param| param.setting.as_str());
        let settings: Vec<_> = offered.map(|(_, _, setting)| *setting).chain(own).collect();
        ModuleLoad { path: guest_path(module), params: settings.join(" ") }
    };
    modules.iter().map(load).collect()
}
