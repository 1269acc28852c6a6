//! The places that a run can use, and which of its jobs goes where.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use privet_cases::Entry;
use privet_harness::host::Host;
use privet_harness::outcome::Lack;
use privet_harness::vendor::Vendor;
use privet_kernel::Kernel;
use privet_report::{CaseReport, Place, Verdict};
use privet_rig::MachineKind;

use crate::args::{On, Run};
use crate::exit::Early;
use crate::follow::Followers;
use crate::interrupt::Interrupt;
use crate::model::{Model, Ready};
use crate::place::{Assigned, Context, assign};
use crate::plan::Job;
use crate::pool::{Event, KernelLogs, Overtime, Pool};
use crate::process::{Started, Until};
use crate::recorded::Recorded;
use crate::rig;
use crate::slots::Slots;
use crate::worker;

/// Host, rig and model as the command line describes them. Each is looked at when a job first asks for it.
pub struct Dispatch<'a> {
    args: &'a Run,
    on: On,
    /// This program, which is also the worker.
    program: PathBuf,
    here: Context,
    named_kernel: Option<Kernel>,
    models: Vec<(Vendor, Model)>,
    host: OnceCell<Result<Arc<Host>, String>>,
    kernel: OnceCell<Result<Kernel, String>>,
    ready: OnceCell<Result<Vec<Ready>, String>>,
    /// What machines of ours have executed.
    recorded: Option<RefCell<Recorded>>,
}

impl<'a> Dispatch<'a> {
    /// The places, of which `on` is the one that was asked for.
    ///
    /// # Errors
    /// If the rig or the model cannot be as the command line describes them.
    pub fn new(args: &'a Run, on: On) -> Result<Self, Early> {
        let program = std::env::current_exe()
            .map_err(|error| Early::nothing_ran(format!("cannot find this program to start workers with: {error}")))?;
        let dispatch = Self {
            args,
            on,
            program,
            here: Context::here(Place::Host),
            named_kernel: rig::named_kernel(&args.rig)?,
            models: models(args, on)?,
            host: OnceCell::new(),
            kernel: OnceCell::new(),
            ready: OnceCell::new(),
            recorded: Recorded::asked(&args.recording)?.map(RefCell::new),
        };
        if [Some(on), args.diff].contains(&Some(On::Rig)) {
            args.vendors().iter().try_for_each(|vendor| args.rig.machine_for(*vendor).map(drop))?;
        }
        if [Some(on), args.diff].contains(&Some(On::Rig))
            && let Ok(kernel) = dispatch.kernel()
        {
            rig::check_module_params(&kernel, args.vendors(), &args.rig)?;
        }
        Ok(dispatch)
    }

    /// This machine.
    pub fn here(&self) -> &Context {
        &self.here
    }

    /// Where a row runs. What was required is required of a real kernel: the model is no place for it.
    pub fn assign(&self, row: &Entry) -> Assigned {
        let model = || {
            if self.args.require.contains(&row.vm) {
                return Err("the model is no kernel, and no pass on it meets a requirement".to_owned());
            }
            self.ready().map(drop)
        };
        assign(self.on, row, || self.host(), || self.rig(), model)
    }

    /// Runs the jobs with the indices in `due` where their rows, by id, were assigned. A skip is told and nothing runs.
    pub fn run(
        &self,
        jobs: &[Job],
        assigned: &BTreeMap<&str, Assigned>,
        due: &[usize],
        interrupt: &Interrupt,
        followers: &mut Followers<'_>,
    ) {
        let (mut on_host, mut in_rig, mut on_model) = (Vec::new(), Vec::new(), Vec::new());
        for &index in due.iter().take_while(|_| interrupt.cause().is_none()) {
            match &assigned[jobs[index].id.as_str()] {
                Assigned::Host => on_host.push(index),
                Assigned::Rig(_) => in_rig.push(index),
                Assigned::Model(_) => on_model.push(index),
                Assigned::Skip(place, Lack { of, reason }) => {
                    let place = match place {
                        Place::Host => &self.here,
                        Place::Rig => &{
                            let vendor = jobs[index].vendor;
                            Context::rig_without_guest("", self.machine(vendor), vendor)
                        },
                        Place::Model => &Context::nowhere(Place::Model),
                    };
                    followers.started(index);
                    let report = place.report(&jobs[index], Verdict::Skip, reason.clone());
                    followers.finished(index, CaseReport { lacks: Some(*of), ..report }, &[], &[]);
                }
            }
        }
        self.run_on_host(jobs, &on_host, interrupt, followers);
        self.run_on_model(jobs, &on_model, interrupt, followers);
        self.run_in_rig(jobs, &in_rig, interrupt, followers);
    }

    fn run_on_host(&self, jobs: &[Job], indices: &[usize], interrupt: &Interrupt, followers: &mut Followers<'_>) {
        if indices.is_empty() {
            return;
        }
        let proven = self.host().map(|host| host.proven()).unwrap_or_default();
        let program = &self.program;
        // Where there can be no files, rows have to do without.
        let slots = Slots::of_this_host(&privet_cases::table()).ok();
        let pool = Pool {
            worker: &|job| Started::new(worker::command(program, job, &proven)),
            until: Until::End,
            at_a_time: self.at_a_time(),
            overtime: Overtime::HERE,
            context: &self.here,
            slots: slots.as_ref(),
            kernel_logs: KernelLogs::Judge,
            interrupt,
        };
        run_in_pool(&pool, jobs, indices, followers);
    }

    fn run_on_model(&self, jobs: &[Job], indices: &[usize], interrupt: &Interrupt, followers: &mut Followers<'_>) {
        if indices.is_empty() {
            return;
        }
        for ((vendor, _), model) in self.models.iter().zip(self.ready().unwrap_or_default()) {
            let indices = of_vendor(jobs, indices, *vendor);
            model.run(&these(jobs, &indices), self.at_a_time(), interrupt, pass_on(&indices, followers));
        }
    }

    fn run_in_rig(&self, jobs: &[Job], indices: &[usize], interrupt: &Interrupt, followers: &mut Followers<'_>) {
        let Ok(kernel) = self.kernel() else { return };
        for &vendor in self.args.vendors() {
            let indices = of_vendor(jobs, indices, vendor);
            if indices.is_empty() {
                continue;
            }
            let rig = rig::Rig {
                kernel: kernel.clone(),
                machine: self.machine(vendor),
                vendor,
                programs: &[],
                options: &self.args.rig,
                machines: self.at_a_time(),
                artifacts: self.args.artifacts.as_deref(),
                recorded: self.recorded.as_ref(),
            };
            rig.run(jobs, &indices, interrupt, followers);
        }
    }

    /// Tells what is asked about what machines of ours have executed.
    ///
    /// # Errors
    /// As [`Recorded::tell`].
    pub fn tell_recorded(self) -> Result<(), Early> {
        match (self.kernel(), self.recorded) {
            (Ok(kernel), Some(recorded)) => recorded.into_inner().tell(&kernel),
            _ => Ok(()),
        }
    }

    fn host(&self) -> Result<Arc<Host>, String> {
        self.host.get_or_init(|| Host::open().map(Arc::new).map_err(|error| error.to_string())).clone()
    }

    fn kernel(&self) -> Result<Kernel, String> {
        let cached = || Kernel::cached().map_err(|error| error.to_string());
        self.kernel.get_or_init(|| self.named_kernel.clone().map_or_else(cached, Ok)).clone()
    }

    /// The machine of the rig; one with the wrong processors was refused before.
    fn machine(&self, vendor: Vendor) -> MachineKind {
        self.args.rig.machine_for(vendor).unwrap_or(MachineKind::Sim)
    }

    fn rig(&self) -> Result<(), String> {
        match self.kernel() {
            Ok(_) if self.on == On::Auto && !rig::is_installed(self.machine(Vendor::Amd)) => {
                Err(format!("no {} to boot its kernel", self.machine(Vendor::Amd)))
            }
            found => found.map(drop),
        }
    }

    fn ready(&self) -> Result<Vec<Ready>, String> {
        let prepare = || self.models.iter().map(|(_, model)| model.ready(&self.program)).collect();
        self.ready.get_or_init(prepare).clone()
    }

    fn at_a_time(&self) -> usize {
        self.args.jobs.map_or_else(cores, usize::from)
    }
}

/// How many cores there are to run on.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs the jobs with these indices in worker processes.
pub fn run_in_pool(pool: &Pool<'_>, jobs: &[Job], indices: &[usize], followers: &mut Followers<'_>) {
    pool.run(&these(jobs, indices), pass_on(indices, followers));
}

/// The model, as the command line describes it, with the processors of each vendor.
fn models(args: &Run, on: On) -> Result<Vec<(Vendor, Model)>, Early> {
    let model = |vendor: &Vendor| {
        let processors = args.vendor.map(|_| *vendor);
        Ok((*vendor, Model::described(processors, &args.rig.module_param, args.defect)?))
    };
    match on {
        On::Model | On::Auto => args.vendors().iter().map(model).collect(),
        On::Host | On::Rig => Ok(Vec::new()),
    }
}

fn of_vendor(jobs: &[Job], indices: &[usize], vendor: Vendor) -> Vec<usize> {
    indices.iter().copied().filter(|index| jobs[*index].vendor == vendor).collect()
}

fn these(jobs: &[Job], indices: &[usize]) -> Vec<Job> {
    indices.iter().map(|index| jobs[*index].clone()).collect()
}

/// Tells what happens to jobs that were taken out of all by these indices.
fn pass_on(indices: &[usize], followers: &mut Followers<'_>) -> impl FnMut(Event) {
    |event| match event {
        Event::Started(index) => followers.started(indices[index]),
        Event::Finished(index, done) => {
            followers.finished(indices[index], done.report, &done.stdout, &done.stderr);
        }
    }
}
