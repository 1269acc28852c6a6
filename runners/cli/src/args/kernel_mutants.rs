//! The arguments of `privet mutants --kernel`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use privet_rig::{ModuleParam, Profile, Without};

use super::values::whole;
use super::{cpu_profile, cpu_without};
use crate::selection::Partition;

/// The heading of these options.
const KERNEL: &str = "With --kernel";

/// Who looks for what is broken, if not rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum With {
    /// Upstream's tests of what the table is about
    Kselftests,
}

/// Which mutants of the kernel's source, and where the results go.
#[derive(Debug, Args)]
pub struct KernelMutants {
    /// Not defects of the model but changes of the kernel's source, one at a time: which would no row notice?
    ///
    /// KVM's modules are built with each change and rows run on them in the sim, those first that are quick and have noticed
    /// others, and only rows that execute what is changed. The kernel is the newest Debian source package, or --source.
    #[arg(long, conflicts_with_all = ["defect", "silicon"], group = "beyond_the_model")]
    pub kernel: bool,
    /// A source tree or archive of the kernel, instead of a Debian package
    #[arg(long, value_name = "DIR|TARBALL", requires = "kernel", help_heading = KERNEL)]
    pub source: Option<PathBuf>,
    /// A Debian suite to take the source package from
    #[arg(long, value_name = "SUITE", requires = "kernel", conflicts_with = "source", help_heading = KERNEL)]
    pub suite: Option<String>,
    /// A file with options that are added to the kernel's, or replace them
    #[arg(long, value_name = "FRAGMENT", requires = "kernel", help_heading = KERNEL)]
    pub config: Option<PathBuf>,
    /// Only these files of the source: what the table is about in them, or all if that is nothing or --functions says what
    /// [default: what the table is about, for VMs of the types that rows are of]
    #[arg(long, value_name = "FILE", value_delimiter = ',', requires = "kernel", help_heading = KERNEL)]
    pub files: Vec<String>,
    /// Only functions with these names, in which `*` stands for any text
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "kernel", help_heading = KERNEL)]
    pub functions: Vec<String>,
    /// Only this mutant, as --list names it, in which `*` stands for any text; can be given several times
    #[arg(long, value_name = "NAME", requires = "kernel", conflicts_with = "named", help_heading = KERNEL)]
    pub mutant: Vec<String>,
    /// Only lines that this patch adds; it is in the source already
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = KERNEL)]
    pub patch: Option<PathBuf>,
    /// Only so many mutants, chosen by the seed, with an equal share for each operator
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, allow_negative_numbers = true, requires = "kernel", help_heading = KERNEL)]
    pub sample: Option<NonZeroUsize>,
    /// Only one of N slices of the mutants, for runs side by side
    #[arg(long, value_name = "M/N", requires = "kernel", help_heading = KERNEL)]
    pub partition: Option<Partition>,
    /// Only the edits that this repository describes, each of which certain rows have to notice
    #[arg(long, requires = "kernel", conflicts_with_all = ["files", "functions", "patch", "sample"], help_heading = KERNEL)]
    pub named: bool,
    /// Not rows, but these look for what is broken: to compare on the same mutants. What FILTER selects decides which code
    /// is meant
    #[arg(long, value_enum, value_name = "WHO", requires = "kernel", conflicts_with_all = ["named", "rows_each"], help_heading = KERNEL)]
    pub with: Option<With>,
    /// A directory of built selftests [default: those of the last `privet kselftests build`]
    #[arg(long, value_name = "DIR", requires = "with", help_heading = KERNEL)]
    pub kselftests: Option<PathBuf>,
    /// Load KVM's modules with this parameter, such as kvm.eager_page_split=N; can be given several times
    #[arg(long, value_name = "MODULE.NAME=VALUE", requires = "kernel", help_heading = KERNEL)]
    pub module_param: Vec<ModuleParam>,
    /// Which processors the sim has, of the vendor's: `milan`, `genoa`, `turin` or `plain`; `granite`
    /// [default: genoa, or granite with --vendor intel]
    #[arg(long, value_name = "PROFILE", value_parser = cpu_profile(), requires = "kernel", help_heading = KERNEL)]
    pub cpu_profile: Option<Profile>,
    /// Features that the sim's processors shall lack, by the names of their CPUID bits, with commas between them, such as
    /// sev_snp: some code runs only there
    #[arg(long, value_name = "FEATURES", value_parser = cpu_without(), requires = "kernel", help_heading = KERNEL)]
    pub cpu_without: Option<Without>,
    /// Leave barriers out, too, which few machines notice
    #[arg(long, requires = "kernel", help_heading = KERNEL)]
    pub barriers: bool,
    /// Run no more rows than this on one mutant, those most likely to notice it; who survives them is tried again without
    #[arg(long, value_name = "N", value_parser = whole::<NonZeroUsize>, allow_negative_numbers = true, requires = "kernel", conflicts_with = "named", help_heading = KERNEL)]
    pub rows_each: Option<NonZeroUsize>,
    /// Begin no mutant after so many minutes; what was not tried is for the next time
    #[arg(long, value_name = "MINUTES", value_parser = whole::<u64>, allow_negative_numbers = true, requires = "kernel", help_heading = KERNEL)]
    pub budget: Option<u64>,
    /// Where the results are kept, and a page that shows them; what is there already is not tried again
    #[arg(long, value_name = "DIR", default_value = "kernel-mutants", requires = "kernel", help_heading = KERNEL)]
    pub results: PathBuf,
    /// A file of survivors that somebody has judged, as in runners/mutation/judged.toml [default: that one]
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = KERNEL)]
    pub judged: Option<PathBuf>,
    /// Try nothing: show the change of this mutant, and the rows that execute it
    #[arg(long, value_name = "NAME", requires = "kernel", help_heading = KERNEL)]
    pub show: Option<String>,
    /// Try nothing: list the mutants
    #[arg(long, requires = "kernel", conflicts_with = "show", help_heading = KERNEL)]
    pub list: bool,
}
