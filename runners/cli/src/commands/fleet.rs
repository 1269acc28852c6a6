//! `privet fleet`: work for many hosts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use clap::Parser;
use privet_cases::Entry;
use privet_fleet::{Claim, Fleet, JobArray, Spread, lava_definition};
use privet_harness::vm_type::VmType;

use super::collect::collected;
use super::show::show;
use crate::args::{Cli, Command, FleetLava, FleetSlurm, KeyIds, On, Run};
use crate::exit::{Early, Status};
use crate::plan;
use crate::report::pretty::rows as rows_in_words;
use crate::selection::select;

/// What a job may take besides its rows: it waits for a boot, and a kernel may have to be built.
const BESIDES: Duration = Duration::from_mins(5);

/// What a row is expected to take where nobody knows.
const ROW: Duration = Duration::from_secs(3);

/// A node may be so many times as slow as the one where a row's time was taken.
const SLOWER: u32 = 3;

/// What a mutant of the kernel is expected to take, all jobs at a time of a shard counted as one.
const MUTANTS: Duration = Duration::from_hours(24);

/// Writes a fleet's jobs for Slurm and tells which.
///
/// # Errors
/// If the options of the jobs are none, or the directory cannot be written.
pub fn slurm(args: &FleetSlurm, out: impl Write) -> Result<Status, Early> {
    let table = privet_cases::table();
    let selected = select(&table, &args.selection)?;
    let rows: Vec<&Entry> = table.iter().filter(|row| selected.contains(&row.id)).collect();
    let arrays = match args.mutants {
        true => vec![mutants(args)?],
        false => arrays(args, &rows)?,
    };
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| Early::usage(format!("cannot find this program: {error}")))?,
    };
    let key_ids = match args.key_ids {
        KeyIds::Licences => privet_fleet::KeyIds::Licences,
        KeyIds::Gres => privet_fleet::KeyIds::Gres,
        KeyIds::None => privet_fleet::KeyIds::Uncounted,
    };
    let fleet = Fleet { program: program.to_string_lossy().into_owned(), key_ids, arrays };
    let dir = args.out.display();
    privet_fleet::write(&fleet, &args.out).map_err(|error| Early::usage(format!("cannot write {dir}: {error}")))?;
    let mut text = String::new();
    for array in &fleet.arrays {
        let needs = match array.features.as_slice() {
            [] => "any node".to_owned(),
            features => format!("nodes with {}", features.join("&")),
        };
        let alone = if array.alone { ", alone on its node, after all others" } else { "" };
        let (name, shards, rows, minutes) = (&array.name, array.shards, array.rows.len(), array.minutes);
        let work = if args.mutants { "mutants".to_owned() } else { rows_in_words(rows) };
        let shards = if shards == 1 { "1 job".to_owned() } else { format!("{shards} jobs") };
        text += &format!("{name:<14}{shards}, {work}, {needs}, {minutes} min{alone}\n");
    }
    text += &format!("submit them: {dir}/submit; then: privet collect {dir} -o report.json\n");
    show(&text, out)
}

/// Writes a test definition for LAVA to `out`.
///
/// # Errors
/// If the options are none of a run's.
pub fn lava(args: &FleetLava, out: impl Write) -> Result<Status, Early> {
    let selected = select(&privet_cases::table(), &args.selection)?;
    run_of(&args.options)?;
    show(&lava_definition(&args.program, &words(&args.options), &selected), out)
}

/// The arrays that run these rows.
fn arrays(args: &FleetSlurm, rows: &[&Entry]) -> Result<Vec<JobArray>, Early> {
    let run = run_of(&args.options)?;
    let durations = durations(args)?;
    let on_host = matches!(run.on, On::Host | On::Auto);
    if args.schedules.is_some() && on_host {
        return Err(Early::usage("--schedules is about the turns of our own machine's processors: add `-- --on rig`"));
    }
    let mut groups: BTreeMap<(bool, String), Vec<&Entry>> = BTreeMap::new();
    for row in rows {
        let name = match (on_host, row.is_risky) {
            (false, _) => "rows".to_owned(),
            (true, false) => row.vm.to_string(),
            (true, true) => format!("{}-risky", row.vm),
        };
        groups.entry((on_host && row.is_risky, name)).or_default().push(row);
    }
    let seed = run.seed.unwrap_or_else(plan::fresh_seed);
    let array = |((alone, name), rows): ((bool, String), Vec<&Entry>)| {
        let vm = rows[0].vm;
        let mut options = words(&args.options);
        options.extend(["--jobs".to_owned(), args.jobs.to_string()]);
        let mut features = args.feature.clone();
        if on_host {
            options.extend(["--on".to_owned(), "host".to_owned()]);
            features.push(vm.to_string());
            if args.require.contains(&vm) {
                options.extend(["--require".to_owned(), vm.to_string()]);
            }
        } else {
            options.extend(args.require.iter().flat_map(|vm| ["--require".to_owned(), vm.to_string()]));
        }
        let shards = args.shards.get().min(if args.schedules.is_some() { usize::MAX } else { rows.len() });
        let spread = match args.schedules {
            Some(all) => Spread::Schedules { each: (all.get() as usize).div_ceil(shards), seed },
            None => Spread::Rows,
        };
        let times = if let Spread::Schedules { each, .. } = spread { each } else { 1 };
        let all: Duration = rows.iter().map(|row| durations.get(&row.id).copied().unwrap_or(ROW)).sum();
        let share = if args.schedules.is_some() { all * times as u32 } else { all / shards as u32 };
        JobArray {
            name,
            features,
            claims: if on_host { claims(vm, &rows, args.jobs.get()) } else { Vec::new() },
            minutes: (BESIDES + share).as_secs().div_ceil(60),
            alone,
            rows: rows.iter().map(|row| row.id.clone()).collect(),
            shards,
            spread,
            options,
        }
    };
    Ok(groups.into_iter().map(array).collect())
}

/// The key ids that so many of these rows take at most, when they run at a time.
fn claims(vm: VmType, rows: &[&Entry], jobs: usize) -> Vec<Claim> {
    let guests = rows.iter().map(|row| row.guests).max().unwrap_or(1);
    let name = vm.key_ids();
    name.map(|name| Claim { name: name.to_owned(), count: jobs.min(rows.len()) * guests }).into_iter().collect()
}

/// What rows took before, several times over.
fn durations(args: &FleetSlurm) -> Result<BTreeMap<String, Duration>, Early> {
    let Some(path) = &args.durations else { return Ok(BTreeMap::new()) };
    let mut durations = BTreeMap::new();
    for result in collected(std::slice::from_ref(path))?.results {
        let longest: &mut Duration = durations.entry(result.id).or_default();
        *longest = (*longest).max(Duration::from_micros(result.duration_us) * SLOWER);
    }
    Ok(durations)
}

/// The one array that tries mutants of the kernel.
fn mutants(args: &FleetSlurm) -> Result<JobArray, Early> {
    let mut options = words(&args.options);
    let budget = parsed(&["mutants", "--kernel"], &args.options, |command| match command {
        Command::Mutants(mutants) => Some(mutants.kernel.budget),
        _ => None,
    })?;
    options.extend(args.selection.filters.iter().cloned());
    let limit = budget.map_or(MUTANTS, |minutes| Duration::from_mins(minutes) + BESIDES * 12);
    Ok(JobArray {
        name: "mutants".to_owned(),
        features: args.feature.clone(),
        claims: Vec::new(),
        minutes: limit.as_secs().div_ceil(60),
        alone: false,
        rows: Vec::new(),
        shards: args.shards.get(),
        spread: Spread::KernelMutants,
        options,
    })
}

/// The run that these options describe.
fn run_of(options: &[OsString]) -> Result<Run, Early> {
    let run = parsed(&["run"], options, |command| match command {
        Command::Run(run) => Some(*run),
        _ => None,
    })?;
    if !run.selection.filters.is_empty() || run.partition.is_some() || run.output.is_some() {
        return Err(Early::usage(
            "behind `--` stand options of `privet run` without rows, --partition and --output, which each job has of its own",
        ));
    }
    Ok(run)
}

/// What these words of `privet` mean with these options.
fn parsed<T>(command: &[&str], options: &[OsString], of: impl FnOnce(Command) -> Option<T>) -> Result<T, Early> {
    let words = ["privet"].iter().chain(command).map(OsString::from).chain(options.iter().cloned());
    let wrong = |why: String| Early::usage(format!("behind `--`: {why}"));
    let cli = Cli::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        wrong(text.lines().next().unwrap_or_default().replace("error: ", ""))
    })?;
    of(cli.command).ok_or_else(|| wrong("another command".to_owned()))
}

fn words(options: &[OsString]) -> Vec<String> {
    options.iter().map(|option| option.to_string_lossy().into_owned()).collect()
}
