//! The command line.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};
use privet_rig::ModuleParam;

use crate::closed_stdout;
use crate::exit::Early;

mod compare;
mod model;
mod run;
mod values;
mod worker;

pub use compare::{Compare, CompareFormat, KselftestWorker, Kselftests, KselftestsBuild};
pub use model::{Model, Mutants, OneVendor};
pub use run::Run;
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
    /// The command line of this process. Help and version are printed, and end the process, as usual.
    ///
    /// # Errors
    /// What is wrong with the command line, in one line.
    pub fn of_this_process() -> Result<Self, Early> {
        Self::try_parse().map_err(|error| {
            let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            if !error.use_stderr() {
                return printed(&error);
            }
            if is_help {
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

impl Command {
    /// Whether it writes to standard output itself, and not only a worker's report or what another program writes.
    pub fn prints(&self) -> bool {
        !matches!(self, Command::Model(_) | Command::Worker(_) | Command::Kselftests(Kselftests::Worker(_)))
    }
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
    /// Get a kernel that Debian has built, and cache image and modules: no compiler is needed, but no such kernel
    /// has UPM VMs. `run` takes it if none was built, or with --kernel and --modules
    Fetch(RigFetch),
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
