//! The arguments of `privet run`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use privet_harness::vendor::Vendor;
use privet_harness::vm_type::VmType;
use privet_machine::Defect;

use super::model::defect;
use super::values::{seconds, whole};
use super::{On, RigOptions, Selection, Vendors};
use crate::report::Format;
use crate::selection::Partition;

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
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, allow_negative_numbers = true)]
    pub jobs: Option<NonZeroUsize>,
    /// Seconds that one row may take, by the clock of the machine that it runs on [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,
    /// End the run after S seconds by this machine's clock, whatever is still to be run; that is a failure
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    pub global_timeout: Option<Duration>,
    /// Run each row N times, each time with another seed
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroU32>, allow_negative_numbers = true, default_value = "1")]
    pub repeat: NonZeroU32,
    /// Seed of everything random [default: a fresh one, which is reported]
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true)]
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
