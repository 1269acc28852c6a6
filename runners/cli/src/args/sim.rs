//! The arguments of `privet sim`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use privet_rig::{ModuleParam, Profile, Without};

use super::{Recording, cpu_profile, cpu_without};

/// `privet sim`.
#[derive(Debug, Args)]
pub struct Sim {
    /// Kernel image, instead of the one that `privet rig build` made
    #[arg(long, value_name = "BZIMAGE", requires = "modules")]
    pub kernel: Option<PathBuf>,
    /// Directory with the modules of --kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// Parameter of a KVM module, such as kvm.mmio_caching=0; can be given several times
    #[arg(long, value_name = "MODULE.NAME=VALUE")]
    pub module_param: Vec<ModuleParam>,
    /// Processors of the machine
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub cpus: u8,
    /// Which processors: `milan`, `genoa` or `turin` with SEV, SEV-ES and SEV-SNP, or `plain` ones of AMD's without
    #[arg(long, value_name = "PROFILE", default_value = Profile::default().name(), value_parser = cpu_profile())]
    pub cpu_profile: Profile,
    /// Features that they shall lack, by the names of their CPUID bits, with commas between them, such as
    /// nrips,decodeassists
    #[arg(long, value_name = "FEATURES", value_parser = cpu_without())]
    pub cpu_without: Option<Without>,
    /// Decides how the processors take turns: the same seed gives the same run
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// A file that comes along, at the same path; can be given several times
    #[arg(long, value_name = "PATH")]
    pub file: Vec<PathBuf>,
    /// Keep the machine that is booted with the program in it: whoever runs it with the same options again goes on from there
    #[arg(long, requires = "program", conflicts_with_all = ["instruction_profile", "coverage"])]
    pub keep: bool,
    /// What is asked about what the machine executes.
    #[command(flatten)]
    pub recording: Recording,
    /// The program and its arguments [default: a shell, with the kernel's log and the usual small programs]
    #[arg(value_name = "PROGRAM", trailing_var_arg = true, allow_hyphen_values = true)]
    pub program: Vec<OsString>,
}
