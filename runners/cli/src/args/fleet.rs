//! The arguments of `privet fleet`.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use privet_harness::vm_type::VmType;

use super::Selection;
use super::values::whole;

/// `privet fleet`.
#[derive(Debug, Subcommand)]
pub enum Fleet {
    /// Write array jobs for Slurm, what submits them, and an epilogue for nodes; `privet collect DIR` makes one result
    /// of what they leave
    Slurm(Box<FleetSlurm>),
    /// Write a test definition for LAVA, whose every row is a test case there
    Lava(FleetLava),
}

/// `privet fleet slurm`.
#[derive(Debug, Args)]
pub struct FleetSlurm {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// Where to write; a directory that all nodes share, and that is new
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many jobs each array has. There is an array for each VM type where rows run on the nodes' own /dev/kvm, and
    /// one for all of them elsewhere
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, default_value = "4")]
    pub shards: NonZeroUsize,
    /// Rows that a job runs at a time: it takes a key id for each
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, default_value = "4")]
    pub jobs: NonZeroUsize,
    /// Fail rows of this VM type that a node skips although it has the feature; can be given several times
    #[arg(long, value_name = "VM")]
    pub require: Vec<VmType>,
    /// A feature that nodes must have besides those that the VM types need; can be given several times
    #[arg(long, value_name = "FEATURE")]
    pub feature: Vec<String>,
    /// How Slurm counts key ids
    #[arg(long, value_enum, default_value = "licences")]
    pub key_ids: KeyIds,
    /// Results by which time limits are told: three times what rows took there [default: 3 s for each row]
    #[arg(long, value_name = "RESULT")]
    pub durations: Option<PathBuf>,
    /// The program as nodes find it [default: this one]; PRIVET in their environment overrides it
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,
    /// Run each row under N schedules of the sim's processors, and spread these over the jobs instead of the rows
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroU32>, conflicts_with = "mutants")]
    pub schedules: Option<NonZeroU32>,
    /// Not rows but `privet mutants --kernel`, spread over the jobs
    #[arg(long)]
    pub mutants: bool,
    /// Options of `privet run`, or with --mutants of `privet mutants --kernel`, which every job gets
    #[arg(last = true, value_name = "OPTIONS")]
    pub options: Vec<OsString>,
}

/// How Slurm counts key ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum KeyIds {
    /// As licences, of the whole cluster
    Licences,
    /// As generic resources, of each node
    Gres,
    /// Not at all
    None,
}

/// `privet fleet lava`.
#[derive(Debug, Args)]
pub struct FleetLava {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// The program as the device finds it
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/privet")]
    pub program: String,
    /// Options of `privet run`
    #[arg(last = true, value_name = "OPTIONS")]
    pub options: Vec<OsString>,
}
