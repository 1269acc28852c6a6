//! The arguments of `privet compare` and `privet kselftests`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::values::seconds;
use super::{On, RigOptions};

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
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true, default_value = "120")]
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
