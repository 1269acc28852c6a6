//! The arguments of `privet probe`.

use clap::{Args, ValueEnum};

use super::RigOptions;

/// `privet probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// What to look at
    #[arg(long, value_enum, default_value = "host", value_name = "PLACE")]
    pub on: ProbeOn,
    /// How to tell it
    #[arg(long, value_enum, default_value = "pretty")]
    pub format: ProbeFormat,
    /// What the rig boots.
    #[command(flatten)]
    pub rig: RigOptions,
}

/// The formats of `privet probe`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ProbeFormat {
    /// For people, with reasons
    Pretty,
    /// The node's line of slurm.conf, with features, and the licences that it adds
    Slurm,
    /// Labels in the vocabulary of Kubernetes' Node Feature Discovery, for its features.d
    Nfd,
    /// One JSON object
    Json,
}

/// The places that can be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ProbeOn {
    /// This machine
    Host,
    /// A machine of the rig
    Rig,
    /// This machine, which is one of the rig: what `rig` runs inside
    #[value(hide = true)]
    InRig,
}
