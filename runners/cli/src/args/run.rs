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
use super::{On, RIG, ROWS, Recording, RigOptions, Selection, Vendors};
use crate::report::Format;
use crate::selection::Partition;

/// `privet run`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    before_long_help = "Options by heading: Rows, Place, Limits, Verdicts, Reports, Rig and model, Profiles."
)]
pub struct Run {
    /// Which rows.
    #[command(flatten)]
    pub selection: Selection,
    /// Run one of N slices of the selected rows
    #[arg(long, value_name = "M/N", help_heading = ROWS)]
    pub partition: Option<Partition>,
    /// Run each row N times, each time with another seed
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroU32>, allow_negative_numbers = true, default_value = "1", help_heading = ROWS)]
    pub repeat: NonZeroU32,
    /// Run each row under N schedules of the sim's processors, in short turns that meet often, until it does not pass
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroU32>, allow_negative_numbers = true, help_heading = RIG)]
    pub schedules: Option<NonZeroU32>,
    /// Run each row under this schedule of the sim's processors, as a report names it
    #[arg(long, value_name = "SEED", value_parser = whole::<u64>, conflicts_with = "schedules", allow_negative_numbers = true, help_heading = RIG)]
    pub schedule: Option<u64>,
    /// Seed of everything random [default: a fresh one, which is reported]
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true, help_heading = ROWS)]
    pub seed: Option<u64>,

    /// Where to run: `auto` prefers this machine's /dev/kvm, takes the rig for rows that it cannot run, and the
    /// model where there is no rig
    #[arg(long, value_enum, default_value = "auto", value_name = "PLACE", help_heading = PLACE)]
    pub on: On,
    /// Run the rows at PLACE, too, and print only where the two verdicts differ; if any do, that is a failure
    #[arg(long, value_enum, value_name = "PLACE", help_heading = PLACE,
        conflicts_with_all = ["format", "output", "artifacts", "require", "retries", "max_fail", "fail_fast", "quarantine"])]
    pub diff: Option<On>,

    /// Rows that run at a time [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = whole::<NonZeroUsize>, allow_negative_numbers = true, help_heading = LIMITS)]
    pub jobs: Option<NonZeroUsize>,
    /// Seconds that one row may take, by the clock of the machine that it runs on [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true, help_heading = LIMITS)]
    pub timeout: Option<Duration>,
    /// End the run after S seconds by this machine's clock, whatever is still to be run; that is a failure
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true, help_heading = LIMITS)]
    pub global_timeout: Option<Duration>,
    /// End the run, with the rows that are running, once N rows are red
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, allow_negative_numbers = true, help_heading = LIMITS,
        overrides_with_all = ["fail_fast", "no_fail_fast"])]
    pub max_fail: Option<NonZeroUsize>,
    /// The same as --max-fail 1
    #[arg(long, help_heading = LIMITS, overrides_with_all = ["max_fail", "no_fail_fast"])]
    pub fail_fast: bool,
    /// Run all rows, whatever a profile says
    #[arg(long, help_heading = LIMITS, overrides_with_all = ["max_fail", "fail_fast"])]
    pub no_fail_fast: bool,

    /// Fail rows of this VM type that do not run on a real kernel, unless they are about another setting of a module
    /// parameter; can be given several times
    #[arg(long, value_name = "VM", help_heading = VERDICTS)]
    pub require: Vec<VmType>,
    /// Give a red row N more attempts, after all others have run; one that then passes is marked as flaky
    #[arg(long, value_name = "N", value_parser = whole::<u32>, allow_negative_numbers = true, default_value = "0", help_heading = VERDICTS)]
    pub retries: u32,
    /// Excuse the red rows that FILE (TOML) expects, each with a reason and a last day
    #[arg(long, value_name = "FILE", help_heading = VERDICTS)]
    pub quarantine: Option<PathBuf>,

    /// How to report
    #[arg(long, value_enum, default_value = "pretty", help_heading = REPORTS)]
    pub format: Format,
    /// Write the report to FILE, which is FILE.partial until it is whole; standard output then gets the pretty one.
    /// `-` is standard output
    #[arg(short, long, value_name = "FILE", help_heading = REPORTS)]
    pub output: Option<PathBuf>,
    /// Keep what each row leaves (report, output) in a directory of its own below DIR
    #[arg(long, value_name = "DIR", help_heading = REPORTS)]
    pub artifacts: Option<PathBuf>,
    /// Show and keep the exits of rows that pass, too
    #[arg(long, help_heading = REPORTS)]
    pub keep: bool,

    /// What the rig boots.
    #[command(flatten)]
    pub rig: RigOptions,
    /// Whose processors the rig or the model has, and so whose half of KVM runs: see --machine for a rig [default: amd;
    /// on the model without memory encryption]
    #[arg(long, value_enum, value_name = "VENDOR", help_heading = RIG)]
    pub vendor: Option<Vendors>,
    /// What is asked about what the sim executes.
    #[command(flatten)]
    pub recording: Recording,
    /// A bug that the model shall have; `privet list --defects` shows all of them
    #[arg(long, value_name = "NAME", value_parser = defect, help_heading = RIG)]
    pub defect: Option<Defect>,

    /// Take options from this profile of the configuration file, on top of the profile `default`
    #[arg(short = 'P', long, value_name = "NAME", help_heading = PROFILES)]
    pub profile: Option<String>,
    /// The configuration file [default: privet.toml in the working directory, if it is there]
    #[arg(long, value_name = "FILE", help_heading = PROFILES)]
    pub config_file: Option<PathBuf>,
}

const PLACE: &str = "Place";
const LIMITS: &str = "Limits";
const VERDICTS: &str = "Verdicts";
const REPORTS: &str = "Reports";
const PROFILES: &str = "Profiles";

impl Run {
    /// The vendors whose processors every row shall have once.
    pub fn vendors(&self) -> &'static [Vendor] {
        match self.vendor {
            None if self.rig.vendor() == Vendor::Intel => &[Vendor::Intel],
            None | Some(Vendors::Amd) => &[Vendor::Amd],
            Some(Vendors::Intel) => &[Vendor::Intel],
            Some(Vendors::Both) => &[Vendor::Amd, Vendor::Intel],
        }
    }

    /// How many red rows end the run.
    pub fn most_failures(&self) -> Option<usize> {
        if self.fail_fast { Some(1) } else { self.max_fail.map(usize::from) }
    }
}
