//! A machine of the rig: an emulator as a process, the guest's messages and its console. What differs between
//! emulators is in their own files.
#![expect(unsafe_code, reason = "an emulator must die with its runner, which takes calls between fork and exec")]

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write, pipe};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use privet_sim::Profile;

use crate::bochs::BOCHS;
use crate::error::RigError;
use crate::initramfs::WORKER;
use crate::machine_kind::MachineKind;
use crate::module_room::Placed;
use crate::plan::{GuestPort, Patience, Plan, Request, SimOptions};
use crate::qemu::QEMU;
use crate::sim_job::{SIM, SimJob, SimStart, SimTask};
use crate::usable_time::UsableTime;

/// How long an emulator may take to go after it has closed the port.
const GRACE: Duration = Duration::from_secs(5);

/// An emulator, as far as it matters to others.
pub(crate) struct Emulator {
    /// The program.
    pub(crate) program: &'static str,
    /// What to do where it is missing.
    pub(crate) install: &'static str,
    /// The port over which its guest talks to the host.
    pub(crate) port: GuestPort,
    /// The modules that drive that port, in kernels that do not have them built in.
    pub(crate) drivers: &'static [&'static str],
    /// How many seconds that it can use a second of its guest's clock may take.
    pub(crate) slowness: u32,
    /// Whether its guest's clock goes on while it waits for a core, so that limits inside of the guest end rows that
    /// had no time.
    pub(crate) has_our_clock: bool,
    /// What its standard input begins with; it stays open.
    pub(crate) input: &'static str,
    /// What switches a machine on.
    pub(crate) command: fn(&Parts<'_>) -> Result<Prepared, RigError>,
    /// What its standard error says about its end.
    pub(crate) complaint: fn(&str) -> Option<&str>,
}

/// What plays a machine of this kind.
pub(crate) const fn emulator(kind: MachineKind) -> &'static Emulator {
    match kind {
        MachineKind::Sim => &SIM,
        MachineKind::Qemu => &QEMU,
        MachineKind::Bochs => &BOCHS,
    }
}

/// What a machine is made of.
pub(crate) struct Parts<'a> {
    /// The kernel's image.
    pub(crate) kernel: &'a Path,
    /// What the kernel unpacks as its root file system.
    pub(crate) initramfs: &'a File,
    /// What the kernel is told at its start.
    pub(crate) command_line: &'a str,
    /// Where the output of the guest's first serial port goes.
    pub(crate) console: &'a File,
    /// Where the guest's messages go. The emulator inherits this descriptor under the same number.
    pub(crate) port: &'a PipeWriter,
    /// This executable, if the machine is ours.
    pub(crate) worker: &'a Path,
    /// What the machine is like, if it is ours.
    pub(crate) sim: &'a SimOptions,
    /// Where the machine is saved once its guest is ready, if it can be.
    pub(crate) save_to: Option<&'a Path>,
    /// How long it may take.
    pub(crate) patience: Patience,
    /// Whether it tells what it executes, if it can.
    pub(crate) records: bool,
    /// Whether it tells what comes over its console, if it can.
    pub(crate) shows_log: bool,
}

/// What is switched on.
pub(crate) struct Boots<'a> {
    /// What for.
    pub(crate) plan: &'a Plan,
    /// What the kernel unpacks as its root file system.
    pub(crate) initramfs: File,
    /// Where the machine is saved once its guest is ready, if it can be.
    pub(crate) save_to: Option<&'a Path>,
    /// Whether it tells what comes over its console, if it can.
    pub(crate) shows_log: bool,
}

/// A command that switches a machine on, and the files that it opens through [`path_of`].
pub(crate) struct Prepared {
    pub(crate) command: Command,
    pub(crate) files: Vec<File>,
}

/// A running machine, or a copy of one that runs whenever it is asked. Dropping it ends it; it also ends with the thread that started it.
pub(crate) struct Machine {
    emulator: &'static Emulator,
    /// Whether it is a copy of a machine that was saved.
    pub(crate) is_copy: bool,
    child: Child,
    usable: UsableTime,
    /// What the guest writes to its port. Its end is the end of the machine.
    pub(crate) port: PipeReader,
    console: File,
    stderr: File,
    /// Open as long as the emulator may want to read them.
    _files: Vec<File>,
}

impl Machine {
    /// Switches a machine on.
    ///
    /// # Errors
    /// If the emulator is not installed or cannot be started.
    pub(crate) fn start(boots: Boots<'_>) -> Result<Self, RigError> {
        let Boots { plan, initramfs, save_to, shows_log } = boots;
        let emulator = emulator(plan.machine);
        let prepare = |console: &File, port: &PipeWriter| {
            let mut prepared = (emulator.command)(&Parts {
                kernel: &plan.kernel.image,
                initramfs: &initramfs,
                command_line: &command_line(plan),
                console,
                port,
                worker: &plan.worker,
                sim: &plan.sim,
                save_to,
                patience: plan.patience,
                // What is saved is the same in any case.
                records: plan.records && save_to.is_none(),
                shows_log,
            })?;
            prepared.files.push(initramfs);
            Ok(prepared)
        };
        Self::spawn(emulator, prepare)
    }

    /// A copy of a machine of ours that was saved: it goes on from there for each [`Machine::ask`].
    ///
    /// # Errors
    /// If the process cannot be started.
    pub(crate) fn copy(plan: &Plan, saved: &Path) -> Result<Self, RigError> {
        let mut machine = Self::resume(plan, SimStart::Resume { saved: saved.to_owned() })?;
        machine.is_copy = true;
        Ok(machine)
    }

    /// A machine of ours that goes on from where it was saved with one request for its guest, and ends when that is done.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub(crate) fn copy_once(plan: &Plan, saved: &Path, request: Request) -> Result<Self, RigError> {
        Self::resume(plan, SimStart::ResumeOnce { saved: saved.to_owned(), task: task(plan, request, None) })
    }

    /// A machine of ours that goes on from where it was saved without KVM's modules: it gets these `contents`, and is saved
    /// again once its guest is ready.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub(crate) fn copy_with_modules(
        plan: &Plan,
        (saved, frames): (PathBuf, PathBuf),
        (contents, modules): (PathBuf, Vec<Placed>),
        save_to: PathBuf,
    ) -> Result<Self, RigError> {
        let limit = plan.patience.boot;
        Self::resume(plan, SimStart::ResumeWithModules { saved, frames, contents, modules, limit, save_to })
    }

    fn resume(plan: &Plan, start: SimStart) -> Result<Self, RigError> {
        let prepare = |console: &File, port: &PipeWriter| {
            let job = SimJob { console: path_of(console).into(), shows_log: false, records: plan.records, start };
            let mut command = job.command(&plan.worker);
            command.stdout(port.try_clone().map_err(cannot_start_sim)?);
            Ok(Prepared { command, files: Vec::new() })
        };
        Self::spawn(emulator(plan.machine), prepare)
    }

    /// Has a copy that has nothing to do go on from where it was saved, with a request for its guest and an empty
    /// console. `schedule` is the seed of its processors' turns, if they shall be other ones.
    ///
    /// # Errors
    /// If its console cannot be emptied. A copy that has died says so when it is listened to.
    pub(crate) fn ask(&mut self, plan: &Plan, request: Request, schedule: Option<u64>) -> Result<(), RigError> {
        self.console.set_len(0).map_err(cannot_start_sim)?;
        let task = task(plan, request, schedule);
        let stdin = self.child.stdin.as_mut().expect("a copy gets no other input");
        let _ = writeln!(stdin, "{}", serde_json::to_string(&task).expect("a task is data"));
        Ok(())
    }

    fn spawn(
        emulator: &'static Emulator,
        prepare: impl FnOnce(&File, &PipeWriter) -> Result<Prepared, RigError>,
    ) -> Result<Self, RigError> {
        let cannot_start = |source| RigError::Io { what: format!("start {}", emulator.program), source };
        // Files without a name: whatever happens to this process, none stays behind.
        let console = tempfile::tempfile().map_err(cannot_start)?;
        let stderr = tempfile::tempfile().map_err(cannot_start)?;
        let (port, guest_end) = pipe().map_err(cannot_start)?;
        let Prepared { mut command, files } = prepare(&console, &guest_end)?;
        command.stdin(Stdio::piped());
        // Opened anew: a clone would share the position at which this process reads.
        command.stderr(File::options().append(true).open(path_of(&stderr)).map_err(cannot_start)?);
        // A group of its own: a Ctrl-C on the terminal reaches the runner only, which then decides.
        command.process_group(0);
        let inherited = guest_end.as_raw_fd();
        let between_fork_and_exec = move || {
            // SAFETY: the descriptor is open in the parent until it has forked, so it is in the child.
            let port = unsafe { BorrowedFd::borrow_raw(inherited) };
            fcntl(port, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        };
        // SAFETY: between fork and exec only fcntl and prctl are called, plain system calls.
        unsafe { command.pre_exec(between_fork_and_exec) };
        let mut child = command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => not_installed(emulator.program, emulator.install),
            _ => cannot_start(source),
        })?;
        let stdin = child.stdin.as_mut().expect("it was asked for");
        // An emulator that has ended already closes its port, too, and says more by that.
        let _ = stdin.write_all(emulator.input.as_bytes());
        let usable = UsableTime::of(child.id());
        Ok(Self { emulator, is_copy: false, child, usable, port, console, stderr, _files: files })
    }

    /// Where to write what its guest's program gets to read, if it is a machine of ours.
    pub(crate) fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Ends the machine, if it has not ended yet, and waits for it.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    /// Waits for the end of a machine whose port has been closed, and ends it if it does not end itself.
    pub(crate) fn wait(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(status) => return status,
                Err(_) => break,
            }
        }
        self.stop()
    }

    /// How much time it could use so far.
    pub(crate) fn usable_time(&mut self) -> Duration {
        self.usable.so_far()
    }

    /// How much the guest wrote to its console so far, in bytes.
    pub(crate) fn console_length(&self) -> u64 {
        self.console.metadata().map_or(0, |file| file.len())
    }

    /// All that the guest wrote to its console so far.
    pub(crate) fn console(&mut self) -> String {
        whole(&mut self.console)
    }

    /// What the emulator itself said last, if it said anything.
    pub(crate) fn complaint(&mut self) -> Option<String> {
        (self.emulator.complaint)(&whole(&mut self.stderr)).map(str::to_owned)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a copy does, within the patience of the plan.
fn task(plan: &Plan, request: Request, schedule: Option<u64>) -> SimTask {
    let limit = match &request {
        Request::Rows(cases) => cases.iter().map(|case| Duration::from_millis(case.limit_ms)).sum::<Duration>(),
        Request::Symbols | Request::Program(_) => plan.patience.pause,
    } + plan.patience.row;
    let (without_rule, tdx_faults) = (plan.without_rule, plan.tdx_faults.clone());
    SimTask { request, schedule, without_rule, tdx_faults, limit }
}

/// What the kernel of a machine is told.
pub(crate) fn command_line(plan: &Plan) -> String {
    // The console shall tell how far a boot is. An oops ends the machine: rows shall not run on a damaged kernel. Init's
    // marks in the log are not limited in number. Workers lie at the same addresses, so that the emulator can use again
    // what it translated for the one before: that makes a row's fixed cost a quarter.
    let of_profile = match plan.sim.profile {
        Profile::Plain | Profile::Granite => "",
        // The sim's IOMMU, without which there is no SNP, translates nothing.
        Profile::Milan | Profile::Genoa | Profile::Turin => " iommu=pt",
    };
    format!("console=ttyS0 panic=-1 oops=panic tsc=nowatchdog printk.devkmsg=on norandmaps rdinit={WORKER}{of_profile}")
}

fn cannot_start_sim(source: std::io::Error) -> RigError {
    RigError::Io { what: "start the sim".into(), source }
}

/// A path under which another process of this user can open this file.
pub(crate) fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// The error for a program that is missing.
pub(crate) fn not_installed(program: &str, install: &str) -> RigError {
    RigError::NotInstalled { missing: program.into(), install: install.into() }
}

fn whole(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is missing from the report, which is all that can be done about it.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
