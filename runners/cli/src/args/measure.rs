//! The arguments of `privet measure`.

use clap::{Args, ValueEnum};

use super::RigOptions;

/// `privet measure`.
#[derive(Debug, Args)]
pub struct Measure {
    /// The id of the row
    pub id: String,
    /// One JSON object a guest, with each page of its own
    #[arg(long)]
    pub json: bool,
    /// Where the guests are launched [default: on this machine where it can, in the rig otherwise]
    #[arg(long, value_enum, value_name = "PLACE")]
    pub on: Option<MeasureOn>,
    /// What the rig boots.
    #[command(flatten)]
    pub rig: RigOptions,
}

/// The places where guests can be launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum MeasureOn {
    /// On this machine's /dev/kvm
    Host,
    /// On a real kernel in the rig
    Rig,
}
