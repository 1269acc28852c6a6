//! What the process of a machine of ours is asked to do, on its command line.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use privet_sim::{Rule, TdxFault};
use serde::{Deserialize, Serialize};

use crate::error::RigError;
use crate::machine::{Emulator, Parts, Prepared, path_of};
use crate::module_room::Placed;
use crate::plan::{GuestPort, Request, SimOptions};

/// The subcommand of this executable that is a machine; its argument is a [`SimJob`] as JSON.
pub(crate) const SUBCOMMAND: &str = "sim-machine";

/// Ours: this executable again, so that a machine that crashes is a process that dies.
pub(crate) static SIM: Emulator = Emulator {
    program: "the sim",
    install: "",
    port: GuestPort::SecondSerial,
    drivers: &[],
    // Its guest's clock counts instructions, and the machine ends itself by that; this is for one that does not.
    slowness: 20,
    has_our_clock: false,
    input: "",
    command,
    complaint: |stderr| stderr.lines().last(),
};

/// One machine from its start to its end, or one that goes on from where it was saved again and again.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct SimJob {
    /// Where the guest's console goes.
    pub(crate) console: PathBuf,
    /// Whether what comes over the console is told, too.
    pub(crate) shows_log: bool,
    /// Whether it is told what is executed.
    pub(crate) records: bool,
    /// How it starts.
    pub(crate) start: SimStart,
}

/// How a machine starts. The guest's messages go to standard output.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SimStart {
    /// It is switched on.
    Boot {
        /// A bzImage.
        kernel: PathBuf,
        /// A cpio archive.
        initramfs: PathBuf,
        /// What the kernel is told.
        command_line: String,
        /// What it is like.
        options: SimOptions,
        /// Where it is saved once its guest is ready, if it shall be; it ends then.
        save_to: Option<PathBuf>,
        /// How long it may take until then, by the guest's clock.
        limit: Duration,
    },
    /// It goes on from where it was saved without KVM's modules, gets them, and is saved again once its guest is ready.
    ResumeWithModules {
        /// The saved machine.
        saved: PathBuf,
        /// The page frames that its guest has set aside, as JSON.
        frames: PathBuf,
        /// What comes into them.
        contents: PathBuf,
        /// Which modules that is.
        modules: Vec<Placed>,
        /// How long it may take, by the guest's clock.
        limit: Duration,
        /// Where it is saved.
        save_to: PathBuf,
    },
    /// It goes on from where it was saved, once for each [`SimTask`] that comes over standard input, one a line. It never
    /// sees what it did before.
    Resume {
        /// The saved machine.
        saved: PathBuf,
    },
    /// It goes on from where it was saved for one task. Standard input is its guest's program's.
    ResumeOnce {
        /// The saved machine.
        saved: PathBuf,
        /// What it does.
        task: SimTask,
    },
}

/// What a saved machine does from where it was saved to its guest's last word.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct SimTask {
    /// What its guest gets.
    pub(crate) request: Request,
    /// How its processors take turns, in short ones; long ones as before if there is no seed.
    pub(crate) schedule: Option<u64>,
    /// A rule that its silicon forgets.
    pub(crate) without_rule: Option<Rule>,
    /// What its TDX module answers for once.
    pub(crate) tdx_faults: Vec<TdxFault>,
    /// How long that may take, by the guest's clock.
    pub(crate) limit: Duration,
}

impl SimJob {
    /// The command that starts the machine.
    pub(crate) fn command(&self, worker: &std::path::Path) -> Command {
        let mut command = Command::new(worker);
        command.arg(SUBCOMMAND).arg(serde_json::to_string(self).expect("a job is data"));
        command
    }
}

fn command(parts: &Parts<'_>) -> Result<Prepared, RigError> {
    let cannot_start = |source| RigError::Io { what: "start the sim".into(), source };
    let job = SimJob {
        console: path_of(parts.console).into(),
        shows_log: parts.shows_log,
        records: parts.records,
        start: SimStart::Boot {
            kernel: parts.kernel.to_owned(),
            initramfs: path_of(parts.initramfs).into(),
            command_line: parts.command_line.to_owned(),
            options: parts.sim.clone(),
            save_to: parts.save_to.map(std::path::Path::to_owned),
            limit: parts.patience.boot,
        },
    };
    let mut command = job.command(parts.worker);
    command.stdout(parts.port.try_clone().map_err(cannot_start)?);
    Ok(Prepared { command, files: Vec::new() })
}
