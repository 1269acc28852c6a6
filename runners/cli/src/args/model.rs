//! The arguments of `privet model` and `privet mutants`.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, ValueEnum};
use privet_harness::vendor::Vendor;
use privet_machine::Defect;
use privet_rig::{ModuleParam, Rule};

use super::values::{seconds, whole};
use super::{KernelMutants, Selection};
use crate::selection::no_such;

/// `privet mutants`.
#[derive(Debug, Args)]
pub struct Mutants {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// Not defects of the model but rules that the sim's silicon forgets, one at a time. Without FILTER rows of SEV,
    /// SEV-ES and SEV-SNP are tried, or those of TDX
    #[arg(long, conflicts_with = "defect", group = "beyond_the_model")]
    pub silicon: bool,
    /// Try without this rule of the silicon only; can be given several times. Those of VMX are only tried if they are named,
    /// and without FILTER on plain rows and those of UPM
    #[arg(long, value_name = "NAME", value_parser = rule, requires = "silicon")]
    pub rule: Vec<Rule>,
    /// With --kernel and --silicon: whose processors, and so whose half of KVM or whose silicon [default: amd]
    #[arg(long, value_enum, value_name = "VENDOR", requires = "beyond_the_model")]
    pub vendor: Option<OneVendor>,
    /// Mutants of the kernel.
    #[command(flatten)]
    pub kernel: KernelMutants,
    /// Try this defect only; can be given several times
    #[arg(long, value_name = "NAME", value_parser = defect)]
    pub defect: Vec<Defect>,
    /// Rows that run at a time [default: one per core]
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, allow_negative_numbers = true)]
    pub jobs: Option<NonZeroUsize>,
    /// Seconds that one row may take at most; with a defect it gets ten times as long as without one, but 3 s or
    /// more, and has caught the defect if it takes longer
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true, default_value = "20")]
    pub timeout: Duration,
    /// Seed of everything random [default: a fresh one, which is reported]
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: Option<u64>,
}

/// `privet model`.
#[derive(Debug, Args)]
pub struct Model {
    /// Whose processors, with all that the model has of that vendor's [default: amd without memory encryption]
    #[arg(long, value_enum, value_name = "VENDOR")]
    pub vendor: Option<OneVendor>,
    /// Parameter of a KVM module, such as kvm.mmio_caching=0; can be given several times
    #[arg(long, value_name = "MODULE.NAME=VALUE")]
    pub module_param: Vec<ModuleParam>,
    /// A bug that the model shall have; `privet list --defects` shows all of them
    #[arg(long, value_name = "NAME", value_parser = defect)]
    pub defect: Option<Defect>,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub program: Vec<OsString>,
}

/// Whose processors the model of a program has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OneVendor {
    /// AMD's: SVM with NPT
    Amd,
    /// Intel's: VMX with EPT
    Intel,
}

impl From<OneVendor> for Vendor {
    fn from(vendor: OneVendor) -> Self {
        match vendor {
            OneVendor::Amd => Vendor::Amd,
            OneVendor::Intel => Vendor::Intel,
        }
    }
}

/// A rule of the silicon by its name.
fn rule(name: &str) -> Result<Rule, String> {
    Rule::named(name).ok_or_else(|| {
        let names: Vec<String> = Rule::ALL.iter().map(|rule| rule.name().to_owned()).collect();
        no_such("no rule has the name", &names, name, "runners/silicon/src/rule.rs").message
    })
}

/// A defect of the model by its name.
pub(super) fn defect(name: &str) -> Result<Defect, String> {
    Defect::named(name).ok_or_else(|| {
        let names: Vec<String> = Defect::ALL.iter().map(|defect| defect.name().to_owned()).collect();
        no_such("no defect has the name", &names, name, "privet list --defects").message
    })
}
