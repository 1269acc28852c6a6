//! `privet run`: select rows, decide where each runs, run them, report.

use std::cell::OnceCell;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use privet_cases::Entry;
use privet_harness::host::Host;
use privet_harness::vendor::Vendor;
use privet_kernel::Kernel;
use privet_report::{CaseReport, Place, Verdict};

use super::diff;
use crate::args::{On, Run};
use crate::artifacts::{Artifacts, RunFacts};
use crate::exit::{Early, Status};
use crate::follow::Followers;
use crate::interrupt::Interrupt;
use crate::known_bug;
use crate::model::Model;
use crate::output::Output;
use crate::place::{Assigned, Context, assign};
use crate::plan::{self, Job};
use crate::pool::{Event, KernelLogs, MARGIN, Pool};
use crate::report::pretty::Pretty;
use crate::report::{Format, Report, in_format};
use crate::repro::Repro;
use crate::require;
use crate::rig;
use crate::selection::select;
use crate::summary::Summary;
use crate::worker;

/// The time limit of a row where none is given: many times what the slowest one takes in the rig.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs rows and reports them.
///
/// # Errors
/// If the command line cannot be followed; then nothing has run and nothing was written.
pub fn run(args: &Run) -> Result<Status, Early> {
    let on = place(args)?;
    let jobs = jobs(args)?;
    let interrupt =
        Interrupt::on_signals().map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
    if let Some(other) = args.diff {
        return diff::diff(args, [on, other], &jobs, &interrupt);
    }
    let mut output = args.output.as_deref().map(|path| Output::create(path, "--output")).transpose()?;
    let outputs = reports(args.format, output.as_mut());
    let (summary, first_skip) = run_on(args, on, &jobs, &interrupt, outputs)?;
    if let Some(output) = output {
        output.finish().map_err(cannot_write)?;
    }
    if summary.status() == Status::NothingRan {
        let why = first_skip.unwrap_or_else(|| "this slice of the rows is empty".to_owned());
        eprintln!("privet: nothing ran: {why}");
    }
    Ok(summary.status())
}

/// The jobs that the command line asks for.
pub(super) fn jobs(args: &Run) -> Result<Vec<Job>, Early> {
    let selected = selected(args, &privet_cases::table())?;
    let seed = args.seed.unwrap_or_else(plan::fresh_seed);
    let jobs = plan::jobs(&selected, args.repeat.get(), seed, args.timeout.unwrap_or(LIMIT));
    Ok(plan::on_each(args.vendors(), &jobs))
}

/// Runs the jobs, tells `reports`, and gives the count and the first reason of a skip.
pub(super) fn run_on<'a>(
    args: &'a Run,
    on: On,
    jobs: &'a [Job],
    interrupt: &'a Interrupt,
    reports: Vec<Box<dyn Report + 'a>>,
) -> Result<(Summary, Option<String>), Early> {
    let table = privet_cases::table();
    let named_kernel = rig::named_kernel(&args.rig)?;
    let kernel = OnceCell::new();
    let kernel = || {
        kernel
            .get_or_init(|| {
                named_kernel.clone().map_or_else(|| Kernel::cached().map_err(|error| error.to_string()), Ok)
            })
            .clone()
    };
    if [Some(on), args.diff].contains(&Some(On::Rig))
        && let Ok(kernel) = kernel()
    {
        rig::check_module_params(&kernel, args.vendors(), &args.rig)?;
    }
    let program = std::env::current_exe()
        .map_err(|error| Early::nothing_ran(format!("cannot find this program to start workers with: {error}")))?;
    let models = models(args, on)?;
    let here = Context::here(Place::Host);
    let artifacts = args.artifacts.as_deref().map(|dir| {
        let facts = RunFacts {
            version: env!("CARGO_PKG_VERSION"),
            command: std::env::args().collect(),
            seed: jobs.first().map_or(0, |job| job.seed),
            host: &here,
            jobs: jobs.iter().map(|job| job.label.as_str()).collect(),
        };
        Artifacts::create(dir, &facts)
    });
    let artifacts = artifacts.transpose()?;

    let host = OnceCell::new();
    let host = || host.get_or_init(|| Host::open().map(Arc::new).map_err(|error| error.to_string())).clone();
    let rig = || match kernel() {
        Ok(_) if on == On::Auto && !rig::emulator_is_installed() => Err("no QEMU to boot its kernel".to_owned()),
        found => found.map(drop),
    };
    let ready = OnceCell::new();
    let ready = || {
        let prepare = || models.iter().map(|(_, model)| model.ready(&program)).collect::<Result<Vec<_>, _>>();
        ready.get_or_init(prepare).clone()
    };

    let start = Instant::now();
    let (vendor_on_model, defect) = (args.vendor.is_some(), args.defect);
    let repro = Repro { rig: &args.rig, timeout: args.timeout, vendor_on_model, defect };
    let row_of = |job: &Job| table.iter().find(|row| row.id == job.id).expect("jobs are made of rows");
    let hold_to = |job: &Job, report: &mut CaseReport| {
        known_bug::name(row_of(job), report);
        require::hold_to(&args.require, row_of(job), report);
    };
    let mut followers = Followers::begin(jobs, reports, artifacts, repro, &hold_to, interrupt);
    let (mut on_host, mut in_rig, mut on_model) = (Vec::new(), Vec::new(), Vec::new());
    for (index, job) in jobs.iter().enumerate().take_while(|_| interrupt.signal().is_none()) {
        match assign(on, row_of(job), host, rig, || ready().map(drop)) {
            Assigned::Host => on_host.push(index),
            Assigned::Rig => in_rig.push(index),
            Assigned::Model => on_model.push(index),
            Assigned::Skip(place, reason) => {
                let place = match place {
                    Place::Host => &here,
                    Place::Rig => &Context::rig_without_guest("", job.vendor),
                    Place::Model => &Context::nowhere(Place::Model),
                };
                followers.started(index);
                followers.finished(index, place.report(job, Verdict::Skip, reason), &[], &[]);
            }
        }
    }
    let of_vendor = |indices: &[usize], vendor: Vendor| -> Vec<usize> {
        indices.iter().copied().filter(|index| jobs[*index].vendor == vendor).collect()
    };
    let at_a_time = args.jobs.map_or_else(cores, usize::from);
    if !on_host.is_empty() {
        let proven = host().map(|host| host.proven()).unwrap_or_default();
        let pool = Pool {
            worker: &|job| worker::command(&program, job, &proven),
            at_a_time,
            margin: MARGIN,
            context: &here,
            kernel_logs: KernelLogs::Judge,
            interrupt,
        };
        run_on_host(&pool, jobs, &on_host, &mut followers);
    }
    if !on_model.is_empty() {
        for ((vendor, _), model) in models.iter().zip(ready().unwrap_or_default()) {
            let indices = of_vendor(&on_model, *vendor);
            model.run(&these(jobs, &indices), at_a_time, interrupt, pass_on(&indices, &mut followers));
        }
    }
    if !in_rig.is_empty()
        && let Ok(kernel) = kernel()
    {
        for &vendor in args.vendors() {
            let indices = of_vendor(&in_rig, vendor);
            if indices.is_empty() {
                continue;
            }
            let (kernel, options) = (kernel.clone(), &args.rig);
            let rig = rig::Rig {
                kernel,
                vendor,
                programs: &[],
                options,
                machines: at_a_time,
                artifacts: args.artifacts.as_deref(),
            };
            rig.run(jobs, &indices, interrupt, &mut followers);
        }
    }

    let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    followers.end(duration_us).map_err(cannot_write)
}

/// The ids that the command line selects.
fn selected(args: &Run, table: &[Entry]) -> Result<Vec<String>, Early> {
    let ids: Vec<String> = table.iter().map(|row| row.id.clone()).collect();
    let selected = select(&ids, &args.selection.filters, args.selection.exact)?;
    for vm in &args.require {
        if !table.iter().any(|row| row.vm == *vm && selected.contains(&row.id)) {
            return Err(Early::usage(format!(
                "--require {vm}: no selected row is about a {vm} VM; select some, or leave it out"
            )));
        }
    }
    Ok(match args.partition {
        Some(partition) => partition.slice(selected),
        None => selected,
    })
}

/// Where rows shall run, once the options of rig and model are taken into account.
fn place(args: &Run) -> Result<On, Early> {
    let is_rig = args.rig.is_given() || args.vendor.is_some();
    let on = match args.on {
        On::Auto if args.defect.is_some() => On::Model,
        On::Auto if is_rig => On::Rig,
        on => on,
    };
    let can_be = |place: On| on == place || args.diff == Some(place);
    if is_rig && !can_be(On::Rig) && !can_be(On::Model) {
        return Err(Early::usage(
            "--kernel, --modules, --module-param and --vendor describe a rig or a model: use --on rig, or load the host's modules as you want them",
        ));
    }
    if args.rig.kernel.is_some() && !can_be(On::Rig) {
        return Err(Early::usage("--kernel and --modules are what a rig boots: use --on rig"));
    }
    if args.defect.is_some() && !can_be(On::Model) {
        return Err(Early::usage("--defect is a bug of the model: use --on model"));
    }
    if args.diff == Some(on) {
        return Err(Early::usage(
            "--diff compares with another place than that of --on: give model and rig, for instance",
        ));
    }
    Ok(on)
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

/// What is shown and written: the format goes to `--output` if that is given, and to standard output if not.
fn reports<'a>(format: Format, output: Option<&'a mut Output>) -> Vec<Box<dyn Report + 'a>> {
    match (output, format) {
        (Some(output), format) => {
            vec![Box::new(Pretty::with_bar(io::stdout())), in_format(format, Box::new(output))]
        }
        (None, Format::Pretty) => vec![Box::new(Pretty::with_bar(io::stdout()))],
        // A bar and a machine's format would tear each other on one terminal.
        (None, format) if io::stdout().is_terminal() => vec![in_format(format, Box::new(io::stdout()))],
        (None, format) => {
            vec![in_format(format, Box::new(io::stdout())), Box::new(Pretty::with_bar(io::sink()))]
        }
    }
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs the jobs with these indices on this machine.
pub(super) fn run_on_host(pool: &Pool<'_>, jobs: &[Job], indices: &[usize], followers: &mut Followers<'_>) {
    pool.run(&these(jobs, indices), pass_on(indices, followers));
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

fn cannot_write(error: io::Error) -> Early {
    Early::usage(format!("cannot write the report: {error}"))
}
