//! What a rig is asked to do, and what comes back from inside it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use privet_harness::vendor::Vendor;
use privet_kernel::Kernel;
use privet_report::CaseReport;
use privet_sim::{Profile, Record, Rule, TdxFault, Without};
use serde::{Deserialize, Serialize};

use crate::machine_kind::MachineKind;

/// What a machine of ours is like.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct SimOptions {
    /// Processors, 1 to 8.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Which processors.
    pub profile: Profile,
    /// What they lack of it.
    pub without: Without,
    /// Decides how the processors take turns until the guest is ready.
    pub seed: u64,
}

impl SimOptions {
    /// Whose processors it has.
    pub fn vendor(&self) -> Vendor {
        vendor_of(self.profile)
    }
}

/// Who makes the processors of a profile.
pub fn vendor_of(profile: Profile) -> Vendor {
    match profile.vendor() {
        privet_sim::Vendor::Amd => Vendor::Amd,
        privet_sim::Vendor::Intel => Vendor::Intel,
    }
}

/// The profile that is meant where only a vendor is named.
pub fn profile_of(vendor: Vendor) -> Profile {
    Profile::default_for(match vendor {
        Vendor::Amd => privet_sim::Vendor::Amd,
        Vendor::Intel => privet_sim::Vendor::Intel,
    })
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { cpus: 2, memory_mib: 2048, profile: Profile::default(), without: Without::default(), seed: 0 }
    }
}

/// One run of one row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CaseRun {
    /// The id of the row.
    pub id: String,
    /// Its name in reports: the id, and the iteration where a row runs more than once.
    pub label: String,
    /// The seed of everything random in the row.
    pub seed: u64,
    /// The time limit of the row in milliseconds, as the guest enforces it.
    pub limit_ms: u64,
    /// Whether its exits are told if it passes, too.
    pub keep: bool,
    /// Run it once for each of these seeds, which decide how the machine's processors may meet, and until it does not
    /// pass; the sim only. If there are none it runs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<u64>,
}

/// A module parameter: `kvm.mmio_caching=0`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleParam {
    /// The module, with `_` for `-`.
    pub module: String,
    /// The setting, as the module gets it: `mmio_caching=0`.
    pub setting: String,
}

impl ModuleParam {
    /// Whether it sets the parameter `name` of `module`.
    pub fn is(&self, module: &str, name: &str) -> bool {
        self.module == module && self.setting.split_once('=').is_some_and(|(set, _)| set == name)
    }
}

impl std::str::FromStr for ModuleParam {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" is not a module parameter: write MODULE.NAME=VALUE, as in kvm.mmio_caching=0");
        let (module, setting) = text.split_once('.').ok_or_else(wrong)?;
        let (name, value) = setting.split_once('=').ok_or_else(wrong)?;
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !is_name(module)
            || !is_name(name)
            || value.is_empty()
            || value.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(wrong());
        }
        Ok(Self { module: module.replace('-', "_"), setting: setting.to_owned() })
    }
}

impl std::fmt::Display for ModuleParam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module, self.setting)
    }
}

/// Where programs lie in the guest, which has file systems of its own at /tmp, /dev and others. It is in their search
/// path.
pub const PROGRAMS: &str = "/programs";

/// A program that is taken into the rig.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Where it lies in the guest.
    pub guest_path: PathBuf,
}

/// What a rig is asked to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kernel to boot.
    pub kernel: Kernel,
    /// What plays its machines.
    pub machine: MachineKind,
    /// The executable that becomes init, whose guest callback runs the rows, and that can be a machine
    /// ([`crate::sim_machine`]): `std::env::current_exe()`.
    pub worker: PathBuf,
    /// Other programs that the callback runs. They and their libraries come with the worker.
    pub programs: Vec<Program>,
    /// Files that come along; in the guest they have the same paths, which are absolute.
    pub files: Vec<PathBuf>,
    /// The rows in the order in which they shall run.
    pub cases: Vec<CaseRun>,
    /// How many machines may run side by side. Each runs one row at a time and keeps one core busy.
    pub machines: usize,
    /// Parameters for `kvm` and for its vendor module.
    pub module_params: Vec<ModuleParam>,
    /// How long the machine may be silent.
    pub patience: Patience,
    /// What the machines are like if they are ours.
    pub sim: SimOptions,
    /// A rule that the silicon of those machines forgets while rows run.
    pub without_rule: Option<Rule>,
    /// What the TDX module of those machines answers for once while rows run.
    pub tdx_faults: Vec<TdxFault>,
    /// Whether the booted machine of ours is kept for the next run. If it is not, rows go on from one that is kept as it was
    /// before KVM's modules were loaded, so that kernels of which only these differ share it.
    pub keeps_snapshot: bool,
    /// Whether it is told what they execute while rows or a program run; only ours can.
    pub records: bool,
    /// Where the console of each boot is kept, as `<vendor>-boot-<n>.log`, and that of each row that ran in a copy of
    /// a booted machine, as `<vendor>-<label>.log`; nowhere if `None`.
    pub artifacts: Option<PathBuf>,
}

impl Plan {
    /// Whose processors its machines have.
    pub fn vendor(&self) -> Vendor {
        match self.machine {
            MachineKind::Sim => self.sim.vendor(),
            MachineKind::Qemu => Vendor::Amd,
            MachineKind::Bochs => Vendor::Intel,
        }
    }
}

/// How long a machine may be silent, by the clock of its guest, before it counts as hung.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// From power-on until the guest is ready to run rows.
    pub boot: Duration,
    /// Until then, without a word on the console.
    pub silence: Duration,
    /// Beyond the time limit of a row, which the guest enforces itself.
    pub row: Duration,
    /// Between rows.
    pub pause: Duration,
}

impl Default for Patience {
    /// These limits only end what would never end. The one on a row leaves the guest the time to say more about it.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { boot: seconds(120), silence: seconds(20), row: seconds(1), pause: seconds(30) }
    }
}

/// What the guest is asked to do: the part of a [`Plan`] that is left for one boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestPlan {
    /// What to do in this boot.
    pub work: Work,
    /// The modules without which there is no port, in this order.
    pub drivers: Vec<ModuleLoad>,
    /// KVM's.
    pub modules: GuestModules,
    /// Where to report.
    pub port: GuestPort,
}

/// Where a guest has KVM's modules from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestModules {
    /// They are in its root file system, and loaded in this order.
    Files(Vec<ModuleLoad>),
    /// They come from outside, into memory that it sets aside, so many bytes: once it has said where that is, it waits for
    /// one line over the port that tells what is in there.
    Memory(usize),
}

/// What init does once it is ready.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// It runs these rows. Events count them from 0.
    Rows(Vec<CaseRun>),
    /// It does what is asked over the port, in one line, a [`Request`]: a machine that is copied then serves whoever has
    /// rows, or another run of its program.
    FromPort,
    /// It runs a program and tells what that prints.
    Program(GuestProgram),
}

/// What a copy of a machine is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To run these rows.
    Rows(Vec<CaseRun>),
    /// What its kernel's functions are.
    Symbols,
    /// To run this program.
    Program(GuestProgram),
}

/// A program with its arguments, as the guest starts it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestProgram {
    /// Where it lies in the guest.
    pub path: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
    /// Whether the kernel's functions are told after its end.
    pub tells_symbols: bool,
}

/// What a program prints to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// The name of the virtio-serial port over which a guest talks to the host.
pub(crate) const PORT_NAME: &str = "privet.rig";

/// What a guest talks to the host over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestPort {
    /// The virtio-serial port of our name.
    Virtio,
    /// The second serial port; the first is the console.
    SecondSerial,
}

/// One module that the guest loads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleLoad {
    /// Where it lies in the guest.
    pub path: String,
    /// Its parameters, separated by spaces.
    pub params: String,
}

/// What happened to a row. The number is its index in the plan that the receiver of the event knows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It is about to run.
    Started(usize),
    /// It ended.
    Finished(usize, Box<CaseReport>),
}

/// What a run of the rig tells, as it happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Progress {
    /// From now on, so many machines are booting.
    Booting(usize),
    /// A machine that is booting wrote this to its console.
    Console(String),
    /// Something happened to a row of the [`Plan`].
    Row(Event),
    /// The functions of the kernel, in the format of /proc/kallsyms; before any row, if the plan records.
    Symbols(String),
    /// What was executed while this row of the [`Plan`] ran, before it has finished; once for each schedule.
    Recorded(usize, Record),
}

/// One line of JSON from the guest to the host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Message {
    /// Init has set memory aside for modules: the numbers of its page frames.
    Room(Vec<u64>),
    /// Init has loaded the modules and is about to run the rows.
    Ready,
    /// Something happened to a row of this boot's [`GuestPlan`].
    Event(Event),
    /// The kernel complained while no row was running.
    Unattributed(String),
    /// The machine says this, not its guest: something that it has not was asked of it. What the row saw may be
    /// wrong.
    NotSimulated(String),
    /// The machine says this, too: it goes nowhere, for this reason.
    Stuck(String),
    /// And this: what was executed since the row, or the program, was started.
    Recorded(Record),
    /// And this, if it shows its log: what came over its console.
    Logged(String),
    /// The functions of the kernel, in the format of /proc/kallsyms.
    Symbols(String),
    /// The program can take some input. The machine answers, with a line of [`Input`].
    WantsInput,
    /// The program has printed this, each byte as one character.
    Printed(Stream, String),
    /// The program has ended, with this status.
    Exited(i32),
    /// Init cannot go on.
    Broken(String),
    /// All rows ran; the machine is about to power itself off.
    Done,
}

/// Input for a program, each byte as one character; nothing is the end of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Input(pub(crate) String);

/// Bytes as text for a message: each is one character.
pub(crate) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes of such a text. Whatever is no byte did not come from [`to_text`].
pub(crate) fn to_bytes(text: &str) -> Vec<u8> {
    text.chars().filter_map(|byte| u8::try_from(byte).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_parameters_are_read() {
        let param: ModuleParam = "kvm-amd.npt=0".parse().unwrap();
        assert_eq!(param, ModuleParam { module: "kvm_amd".into(), setting: "npt=0".into() });
        assert_eq!(param.to_string(), "kvm_amd.npt=0");
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "kvm", "kvm.x", "kvm.=1", ".x=1", "kvm.x=", "kvm.x=1 y=2", "kvm.x=1\ny", "a b.x=1"] {
            let error = text.parse::<ModuleParam>().unwrap_err();
            assert!(error.contains("kvm.mmio_caching=0"), "{text}: {error}");
        }
    }
}
