//! `privet mutants --kernel`: which changes of the kernel's source would no row notice?

mod candidates;
mod clean;
mod half;
mod show;
mod stop;
mod trial;
mod verdicts;
mod watchers;

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use privet_harness::vendor::Vendor;
use privet_kernel::{BuildRequest, BuildTree, KernelError};
use privet_mutation::{Judgements, Killers, Ledger, NamedEdit, Trial, fingerprint};

use self::candidates::{Candidate, candidates};
use self::clean::Clean;
use self::half::Half;
use self::trial::Bench;
use self::verdicts::Verdicts;
use self::watchers::Watchers;
use crate::args::Mutants;
use crate::dispatch::cores;
use crate::doing::Doing;
use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::plan;
use crate::selection::select;

/// What was judged about survivors, kept in the repository.
const JUDGED: &str = include_str!("../../../../mutation/judged.toml");

/// Builds the kernel with each change and runs the rows that execute it until one is red, and writes to `out` what became
/// of each: `Failed` if one survives about which nothing was decided.
///
/// # Errors
/// If the command line cannot be followed, the kernel does not build, no row passes on the unchanged kernel, or the run is
/// interrupted; what was tried until then is kept.
pub fn kernel_mutants(args: &Mutants, mut out: impl Write) -> Result<Status, Early> {
    let options = &args.kernel;
    let selected = select(&privet_cases::table(), &args.selection)?;
    let seed = args.seed.unwrap_or_else(plan::fresh_seed);
    let interrupt = Interrupt::on_signals().map_err(|error| failed(format!("cannot watch for signals: {error}")))?;
    let half = Half(args.vendor.map_or(Vendor::Amd, Vendor::from));
    let vms: std::collections::BTreeSet<&str> =
        selected.iter().filter_map(|id| id.split_once('.')).map(|(vm, _)| vm).filter(|vm| half.runs(vm)).collect();
    let vendor = half.0.to_string();
    let who = vms.iter().copied().chain([vendor.as_str()]).collect();
    let judgements = judgements(options.judged.as_deref())?.unless_looked_at_by(&who);
    let tree = tree(args, &interrupt)?;
    let mut chosen = candidates(&tree, half, options, &vms, seed)?;
    // An edit with a story is for rows that are meant.
    let is_meant = |edit: &NamedEdit| selected.iter().any(|id| has_to_notice(id, edit, half).is_some());
    chosen.retain(|candidate| candidate.named.as_ref().is_none_or(is_meant));
    // With a sample, all slices have to be of the same one: of the same seed.
    if options.partition.is_some() && options.sample.is_some() && args.seed.is_none() {
        return Err(Early::usage("--partition of a --sample needs the --seed that all slices have"));
    }
    if let Some(partition) = options.partition {
        chosen = partition.slice(chosen);
    }
    if options.list {
        let names = chosen.iter().map(Candidate::listed).collect::<String>();
        return tell(&mut out, &names).map(|()| Status::Passed);
    }

    let program = std::env::current_exe().map_err(|error| failed(format!("cannot find this program: {error}")))?;
    let watchers = Watchers::of(options, half)?;
    let results = watchers.results(&options.results);
    fs::create_dir_all(&results).map_err(cannot("create", &results))?;
    let judge = judge(&program, &tree, half, &watchers.name(&selected))?;
    let jobs = watchers.jobs(&selected, seed, args.timeout);
    let at_a_time = args.jobs.map_or_else(cores, usize::from);
    let watching = (&watchers, program.as_path(), jobs.as_slice());
    let files = chosen.iter().map(|candidate| candidate.point.file.as_str()).collect();
    let clean = Clean::of((&tree, half), watching, (&judge, &files), at_a_time, &results, &interrupt)?;
    if let Some(name) = &options.show {
        return tell(&mut out, &show::show(name, &chosen, &clean, &watchers)?).map(|()| Status::Passed);
    }
    for blind in &clean.blind {
        let why = format!("{} ({}) is red on the unchanged kernel", blind.id, blind.reason);
        tell(&mut out, &format!("left out: {} {why}\n", watchers.noun()))?;
    }
    // For the same reason, an edit that only such rows could notice.
    let sees = |id: &&String| !clean.blind.iter().any(|blind| blind.id == **id);
    let is_seen = |edit: &NamedEdit| selected.iter().filter(sees).any(|id| has_to_notice(id, edit, half).is_some());
    for edit in chosen.extract_if(.., |candidate| candidate.named.as_ref().is_some_and(|edit| !is_seen(edit))) {
        tell(&mut out, &format!("left out: all rows that have to notice it are: {}\n", edit.point.name()))?;
    }

    let path = results.join("trials.jsonl");
    let mut ledger = Ledger::open(&path).map_err(cannot("use", &path))?;
    let mut verdicts = Verdicts::new(judgements, watchers.noun());
    let mut due = VecDeque::new();
    // Whoever names a mutant wants it tried, whatever was said of it.
    let trusts = options.mutant.is_empty() && !options.named;
    let mut known = 0;
    for candidate in chosen {
        if trusts && verdicts.is_judged(&candidate) {
            verdicts.trust(&candidate);
        } else if let Some(trial) = ledger.known(&candidate.point.name(), &candidate.content, &judge) {
            verdicts.add(&candidate, trial.clone());
            known += 1;
        } else {
            due.push_back(candidate);
        }
    }
    if known > 0 {
        tell(&mut out, &format!("{known} mutants were tried before: {}\n", path.display()))?;
    }

    let mut killers = Killers::default();
    ledger.trials().for_each(|trial| killers.add(trial));
    let killers = RwLock::new(killers);
    let most_rows = options.rows_each.map_or(usize::MAX, usize::from);
    let bench = Bench::new((&tree, half), watching, &clean, &judge, &killers, &interrupt)?.with_most_rows(most_rows);
    let until = options.budget.map(|minutes| Instant::now() + Duration::from_secs(minutes * 60));
    let due = Mutex::new(due);
    let next = || {
        let in_time = until.is_none_or(|until| Instant::now() < until) && interrupt.cause().is_none();
        due.lock().unwrap_or_else(PoisonError::into_inner).pop_front().filter(|_| in_time)
    };
    let ended = std::thread::scope(|scope| {
        let (teller, told) = mpsc::channel::<Result<(Candidate, Trial), Early>>();
        for _ in 0..at_a_time {
            let (teller, bench, next) = (teller.clone(), &bench, &next);
            scope.spawn(move || {
                while let Some(candidate) = next() {
                    let tried = bench.try_out(&candidate).map(|trial| (candidate, trial));
                    let ends = tried.is_err();
                    // The receiver is gone once somebody else has failed.
                    if teller.send(tried).is_err() || ends {
                        return;
                    }
                }
            });
        }
        drop(teller);
        told.into_iter().try_for_each(|tried| {
            let (candidate, trial) = tried?;
            ledger.add(trial.clone()).map_err(cannot("write", &path))?;
            tell(&mut out, &verdicts.line(&candidate, &trial))?;
            killers.write().unwrap_or_else(PoisonError::into_inner).add(&trial);
            verdicts.add(&candidate, trial);
            Ok(())
        })
    });
    let page = results.join("index.html");
    fs::write(&page, verdicts.page(&tree)).map_err(cannot("write", &page))?;
    if let Some(signal) = interrupt.signal() {
        return Err(Early {
            status: Status::Interrupted(signal),
            message: "interrupted: what was tried is kept".to_owned(),
        });
    }
    ended?;
    let untried = due.lock().unwrap_or_else(PoisonError::into_inner).len();
    tell(&mut out, &verdicts.summary(&tree, untried, &results, seed))?;
    Ok(if verdicts.is_satisfied(options.named) { Status::Passed } else { Status::Failed })
}

/// The name that the row of this id has for each of its VM types, if it has to notice an edit.
fn has_to_notice<'a>(id: &'a str, edit: &NamedEdit, half: Half) -> Option<&'a str> {
    let (vm, name) = id.split_once('.')?;
    (half.runs(vm) && edit.names(vm, name)).then_some(name)
}

fn failed(message: impl Into<String>) -> Early {
    Early { status: Status::Failed, message: message.into() }
}

fn cannot(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Early {
    move |error| failed(format!("cannot {verb} {}: {error}", path.display()))
}

fn tell(out: &mut impl Write, text: &str) -> Result<(), Early> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))
}

fn judgements(path: Option<&Path>) -> Result<Judgements, Early> {
    let (name, text) = match path {
        None => ("judged.toml".to_owned(), JUDGED.to_owned()),
        Some(path) => (path.display().to_string(), fs::read_to_string(path).map_err(cannot("read", path))?),
    };
    Judgements::parse(&text).map_err(|why| Early::usage(format!("{name}: {why}")))
}

/// The kernel, with all that is needed to compile a file of it again.
fn tree(args: &Mutants, interrupt: &Interrupt) -> Result<BuildTree, Early> {
    let options = &args.kernel;
    let request =
        BuildRequest { suite: options.suite.clone(), source: options.source.clone(), config: options.config.clone() };
    let shown = Doing::on_stderr();
    let tree = BuildTree::open(&request, interrupt.as_fd(), &mut |doing| shown.tell(doing));
    drop(shown);
    tree.map_err(|error| match (&error, interrupt.signal()) {
        (KernelError::Interrupted, Some(signal)) => {
            Early { status: Status::Interrupted(signal), message: "interrupted: the build goes on here".to_owned() }
        }
        _ => failed(error.to_string()),
    })
}

/// A name for everything that decides whether a mutant is noticed, but for the mutant.
fn judge(program: &Path, tree: &BuildTree, half: Half, watchers: &str) -> Result<String, Early> {
    let program = fs::read(program).map_err(cannot("read", program))?;
    let program =
        program.iter().fold(0_u64, |hash, byte| hash.rotate_left(5) ^ u64::from(*byte).wrapping_mul(0x9e37_79b9));
    let (name, source) = (&tree.name, tree.source.display());
    Ok(fingerprint(&format!("{program:x} {name} {source} {} {watchers}", half.0)))
}
