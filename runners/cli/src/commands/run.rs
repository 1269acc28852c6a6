//! `privet run`: select rows, decide where each runs, run them, report.

use std::io::{self, IsTerminal};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use privet_cases::Entry;
use privet_rig::MachineKind;

use super::diff;
use super::run_on::{cannot_write, run_on};
use crate::args::{On, Run};
use crate::descriptors;
use crate::dispatch::cores;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::plan::{self, Job};
use crate::report::junit::Junit;
use crate::report::paint::Paint;
use crate::report::pretty::Pretty;
use crate::report::{Format, Report, in_format};
use crate::selection::select;

/// The time limit of a row where none is given: many times what the slowest one takes in the rig.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs rows and reports them.
///
/// # Errors
/// If the command line cannot be followed; then nothing has run and nothing was written.
pub fn run(args: &Run, paint: Paint) -> Result<Status, Early> {
    let on = place(args)?;
    let jobs = jobs(args)?;
    descriptors::check(args.jobs.map_or_else(cores, usize::from))?;
    let interrupt = watched(args.global_timeout)?;
    if let Some(other) = args.diff {
        return diff::diff(args, [on, other], &jobs, &interrupt);
    }
    // As with other tools, `-` is standard output.
    let file = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let mut output = file.map(|path| Output::create(path, "--output")).transpose()?;
    let outputs = reports(args, output.as_mut(), paint);
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

/// What signals end, and this time limit.
fn watched(limit: Option<Duration>) -> Result<Interrupt, Early> {
    let interrupt =
        Interrupt::on_signals().map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
    let watch = limit.map_or(Ok(()), |limit| interrupt.after(limit));
    watch.map_err(|error| Early::nothing_ran(format!("cannot watch the time: {error}")))?;
    Ok(interrupt)
}

/// The jobs that the command line asks for.
pub(super) fn jobs(args: &Run) -> Result<Vec<Job>, Early> {
    let selected = selected(args, &privet_cases::table())?;
    let seed = args.seed.unwrap_or_else(plan::fresh_seed);
    let mut jobs = plan::jobs(&selected, args.repeat.get(), seed, args.timeout.unwrap_or(LIMIT));
    for job in &mut jobs {
        job.keep = args.keep;
        job.schedules = match args.schedule {
            Some(schedule) => vec![schedule],
            None => plan::schedules(job.seed, args.schedules.map_or(0, NonZeroU32::get)),
        };
    }
    Ok(plan::on_each(args.vendors(), &jobs))
}

/// The ids that the command line selects.
fn selected(args: &Run, table: &[Entry]) -> Result<Vec<String>, Early> {
    let selected = select(table, &args.selection)?;
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
            "--kernel, --modules, --machine, --module-param and --vendor describe a rig or a model: use --on rig, or load the host's modules as you want them",
        ));
    }
    if (args.rig.kernel.is_some() || args.rig.machine.is_some()) && !can_be(On::Rig) {
        return Err(Early::usage("--kernel, --modules and --machine are about a rig: use --on rig"));
    }
    if args.defect.is_some() && !can_be(On::Model) {
        return Err(Early::usage("--defect is a bug of the model: use --on model"));
    }
    let on_sim = || {
        on == On::Rig
            && args.vendors().iter().all(|vendor| matches!(args.rig.machine_for(*vendor), Ok(MachineKind::Sim)))
    };
    if (args.schedules.is_some() || args.schedule.is_some()) && !on_sim() {
        return Err(Early::usage(
            "--schedules and --schedule are about the turns of our own machine's processors: use --on rig --machine sim",
        ));
    }
    if args.recording.is_asked() && (!on_sim() || args.diff.is_some()) {
        return Err(Early::usage(
            "--instruction-profile and --coverage are about what our own machine executes: use --on rig --machine sim, without --diff",
        ));
    }
    if args.diff == Some(on) {
        return Err(Early::usage(
            "--diff compares with another place than that of --on: give model and rig, for instance",
        ));
    }
    Ok(on)
}

/// What is shown and written: the format goes to `--output` if that is given, and to standard output if not.
fn reports<'a>(args: &Run, output: Option<&'a mut Output>, paint: Paint) -> Vec<Box<dyn Report + 'a>> {
    let (format, partition) = (args.format, args.partition);
    match (output, format) {
        (Some(output), Format::Junit) => {
            vec![Box::new(Pretty::on_stdout(paint)), Box::new(Junit::into_file(output))]
        }
        (Some(output), format) => {
            vec![Box::new(Pretty::on_stdout(paint)), in_format(format, partition, Box::new(output))]
        }
        (None, Format::Pretty) => vec![Box::new(Pretty::on_stdout(paint))],
        // A bar and a machine's format would tear each other on one terminal.
        (None, format) if io::stdout().is_terminal() => vec![in_format(format, partition, Box::new(io::stdout()))],
        (None, format) => vec![in_format(format, partition, Box::new(io::stdout())), Box::new(Pretty::bar_only())],
    }
}
