//! The command line.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use privet_harness::vendor::Vendor;
use privet_harness::vm_type::VmType;
use privet_machine::Defect;
use privet_rig::ModuleParam;

use crate::exit::Early;
use crate::report::Format;
use crate::selection::{Partition, no_such};

/// Tests of the private memory of confidential VMs on KVM
#[derive(Debug, Parser)]
#[command(name = "privet", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The command line of this process. Help and version are printed, and end the process, as usual.
    ///
    /// # Errors
    /// What is wrong with the command line, in one line.
    pub fn of_this_process() -> Result<Self, Early> {
        Self::try_parse().map_err(|error| {
            let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            if is_help || !error.use_stderr() {
                error.exit();
            }
            // What clap says in paragraphs: the mistake, tips, the usage.
            let text = error.render().to_string();
            let before_usage = text.split("\nUsage:").next().unwrap_or(&text).replace("error: ", "");
            let lines: Vec<&str> = before_usage.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let lines: Vec<&str> = lines.into_iter().filter(|line| !line.starts_with("For more information")).collect();
            Early::usage(format!("{}; see `privet help`", lines.join("; ").replace(":;", ":")))
        })
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the rows of the table; needs no /dev/kvm
    List(List),
    /// Run rows and report their verdicts
    Run(Box<Run>),
    /// Tell what a row checks, on what it is based and what it needs
    Explain(Explain),
    /// Show what this machine can run, and why not more
    Probe,
    /// The rig: a real kernel in a small virtual machine
    #[command(subcommand)]
    Rig(Rig),
    /// Run the kernel's own selftests and the rows beside them, and tell where they differ
    Compare(Box<Compare>),
    /// The kernel's own selftests of KVM
    #[command(subcommand)]
    Kselftests(Kselftests),
    /// Run any dynamically linked program on the model instead of this machine's /dev/kvm; the exit status is the
    /// program's
    Model(Model),
    /// Run rows on the model once as it is and once with each of its defects, and tell which rows catch which
    Mutants(Mutants),
    /// Describe the machine that this process is on: what `run` asks on the model
    #[command(hide = true)]
    WhatModel,
    /// Run one row in this process: what `run` starts for every row
    #[command(hide = true)]
    Worker(Worker),
}

/// Which rows.
#[derive(Debug, Args)]
pub struct Selection {
    /// Rows whose id contains one of these; all if none is given
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Take each FILTER for a whole id
    #[arg(long, requires = "filters")]
    pub exact: bool,
}

/// `privet list`.
#[derive(Debug, Args)]
pub struct List {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// How to show them
    #[arg(long, value_enum, default_value = "pretty")]
    pub format: ListFormat,
    /// Show the kernel's own selftests instead, function by function, and which rows cover them; FILTER then
    /// selects tests by their names
    #[arg(long, conflicts_with = "exact")]
    pub upstream: bool,
    /// Show the defects that the model can have instead, and what each would do; FILTER then selects defects by
    /// their names
    #[arg(long, conflicts_with = "upstream")]
    pub defects: bool,
}

/// The formats of `privet list`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ListFormat {
    /// The id of each row and what it is about
    Pretty,
    /// One JSON object a line
    Json,
}

/// `privet run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// Where to run: `auto` prefers this machine's /dev/kvm, takes the rig for rows that it cannot run, and the
    /// model where there is no rig
    #[arg(long, value_enum, default_value = "auto", value_name = "PLACE")]
    pub on: On,
    /// How to report
    #[arg(long, value_enum, default_value = "pretty")]
    pub format: Format,
    /// Write the report to FILE, all or nothing; standard output then gets the pretty one
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep what each row leaves (report, output) in a directory of its own below DIR
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// Rows that run at a time [default: one per core]
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>)]
    pub jobs: Option<NonZeroUsize>,
    /// Seconds that one row may take, by the clock of the machine that it runs on [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Run each row N times, each time with another seed
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroU32>, default_value = "1")]
    pub repeat: NonZeroU32,
    /// Seed of everything random [default: a fresh one, which is reported]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub seed: Option<u64>,
    /// Fail rows of this VM type instead of skipping them, unless they are about another setting of a module
    /// parameter; can be given several times
    #[arg(long, value_name = "VM")]
    pub require: Vec<VmType>,
    /// Run one of N slices of the selected rows
    #[arg(long, value_name = "M/N")]
    pub partition: Option<Partition>,
    /// What the rig boots.
    #[command(flatten)]
    pub rig: RigOptions,
    /// Whose processors the rig or the model has, and so whose half of KVM runs: in a rig QEMU emulates AMD's,
    /// Bochs emulates Intel's [default: amd; on the model without memory encryption]
    #[arg(long, value_enum, value_name = "VENDOR")]
    pub vendor: Option<Vendors>,
    /// A bug that the model shall have; `privet list --defects` shows all of them
    #[arg(long, value_name = "NAME", value_parser = defect)]
    pub defect: Option<Defect>,
    /// Run the rows at PLACE, too, and print only where the two verdicts differ; if any do, that is a failure
    #[arg(long, value_enum, value_name = "PLACE", conflicts_with_all = ["format", "output", "artifacts", "require"])]
    pub diff: Option<On>,
}

impl Run {
    /// The vendors whose processors every row shall have once.
    pub fn vendors(&self) -> &'static [Vendor] {
        match self.vendor {
            None | Some(Vendors::Amd) => &[Vendor::Amd],
            Some(Vendors::Intel) => &[Vendor::Intel],
            Some(Vendors::Both) => &[Vendor::Amd, Vendor::Intel],
        }
    }
}

/// Where to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum On {
    /// On this machine's /dev/kvm
    Host,
    /// On a real kernel in the rig
    Rig,
    /// On a KVM in user space: what passes there may still fail on a kernel or on hardware
    Model,
    /// The host where it can, then the rig, then (for `run`) the model
    Auto,
}

/// What the rig boots. Any of these makes `--on auto` mean the rig.
#[derive(Debug, Default, Args)]
pub struct RigOptions {
    /// Kernel image for the rig, instead of the one that `privet rig build` made
    #[arg(long, value_name = "BZIMAGE", requires = "modules")]
    pub kernel: Option<PathBuf>,
    /// Directory with the modules of --kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// Parameter of a KVM module in the rig or on the model, such as kvm.mmio_caching=0; can be given several times
    #[arg(long, value_name = "MODULE.NAME=VALUE")]
    pub module_param: Vec<ModuleParam>,
}

/// Whose processors the rig or the model has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Vendors {
    /// AMD's: SVM with NPT
    Amd,
    /// Intel's: VMX with EPT
    Intel,
    /// Each row on both
    Both,
}

impl RigOptions {
    /// Whether the command line asks for something that only a rig can give.
    pub fn is_given(&self) -> bool {
        self.kernel.is_some() || !self.module_param.is_empty()
    }
}

/// `privet explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The id of the row
    pub id: String,
}

/// `privet rig`.
#[derive(Debug, Subcommand)]
pub enum Rig {
    /// Get a kernel source, build it with what the rows need, and cache kernel and modules
    Build(RigBuild),
}

/// `privet rig build`.
#[derive(Debug, Args)]
pub struct RigBuild {
    /// Take the kernel source package from this suite of the Debian archive only
    #[arg(long)]
    pub suite: Option<String>,
    /// Build this kernel source tree or tarball
    #[arg(long, value_name = "DIR|TARBALL", conflicts_with = "suite")]
    pub source: Option<PathBuf>,
    /// Kernel configuration options on top of the rig's own
    #[arg(long, value_name = "FRAGMENT")]
    pub config: Option<PathBuf>,
}

/// `privet mutants`.
#[derive(Debug, Args)]
pub struct Mutants {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// Try this defect only; can be given several times
    #[arg(long, value_name = "NAME", value_parser = defect)]
    pub defect: Vec<Defect>,
    /// Rows that run at a time [default: one per core]
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>)]
    pub jobs: Option<NonZeroUsize>,
    /// Seconds that one row may take at most; with a defect it gets ten times as long as without one, but 3 s or
    /// more, and has caught the defect if it takes longer
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "20")]
    pub timeout: Duration,
    /// Seed of everything random [default: a fresh one, which is reported]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub seed: Option<u64>,
}

/// `privet worker`.
#[derive(Debug, Args)]
pub struct Worker {
    /// The id of the row
    pub id: String,
    /// Seed of everything random in the row
    #[arg(long)]
    pub seed: u64,
    /// Milliseconds that the row may take
    #[arg(long)]
    pub limit_ms: u64,
    /// Compiled code is known to run in the guest's ring 0 here
    #[arg(long)]
    pub ring0_works: bool,
    /// Hypercalls are known to come back here
    #[arg(long)]
    pub hypercalls_work: bool,
}

/// `privet compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Tests of upstream's and rows whose name contains one of these, with what belongs to them; all if none
    /// is given
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Built selftests [default: what `privet kselftests build` made last]
    #[arg(long, value_name = "DIR")]
    pub kselftests: Option<PathBuf>,
    /// Where to run both: `auto` takes this machine's /dev/kvm if guests can run on it, and the rig if not
    #[arg(long, value_enum, default_value = "auto", value_name = "PLACE")]
    pub on: On,
    /// How to report
    #[arg(long, value_enum, default_value = "pretty")]
    pub format: CompareFormat,
    /// Seconds that one test or row may take
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "120")]
    pub timeout: Duration,
    /// Keep all verdicts in FILE, as a baseline of this host
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Tell what changed since the baseline in FILE; new failures are failures of the comparison
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// What the rig boots.
    #[command(flatten)]
    pub rig: RigOptions,
}

/// The formats of `privet compare`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CompareFormat {
    /// A table for people
    Pretty,
    /// One JSON object a line
    Json,
    /// KTAP version 1: each comparison is a result
    Ktap,
    /// JUnit XML: each comparison is a test case
    Junit,
}

/// `privet kselftests`.
#[derive(Debug, Subcommand)]
pub enum Kselftests {
    /// Get a kernel source, build its tests of KVM that the table knows, and cache them
    Build(KselftestsBuild),
    /// Run one test in this process' place and tell what it did: what `compare` starts for every test
    #[command(hide = true)]
    Worker(KselftestWorker),
}

/// `privet kselftests build`.
#[derive(Debug, Args)]
pub struct KselftestsBuild {
    /// Build from this kernel source tree or tarball, instead of the package that the rig's kernel is built from
    #[arg(long, value_name = "DIR|TARBALL")]
    pub source: Option<PathBuf>,
    /// Link statically, for hosts that lack the libraries of this machine
    #[arg(long = "static")]
    pub is_static: bool,
}

/// `privet kselftests worker`.
#[derive(Debug, Args)]
pub struct KselftestWorker {
    /// The test, as in `x86/sev_smoke_test`
    pub test: String,
    /// The directory of built tests
    #[arg(long)]
    pub dir: PathBuf,
    /// Milliseconds that the test may take
    #[arg(long)]
    pub limit_ms: u64,
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

/// A defect of the model by its name.
fn defect(name: &str) -> Result<Defect, String> {
    Defect::named(name).ok_or_else(|| {
        let names: Vec<String> = Defect::ALL.iter().map(|defect| defect.name().to_owned()).collect();
        no_such("no defect has the name", &names, name, "privet list --defects").message
    })
}

/// A whole number that fits its type.
fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    let least = if "0".parse::<T>().is_ok() { 0 } else { 1 };
    text.parse().map_err(|_| format!("give a whole number of {least} or more, below 2^{}", 8 * size_of::<T>()))
}

/// A time limit in seconds, fractions included.
fn seconds(text: &str) -> Result<Duration, String> {
    const MAX: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MAX => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("give seconds above 0 and up to {MAX}")),
    }
}
