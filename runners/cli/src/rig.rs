//! The rig as a place: what it boots, the host's half of a run, and the guest's half.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use privet_harness::found::Proven;
use privet_harness::host::Host;
use privet_harness::probe;
use privet_harness::vendor::Vendor;
use privet_kernel::Kernel;
use privet_report::{Place, Verdict};
use privet_rig::{CaseRun, Event, MachineKind, Patience, Plan, Profile, Program, Progress, RigError, SimOptions};

use crate::args::RigOptions;
use crate::exit::Early;
use crate::follow::Followers;
use crate::interrupt::Interrupt;
use crate::kselftest_worker;
use crate::place::Context;
use crate::plan::Job;
use crate::pool::{self, KernelLogs, Overtime, Pool};
use crate::process::{Started, Until};
use crate::recorded::Recorded;
use crate::worker;

/// Where the kernel's selftests lie in a rig that has them.
pub const KSELFTESTS: &str = "/kselftests";

/// The kernel that the command line names, if it names one.
///
/// # Errors
/// If it cannot be booted: it is missing, truncated, or its modules belong to another.
pub fn named_kernel(options: &RigOptions) -> Result<Option<Kernel>, Early> {
    let (Some(kernel), Some(modules)) = (&options.kernel, &options.modules) else { return Ok(None) };
    Kernel::named(kernel, modules).map(Some).map_err(|error| Early::usage(error.to_string()))
}

/// Refuses module parameters that a rig with this kernel would not have.
///
/// # Errors
/// For the first of them.
pub fn check_module_params(kernel: &Kernel, vendors: &[Vendor], options: &RigOptions) -> Result<(), Early> {
    vendors
        .iter()
        .try_for_each(|vendor| privet_rig::check_module_params(kernel, *vendor, &options.module_param))
        .map_err(|error| Early::usage(error.to_string()))
}

/// Whether this machine can be had, as far as the search path tells. Ours always can.
pub fn is_installed(machine: MachineKind) -> bool {
    let program = match machine {
        MachineKind::Sim => return true,
        MachineKind::Qemu => "qemu-system-x86_64",
        MachineKind::Bochs => "bochs",
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Machines to boot, and what to boot them with.
#[derive(Debug)]
pub struct Rig<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// What plays them.
    pub machine: MachineKind,
    /// Whose processors they have.
    pub vendor: Vendor,
    /// Programs that jobs run beside this one.
    pub programs: &'a [Program],
    /// Module parameters.
    pub options: &'a RigOptions,
    /// How many machines run side by side, each of them one row at a time.
    pub machines: usize,
    /// Where consoles are kept.
    pub artifacts: Option<&'a Path>,
    /// Where it goes what machines of ours execute, if that is of interest.
    pub recorded: Option<&'a RefCell<Recorded>>,
}

impl Rig<'_> {
    /// Runs the jobs with these indices in the rig. If the rig itself breaks, the jobs that are left say so.
    pub fn run(self, jobs: &[Job], indices: &[usize], interrupt: &Interrupt, followers: &mut Followers<'_>) {
        let cases = indices.iter().map(|index| case_run(&jobs[*index])).collect();
        let release = self.kernel.release.clone();
        let mut left: Vec<usize> = indices.to_vec();
        let mut booting = 0;
        let ran = std::env::current_exe()
            .map_err(|source| RigError::Io { what: "find this program to boot it".into(), source })
            .and_then(|worker| {
                let plan = Plan {
                    kernel: self.kernel,
                    machine: self.machine,
                    worker,
                    programs: self.programs.to_vec(),
                    cases,
                    machines: self.machines,
                    module_params: self.options.module_param.clone(),
                    patience: Patience::default(),
                    sim: self.options.sim(self.vendor),
                    without_rule: None,
                    tdx_faults: self.options.tdx_fault.clone(),
                    keeps_snapshot: true,
                    files: Vec::new(),
                    records: self.recorded.is_some(),
                    artifacts: self.artifacts.map(Path::to_owned),
                };
                privet_rig::run(&plan, interrupt.as_fd(), &mut |progress| match progress {
                    Progress::Booting(machines) => {
                        booting = machines;
                        followers.booting(booting, "");
                    }
                    Progress::Console(line) => followers.booting(booting, &line),
                    Progress::Symbols(text) => {
                        self.recorded.iter().for_each(|recorded| recorded.borrow_mut().symbols(&text));
                    }
                    Progress::Recorded(index, record) => {
                        let label = &jobs[indices[index]].label;
                        self.recorded.iter().for_each(|recorded| recorded.borrow_mut().add(label, &record));
                    }
                    Progress::Row(Event::Started(index)) => followers.started(indices[index]),
                    Progress::Row(Event::Finished(index, report)) => {
                        left.retain(|left| *left != indices[index]);
                        followers.finished(indices[index], *report, &[], &[]);
                    }
                })
            });
        match ran {
            Ok(()) | Err(RigError::Interrupted) => {}
            // Every row has its verdict, and still the rig did not end well.
            Err(error) if left.is_empty() => followers.trouble(error.to_string()),
            Err(error) => {
                // Where there is no emulator, nothing was started. Any other end is an error, so that no row is
                // lost silently.
                let verdict = match error {
                    RigError::NotInstalled { .. } => Verdict::Skip,
                    _ => Verdict::Error,
                };
                let context = Context::rig_without_guest(&release, self.machine, self.vendor);
                for index in left {
                    followers.started(index);
                    followers.finished(index, context.report(&jobs[index], verdict, error.to_string()), &[], &[]);
                }
            }
        }
    }
}

/// A run of these jobs on a Genoa of the sim, one row at a time.
pub fn sim_plan(kernel: Kernel, program: &Path, jobs: &[Job]) -> Plan {
    Plan {
        kernel,
        machine: MachineKind::Sim,
        worker: program.to_owned(),
        programs: Vec::new(),
        files: Vec::new(),
        cases: jobs.iter().map(case_run).collect(),
        machines: 1,
        module_params: Vec::new(),
        patience: Patience::default(),
        sim: SimOptions { profile: Profile::Genoa, ..SimOptions::default() },
        without_rule: None,
        tdx_faults: Vec::new(),
        keeps_snapshot: true,
        records: false,
        artifacts: None,
    }
}

/// What the rig is told of a job.
pub fn case_run(job: &Job) -> CaseRun {
    let limit_ms = u64::try_from(job.limit.as_millis()).unwrap_or(u64::MAX);
    let (id, label) = (job.id.clone(), job.label.clone());
    CaseRun { id, label, seed: job.seed, limit_ms, keep: job.keep, schedules: job.schedules.clone() }
}

/// What the init of a rig has before it knows the rows.
#[derive(Debug)]
pub struct Prepared {
    /// What is true of all rows: tried once, and not by every worker.
    proven: Vec<Proven>,
    /// The worker of the first row, which on a machine of ours is the only one: a saved machine has it. If it cannot
    /// get ready, the row's own worker tells why.
    first: Option<Started>,
}

/// How long the first worker may take to get ready, by the guest's clock: it tries what every row needs. Less than the
/// silence after which the machine is given up, by who knows less.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// Gets ready for rows, as the init of a rig.
///
/// # Errors
/// If what every row needs hangs.
pub fn prepare() -> io::Result<Prepared> {
    let program = std::env::current_exe()?;
    let ready = || Started::ready(worker::ready_command(&program), READY_LIMIT);
    match ready() {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(io::Error::other(format!(
                "what every row needs hangs: opening KVM and trying a guest has not ended after {} s",
                READY_LIMIT.as_secs()
            )));
        }
        // After its end the kernel knows which pages of the program are in use (mm/swap.c: `folio_mark_accessed`), and
        // does not find it out at the end of each row.
        rehearsal => rehearsal.and_then(Started::dismiss).unwrap_or_default(),
    }
    Ok(Prepared { proven: proven(), first: ready().ok() })
}

fn proven() -> Vec<Proven> {
    let proven = Host::open().map(|host| {
        let _ = (probe::ring0(&host), probe::hypercall(&host));
        host.proven()
    });
    // A worker that finds no host says so itself.
    proven.unwrap_or_default()
}

/// Runs rows as the init of a rig: the same workers as on a host.
pub fn serve(prepared: Prepared, cases: &[CaseRun], tell: &mut dyn FnMut(Event)) {
    let jobs: Vec<Job> = cases
        .iter()
        .map(|case| Job {
            id: case.id.clone(),
            label: case.label.clone(),
            seed: case.seed,
            limit: Duration::from_millis(case.limit_ms),
            keep: case.keep,
            // Of no consequence inside: it is the one that this guest has.
            vendor: Vendor::Amd,
            schedules: Vec::new(),
        })
        .collect();
    let program = std::env::current_exe().expect("init was started from a file");
    let Prepared { proven, first } = prepared;
    let first = Mutex::new(first);
    let worker = |job: &Job| {
        if let Some(test) = kselftest_worker::test_of(job) {
            return Started::new(kselftest_worker::command(&program, test, Path::new(KSELFTESTS), job.limit));
        }
        match first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(mut ready) => ready.tell(&worker::told(job, &proven)).map(|()| ready),
            None => Started::new(worker::command(&program, job, &proven)),
        }
    };
    let interrupt = Interrupt::new().expect("a fresh process has descriptors left");
    let pool = Pool {
        worker: &worker,
        // Where there is one row, the machine is gone after it. That the row has left nothing in its process is in its
        // report (privet_harness::leaks), so that KVM has no part in what is left to do.
        until: if let [_] = jobs[..] { Until::Report } else { Until::End },
        at_a_time: 1,
        overtime: Overtime::IN_RIG,
        context: &Context::here(Place::Rig),
        // Init itself listens to the kernel.
        kernel_logs: KernelLogs::Ignored,
        slots: None,
        interrupt: &interrupt,
    };
    pool.run(&jobs, |event| match event {
        pool::Event::Started(index) => tell(Event::Started(index)),
        pool::Event::Finished(index, done) => tell(Event::Finished(index, done.report.into())),
    });
}
