//! The command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use privet_harness::vendor::Vendor;
use privet_rig::{MachineKind, ModuleParam, Profile, SimOptions, TdxFault, Without, profile_of, vendor_of};

use crate::closed_stdout;
use crate::config;
use crate::exit::Early;
use crate::filterset::Filterset;

mod compare;
mod fleet;
mod kernel_mutants;
mod measure;
mod model;
mod probe;
mod recording;
mod results;
mod run;
mod sim;
mod values;
mod worker;

pub use compare::{Compare, CompareFormat, KselftestWorker, Kselftests, KselftestsBuild};
pub use fleet::{Fleet, FleetLava, FleetSlurm, KeyIds};
pub use kernel_mutants::{KernelMutants, With};
pub use measure::{Measure, MeasureOn};
pub use model::{Model, Mutants, OneVendor};
pub use probe::{Probe, ProbeFormat, ProbeOn};
pub use recording::Recording;
pub use results::{Collect, CollectFormat, Diff, DiffFormat, Report};
pub use run::Run;
pub use sim::Sim;
pub use worker::Worker;

/// Tests of the private memory of confidential VMs on KVM
#[derive(Debug, Parser)]
#[command(name = "privet", version, max_term_width = 100)]
pub struct Cli {
    /// Whether to use colours; `auto` follows the terminal and NO_COLOR
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    pub color: ColorChoice,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The command line of this process, on top of the configuration file. Help and version are printed, and end the
    /// process, as usual.
    ///
    /// # Errors
    /// What is wrong with the command line or the file, in one line.
    pub fn of_this_process() -> Result<Self, Early> {
        let words: Vec<OsString> = std::env::args_os().collect();
        let cli = Self::try_parse_from(&words).map_err(|error| refused(&error))?;
        let Command::Run(run) = &cli.command else { return Ok(cli) };
        let options = config::options(run.config_file.as_deref(), run.profile.as_deref())?;
        if options.is_empty() {
            return Ok(cli);
        }
        // The command's name is the first word of its kind: no option before it takes such a value.
        let command = words.iter().position(|word| word == "run").unwrap_or_default();
        let (before, after) = words.split_at(command + 1);
        Self::try_parse_from([before, &options].concat()).map_err(|error| {
            let early = refused(&error);
            Early { message: format!("the configuration file: {}", early.message), ..early }
        })?;
        Self::try_parse_from([before, &options, after].concat()).map_err(|error| refused(&error))
    }
}

/// What clap says in paragraphs (the mistake, tips, the usage) in one line.
fn refused(error: &clap::Error) -> Early {
    if !error.use_stderr() {
        return printed(error);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.render().to_string();
    let before_usage = text.split("\nUsage:").next().unwrap_or(&text).replace("error: ", "");
    let lines: Vec<&str> = before_usage.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.starts_with("For more information")).collect();
    Early::usage(format!("{}; see `privet help`", lines.join("; ").replace(":;", ":")))
}

/// Help or version were asked for: shown, and the end of this process, unless they cannot be written.
fn printed(asked_for: &clap::Error) -> Early {
    let shown = closed_stdout::check().and_then(|()| {
        let written = asked_for.print().and_then(|()| io::stdout().flush());
        written.map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))
    });
    match shown {
        Ok(()) => std::process::exit(0),
        Err(early) => early,
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
    /// Launch the guests of a row, and tell what the secure processor measures of them: pages, vCPUs, launch digest
    Measure(Measure),
    /// Show what this machine can run, or a machine of the rig, and why not more
    Probe(Probe),
    /// The rig: a real kernel in a small virtual machine
    #[command(subcommand)]
    Rig(Rig),
    /// Work for many hosts
    #[command(subcommand)]
    Fleet(Fleet),
    /// Make one result of many: of shards, of hosts, of kernels; what never came back is in it as missing
    Collect(Collect),
    /// Tell what is different between two results: new failures, what was fixed, new skips, durations
    Diff(Diff),
    /// Make a page of results that people look at: one file, without network
    Report(Report),
    /// Run the kernel's own selftests and the rows beside them, and tell where they differ
    Compare(Box<Compare>),
    /// The kernel's own selftests of KVM
    #[command(subcommand)]
    Kselftests(Kselftests),
    /// Run any dynamically linked program on the model instead of this machine's /dev/kvm; the exit status is the
    /// program's
    Model(Model),
    /// Run any program of this system on a real kernel, in a small machine of our own; the exit status is the program's
    Sim(Sim),
    /// Run rows on the model once as it is and once with each of its defects, and tell which rows catch which
    Mutants(Box<Mutants>),
    /// Write a script that completes this command line in a shell
    Completions(Completions),
    /// Write a manual page, in the format of man(7)
    Man(Man),
    /// Describe the machine that this process is on: what `run` asks on the model
    #[command(hide = true)]
    WhatModel,
    /// Run one row in this process: what `run` starts for every row
    #[command(hide = true)]
    Worker(Worker),
    /// Get ready in this process for a row, and run the one that standard input tells
    #[command(hide = true)]
    ReadyWorker,
    /// Be a machine of the rig: what `run --on rig --machine sim` starts
    #[command(hide = true)]
    SimMachine {
        /// Which machine, as the rig describes it
        job: String,
    },
}

impl Command {
    /// Whether it writes to standard output itself, and not only a worker's report or what another program writes.
    pub fn prints(&self) -> bool {
        !matches!(
            self,
            Command::Model(_)
                | Command::Sim(_)
                | Command::Worker(_)
                | Command::ReadyWorker
                | Command::SimMachine { .. }
                | Command::Kselftests(Kselftests::Worker(_))
        )
    }
}

/// The headings of options that several commands have.
const ROWS: &str = "Rows";
const RIG: &str = "Rig and model";

/// Which rows: those that meet a FILTER, if any is given, and an EXPRESSION, if any is given, and no --skip.
#[derive(Debug, Args)]
pub struct Selection {
    /// Rows whose id contains one of these; all if none is given
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Only rows that meet EXPRESSION, such as `vm(upm) & group(mmio) - id(~cost)`; given several times, one of them
    ///
    /// Predicates are id() (or test()), vm(), group(), needs() and upstream(), all() and none(). In the parentheses
    /// stands =whole, ~part, /regular expression/ or #glob; a text alone is whole for vm() and group(), and a part for
    /// the others. Operators are ! & - | with the meanings not, and, and not, or, from the tightest to the loosest, and
    /// parentheses.
    #[arg(short = 'E', long = "filterset", value_name = "EXPRESSION", help_heading = ROWS)]
    pub filtersets: Vec<Filterset>,
    /// No rows whose id contains this; can be given several times
    #[arg(long, value_name = "FILTER", help_heading = ROWS)]
    pub skip: Vec<String>,
    /// Take each FILTER for a whole id
    #[arg(long, help_heading = ROWS)]
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
    #[arg(long, conflicts_with_all = ["exact", "filtersets", "skip"])]
    pub upstream: bool,
    /// Show the defects that the model can have instead, and what each would do; FILTER then selects defects by
    /// their names
    #[arg(long, conflicts_with_all = ["upstream", "filtersets", "skip"])]
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
    #[arg(long, value_name = "BZIMAGE", requires = "modules", help_heading = RIG)]
    pub kernel: Option<PathBuf>,
    /// Directory with the modules of --kernel
    #[arg(long, value_name = "DIR", requires = "kernel", help_heading = RIG)]
    pub modules: Option<PathBuf>,
    /// What plays the rig's machine: `sim` (ours) has either vendor's processors, `qemu` AMD's, `bochs` Intel's
    /// [default: sim]
    #[arg(long, value_name = "MACHINE", help_heading = RIG)]
    pub machine: Option<MachineKind>,
    /// Which processors the sim has: `milan`, `genoa` or `turin` with SEV, SEV-ES and SEV-SNP, or `plain` ones of AMD's
    /// without; or Intel's `granite` [default: genoa, or granite with --vendor intel]
    #[arg(long, value_name = "PROFILE", value_parser = cpu_profile(), help_heading = RIG)]
    pub cpu_profile: Option<Profile>,
    /// How many of them the sim has [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8), help_heading = RIG)]
    pub cpus: Option<u8>,
    /// Features that the sim's processors shall lack, by the names of their CPUID bits, with commas between them, such as
    /// nrips,decodeassists
    #[arg(long, value_name = "FEATURES", value_parser = cpu_without(), help_heading = RIG)]
    pub cpu_without: Option<Without>,
    /// Has the sim's TDX module answer a call of a leaf with a status in every row, counted from the row's beginning, such as
    /// TDH.MEM.PAGE.AUG:2:OPERAND_BUSY:SEPT; can be given several times
    #[arg(long, value_name = "LEAF:NTH:CODE[:OPERAND]", help_heading = RIG)]
    pub tdx_fault: Vec<TdxFault>,
    /// Parameter of a KVM module in the rig or on the model, such as kvm.mmio_caching=0; can be given several times
    #[arg(long, value_name = "MODULE.NAME=VALUE", help_heading = RIG)]
    pub module_param: Vec<ModuleParam>,
}

/// Refuses processors that are not this vendor's.
pub(crate) fn check_profile(profile: Option<Profile>, vendor: Vendor) -> Result<(), Early> {
    match profile.filter(|profile| vendor_of(*profile) != vendor) {
        None => Ok(()),
        Some(profile) => Err(Early::usage(format!(
            "--cpu-profile {} is none of {vendor}'s processors: name one that is, or leave out one of them",
            profile.name()
        ))),
    }
}

/// Takes the name of a profile.
fn cpu_profile() -> impl TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(Profile::ALL.iter().map(|profile| profile.name())).try_map(|name| name.parse::<Profile>())
}

/// Takes names of features.
fn cpu_without() -> impl TypedValueParser<Value = Without> {
    StringValueParser::new().try_map(|names| names.parse::<Without>())
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
    /// The machine with processors of this vendor.
    ///
    /// # Errors
    /// If the one that was asked for has others.
    pub fn machine_for(&self, vendor: Vendor) -> Result<MachineKind, Early> {
        let machine = self.machine.unwrap_or(MachineKind::Sim);
        if !machine.vendors().contains(&vendor) {
            return Err(Early::usage(format!(
                "--machine {machine} has no processors of {vendor}'s: name a machine that has, or leave out --machine"
            )));
        }
        if let Some(profile) = self.cpu_profile.filter(|_| machine != MachineKind::Sim) {
            return Err(Early::usage(format!(
                "--cpu-profile {} is of the sim's processors, and this is --machine {machine}: leave out one of them",
                profile.name()
            )));
        }
        check_profile(self.cpu_profile, vendor)?;
        if let Some(fault) = self.tdx_fault.first().filter(|_| machine != MachineKind::Sim || vendor != Vendor::Intel) {
            return Err(Early::usage(format!(
                "--tdx-fault {fault} is about the TDX module of the sim's Intel processors: use --vendor intel, or leave it out"
            )));
        }
        if let Some(cpus) = self.cpus.filter(|_| machine != MachineKind::Sim) {
            return Err(Early::usage(format!(
                "--cpus {cpus} is about the sim's processors, and this is --machine {machine}: leave out one of them"
            )));
        }
        if let Some(without) = self.cpu_without.filter(|_| machine != MachineKind::Sim) {
            return Err(Early::usage(format!(
                "--cpu-without {without} is about the sim's processors, and this is --machine {machine}: leave out one of them"
            )));
        }
        Ok(machine)
    }

    /// What the machine is like if it is ours, with processors of this vendor.
    pub fn sim(&self, vendor: Vendor) -> SimOptions {
        let default = SimOptions::default();
        SimOptions {
            cpus: self.cpus.map_or(default.cpus, usize::from),
            profile: self.cpu_profile.unwrap_or_else(|| profile_of(vendor)),
            without: self.cpu_without.unwrap_or_default(),
            ..default
        }
    }

    /// The vendor of the processors or of the machine that was asked for, or AMD.
    pub fn vendor(&self) -> Vendor {
        self.vendor_or(Vendor::Amd)
    }

    /// The same, or another one where any would do.
    pub fn vendor_or(&self, vendor: Vendor) -> Vendor {
        let of_machine = || {
            let vendors = self.machine.unwrap_or(MachineKind::Sim).vendors();
            if vendors.contains(&vendor) { vendor } else { vendors[0] }
        };
        self.cpu_profile.map_or_else(of_machine, vendor_of)
    }

    /// Whether the command line asks for something that only a rig can give.
    pub fn is_given(&self) -> bool {
        self.kernel.is_some()
            || self.machine.is_some()
            || self.cpu_profile.is_some()
            || self.cpus.is_some()
            || self.cpu_without.is_some()
            || !self.module_param.is_empty()
            || !self.tdx_fault.is_empty()
    }
}

/// `privet completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// `privet man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The command that the page is about, such as `run` or `rig build`; privet itself if none is given
    pub command: Vec<String>,
}

/// `privet explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The id of the row
    #[arg(required_unless_present = "truth_table")]
    pub id: Option<String>,
    /// Not a row, but how KVM classifies accesses: the truth tables of the VM types with private memory, side by side, as a page in
    /// Markdown
    #[arg(long, conflicts_with = "id")]
    pub truth_table: bool,
}

/// `privet rig`.
#[derive(Debug, Subcommand)]
pub enum Rig {
    /// Get a kernel source, build it with what the rows need, and cache kernel and modules
    Build(RigBuild),
    /// Get a kernel that Debian has built, and cache image and modules: no compiler is needed, but no such kernel
    /// has UPM VMs. `run` takes it if none was built, or with --kernel and --modules
    Fetch(RigFetch),
    /// The booted machines of ours that are kept, so that a row need not wait for a boot
    #[command(subcommand)]
    Snapshots(Snapshots),
}

/// `privet rig snapshots`.
#[derive(Debug, Subcommand)]
pub enum Snapshots {
    /// Show them
    List,
    /// Drop those that no run is using
    Drop,
}

/// `privet rig fetch`.
#[derive(Debug, Args)]
pub struct RigFetch {
    /// Take the newest package of this suite of the Debian archive only
    #[arg(long)]
    pub suite: Option<String>,
    /// Take this package, such as linux-image-6.1.0-50-amd64 [default: the newest one]
    #[arg(long, value_name = "NAME")]
    pub package: Option<String>,
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
