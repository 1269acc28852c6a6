//! `privet compare`: the kernel's own selftests and the rows beside them, in one place, one after the other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use privet_cases::Entry;
use privet_harness::host::Host;
use privet_harness::probe;
use privet_harness::vendor::Vendor;
use privet_kernel::Kernel;
use privet_kselftest::catalogue::{TESTS, Test};
use privet_kselftest::directory::Kselftests;
use privet_report::{CaseReport, Place};
use privet_rig::{MachineKind, Program};

use super::model::is_static;
use crate::args::{Compare, CompareFormat, On};
use crate::comparison::baseline::{Baseline, Kind};
use crate::comparison::{self, Compared, Ran, Relation, json, junit, ktap, pretty};
use crate::descriptors;
use crate::dispatch::run_in_pool;
use crate::exit::{Early, Status};
use crate::follow::{Followers, Policy};
use crate::interrupt::Interrupt;
use crate::known_bug;
use crate::kselftest_worker;
use crate::model::{Model, Ready};
use crate::output::Output;
use crate::place::Context;
use crate::plan::{self, Job};
use crate::pool::{KernelLogs, Overtime, Pool};
use crate::process::{Started, Until};
use crate::report::Report;
use crate::report::pretty::Pretty;
use crate::report::seen::Seen;
use crate::repro::Repro;
use crate::rig;
use crate::selection::no_such;
use crate::worker;

/// Runs both sides and writes how they compare to `out`.
///
/// # Errors
/// If the command line cannot be followed, there are no selftests, or there is no place to run them in.
pub fn compare(args: &Compare, mut out: impl Write) -> Result<Status, Early> {
    let table = privet_cases::table();
    let (tests, rows) = selected(&args.filters, &table)?;
    let kselftests = match &args.kselftests {
        Some(dir) => Kselftests::named(dir).map_err(|error| Early::usage(error.to_string()))?,
        None => Kselftests::cached().map_err(|error| Early::nothing_ran(error.to_string()))?,
    };
    descriptors::check(1)?;
    let place = Where::find(args)?;
    let on = place.context().on;
    let baseline = args.against.as_deref().map(|path| Baseline::read(path, on)).transpose()?;
    let save = args.save.as_deref().map(|path| Output::create(path, "--save")).transpose()?;

    let programs: BTreeMap<&str, _> =
        tests.iter().filter_map(|test| Some((test.name, kselftests.program(test.name)?))).collect();
    let jobs = jobs(args, &tests, &rows, |test| programs.contains_key(test));
    let interrupt =
        Interrupt::on_signals().map_err(|error| Early::nothing_ran(format!("cannot watch for signals: {error}")))?;
    let seen = Rc::new(RefCell::new(BTreeMap::new()));
    let reports: Vec<Box<dyn Report>> = vec![Box::new(Seen::into(&seen)), Box::new(Pretty::bar_only())];
    let repro = Repro { rig: &args.rig, timeout: Some(args.timeout), vendor_on_model: false, defect: None };
    let name_known_bug = |job: &Job, report: &mut CaseReport| {
        table.iter().filter(|row| row.id == job.id).for_each(|row| known_bug::name(row, report));
    };
    let policy = Policy { hold_to: Some(&name_known_bug), ..Policy::default() };
    let mut followers = Followers::begin(&jobs, reports, None, repro, policy, &interrupt);
    place.run(args, &kselftests, &programs, &jobs, &interrupt, &mut followers)?;
    let (summary, _) = followers.end(0).map_err(|error| Early::nothing_ran(error.to_string()))?;

    let seen = seen.take();
    // What did not get its turn has said nothing; it is not as if upstream did not have it.
    let had_its_turn = |test: &&Test| {
        !programs.contains_key(test.name) || seen.contains_key(&kselftest_worker::job(test.name, args.timeout).id)
    };
    let tests: Vec<&Test> = tests.into_iter().filter(had_its_turn).collect();
    let compared = compared(&place, &kselftests, &tests, &rows, &table, &seen);
    let now = Baseline::of(&compared);
    let against = baseline.map(|baseline| baseline.against(&now, args.filters.is_empty()));
    let text = match args.format {
        CompareFormat::Pretty => Ok(pretty::report(&compared, against.as_ref())),
        CompareFormat::Json => Ok(json::report(&compared, against.as_ref())),
        CompareFormat::Ktap => Ok(ktap::report(&compared, against.as_ref())),
        CompareFormat::Junit => junit::report(&compared, against.as_ref()),
    };
    let cannot_write = |error: io::Error| Early::usage(format!("cannot write the report: {error}"));
    out.write_all(text.map_err(cannot_write)?.as_bytes()).and_then(|()| out.flush()).map_err(cannot_write)?;
    if let Some(signal) = summary.signal {
        let left_out = match save {
            Some(_) => ", and a part of the verdicts is no baseline: nothing is saved",
            None => "",
        };
        return Err(Early {
            status: Status::Interrupted(signal),
            message: format!("interrupted: {} tests and rows did not run{left_out}", summary.not_run),
        });
    }
    if let Some(mut save) = save {
        let saved = now.write(&mut save).and_then(|()| save.finish());
        saved.map_err(|error| Early::usage(format!("cannot write the baseline: {error}")))?;
    }
    if let Some(trouble) = summary.trouble {
        return Err(Early { status: Status::Failed, message: trouble });
    }
    let is_worse = against.is_some_and(|against| against.changes.iter().any(|change| change.kind == Kind::NewFailure));
    Ok(match () {
        () if compared.count(Relation::Disagree) > 0 || is_worse => Status::Failed,
        () if !compared.says_anything() => Status::NothingRan,
        () => Status::Passed,
    })
}

/// The tests and rows that the filters select, each with what belongs to it: a test brings the rows that name
/// it, and a row the tests that it names.
fn selected<'a>(filters: &[String], table: &'a [Entry]) -> Result<(Vec<&'static Test>, Vec<&'a Entry>), Early> {
    let matches = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    for filter in filters {
        let mut names = TESTS.iter().map(|test| test.name.to_owned()).chain(table.iter().map(|row| row.id.clone()));
        if !names.any(|name| name.contains(filter.as_str())) {
            let names: Vec<String> = TESTS.iter().map(|test| test.name.to_owned()).collect();
            let what = "no test of upstream's and no row matches the filter";
            return Err(no_such(what, &names, filter, "privet list --upstream"));
        }
    }
    let of_rows: BTreeSet<&str> = table
        .iter()
        .filter(|row| matches(&row.id))
        .flat_map(|row| row.upstream.iter().map(|counterpart| counterpart.test))
        .collect();
    let tests: Vec<&Test> = TESTS.iter().filter(|test| matches(test.name) || of_rows.contains(test.name)).collect();
    let names_one = |row: &Entry| row.upstream.iter().any(|c| tests.iter().any(|test| test.name == c.test));
    let rows = table.iter().filter(|row| matches(&row.id) || names_one(row)).collect();
    Ok((tests, rows))
}

/// Each test that can run, followed by the rows that name it; at the end the rows that name none.
fn jobs(args: &Compare, tests: &[&Test], rows: &[&Entry], is_built: impl Fn(&str) -> bool) -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut left: Vec<&&Entry> = rows.iter().collect();
    let seed = plan::fresh_seed();
    let of_row = |row: &Entry| Job {
        id: row.id.clone(),
        label: row.id.clone(),
        seed,
        limit: args.timeout,
        keep: false,
        vendor: Vendor::Amd,
        schedules: Vec::new(),
    };
    for test in tests {
        if is_built(test.name) {
            jobs.push(kselftest_worker::job(test.name, args.timeout));
        }
        let (theirs, others) = left.into_iter().partition(|row| row.upstream.iter().any(|c| c.test == test.name));
        jobs.extend(Vec::<&&Entry>::into_iter(theirs).map(|row| of_row(row)));
        left = others;
    }
    jobs.extend(left.into_iter().map(|row| of_row(row)));
    jobs
}

/// The one place where both sides run.
enum Where {
    Host,
    Rig(Kernel, MachineKind, Vendor),
    Model(Box<Ready>),
}

impl Where {
    fn find(args: &Compare) -> Result<Self, Early> {
        let in_rig = || {
            let kernel = match rig::named_kernel(&args.rig)? {
                Some(kernel) => kernel,
                None => Kernel::cached().map_err(|error| Early::nothing_ran(error.to_string()))?,
            };
            let machine = args.rig.machine_for(args.rig.vendor())?;
            rig::check_module_params(&kernel, &[args.rig.vendor()], &args.rig)?;
            Ok(Self::Rig(kernel, machine, args.rig.vendor()))
        };
        match args.on {
            On::Host if args.rig.is_given() => Err(Early::usage(
                "--kernel, --modules, --machine and --module-param describe a rig or a model: use --on rig, or load the host's modules as you want them",
            )),
            On::Model if args.rig.kernel.is_some() || args.rig.machine.is_some() => {
                Err(Early::usage("--kernel, --modules and --machine are about a rig: use --on rig"))
            }
            On::Model => {
                let model = Model::described(None, &args.rig.module_param, None)?;
                let ready = this_program().and_then(|program| model.ready(&program));
                ready.map(|ready| Self::Model(Box::new(ready))).map_err(Early::nothing_ran)
            }
            On::Host => Ok(Self::Host),
            On::Rig => in_rig(),
            On::Auto if args.rig.is_given() => in_rig(),
            On::Auto => match Host::open() {
                Ok(host) if probe::ring0(&host).is_ok() && probe::hypercall(&host).is_ok() => Ok(Self::Host),
                Ok(_) | Err(_) => in_rig(),
            },
        }
    }

    /// Runs all jobs, one after the other.
    fn run(
        &self,
        args: &Compare,
        kselftests: &Kselftests,
        programs: &BTreeMap<&str, PathBuf>,
        jobs: &[Job],
        interrupt: &Interrupt,
        followers: &mut Followers<'_>,
    ) -> Result<(), Early> {
        let indices: Vec<usize> = (0..jobs.len()).collect();
        let command = |program: &Path, job: &Job| match kselftest_worker::test_of(job) {
            Some(test) => kselftest_worker::command(program, test, &kselftests.dir, job.limit),
            None => worker::command(program, job, &[]),
        };
        match self {
            Where::Host => {
                let program = this_program().map_err(Early::nothing_ran)?;
                let pool = Pool {
                    worker: &|job| Started::new(command(&program, job)),
                    until: Until::End,
                    at_a_time: 1,
                    overtime: Overtime::HERE,
                    context: &Context::here(Place::Host),
                    kernel_logs: KernelLogs::Judge,
                    slots: None,
                    interrupt,
                };
                run_in_pool(&pool, jobs, &indices, followers);
            }
            Where::Model(model) => {
                if let Some(test) = programs.iter().find_map(|(test, path)| is_static(path.as_os_str()).then_some(test))
                {
                    return Err(Early::usage(format!(
                        "{test} is linked statically, so that no model can lie under it: run `privet kselftests build` without --static, or name another directory with --kselftests DIR"
                    )));
                }
                let program = this_program().map_err(Early::nothing_ran)?;
                let pool = Pool {
                    worker: &|job| {
                        let mut command = command(&program, job);
                        model.lie_under(&mut command);
                        Started::new(command)
                    },
                    until: Until::End,
                    at_a_time: 1,
                    overtime: Overtime::HERE,
                    context: model.context(),
                    // The kernel under the model has no part in it.
                    kernel_logs: KernelLogs::Ignored,
                    slots: None,
                    interrupt,
                };
                run_in_pool(&pool, jobs, &indices, followers);
            }
            Where::Rig(kernel, machine, vendor) => {
                let guest_path = |test: &str| Path::new(rig::KSELFTESTS).join(test);
                let programs: Vec<Program> = programs
                    .iter()
                    .map(|(test, path)| Program { path: path.clone(), guest_path: guest_path(test) })
                    .collect();
                let rig = rig::Rig {
                    recorded: None,
                    kernel: kernel.clone(),
                    machine: *machine,
                    vendor: *vendor,
                    programs: &programs,
                    options: &args.rig,
                    machines: 1,
                    artifacts: None,
                };
                rig.run(jobs, &indices, interrupt, followers);
            }
        }
        Ok(())
    }

    fn context(&self) -> Context {
        match self {
            Where::Host => Context::here(Place::Host),
            Where::Rig(kernel, machine, vendor) => Context::rig_without_guest(&kernel.release, *machine, *vendor),
            Where::Model(model) => model.context().clone(),
        }
    }
}

fn this_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot find this program to start workers with: {error}"))
}

fn compared(
    place: &Where,
    kselftests: &Kselftests,
    tests: &[&Test],
    rows: &[&Entry],
    table: &[Entry],
    seen: &BTreeMap<String, CaseReport>,
) -> Compared {
    let mut context = place.context();
    // What the guest itself says about its modules.
    if let Some(report) = seen.values().find(|report| !report.module_params.is_empty()) {
        context.module_params.clone_from(&report.module_params);
    }
    let ran = |test: &Test| {
        let job = kselftest_worker::job(test.name, Default::default());
        seen.get(&job.id)
            .map(|report| Ran { reading: kselftest_worker::reading(report), duration_us: report.duration_us })
    };
    let lines = tests.iter().flat_map(|test| comparison::lines(test, ran(test).as_ref(), table, seen));
    let ours = rows.iter().filter(|row| row.upstream.is_empty()).filter_map(|row| seen.get(&row.id));
    Compared {
        place: context,
        source: kselftests.source.clone().unwrap_or_else(|| kselftests.dir.display().to_string()),
        comparisons: lines.collect(),
        ours_only: ours.map(|report| comparison::result(report, false)).collect(),
    }
}
