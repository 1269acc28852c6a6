//! The arguments of `privet probe`.

use clap::{Args, ValueEnum};

use super::RigOptions;

/// `privet probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// What to look at
    #[arg(long, value_enum, default_value = "host", value_name = "PLACE")]
    pub on: ProbeOn,
    /// What the rig boots.
    #[command(flatten)]
    pub rig: RigOptions,
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
