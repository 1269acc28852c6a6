//! What waiting for privet costs, in numbers: `cargo bench -p privet [-- NAME...]`.
//!
//! Each figure stands beside something that was measured in the same run, because this machine's load is in
//! both. Nothing here passes or fails.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const PRIVET: &str = env!("CARGO_BIN_EXE_privet");

/// Runs of a short command, of which the median counts.
const RUNS: usize = 21;

type Benchmark = (&'static str, fn() -> Result);

const BENCHMARKS: [Benchmark; 5] = [("list", list), ("case", case), ("model", model), ("rig", rig), ("build", build)];

fn main() -> Result {
    // cargo passes `--bench` and the like.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, benchmark) in BENCHMARKS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            benchmark()?;
        }
    }
    Ok(())
}

/// `privet list`, beside a process that does nothing.
fn list() -> Result {
    let nothing = median(|| elapsed(Command::new("true")))?;
    let list = median(|| elapsed(privet(&["list"])))?;
    println!("list: {list:.1?}, {:.1} times `true` ({nothing:.1?}); goal 50 ms", ratio(list, nothing));
    Ok(())
}

/// The CPU time outside of the kernel that a row costs on this host, beside that of a worker which knows at
/// once that there is no such row.
fn case() -> Result {
    let idle = mean(|| user_time(worker("no.such.row")))?;
    let ids = String::from_utf8(privet(&["list", "--format", "json"]).stderr(Stdio::null()).output()?.stdout)?;
    println!("case: {idle:.1?} of user time for a worker without a row");
    for id in ids.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let Some(id) = id["id"].as_str() else { continue };
        let said = worker(id).stderr(Stdio::null()).output()?.stdout;
        // Only rows that this host can run tell anything.
        if !String::from_utf8_lossy(&said).contains("\"pass\"") {
            continue;
        }
        let row = mean(|| user_time(worker(id)))?;
        println!("case: {id}: {row:.1?} of user time, {:.1} times idle; goal 1 ms over idle", ratio(row, idle));
    }
    Ok(())
}

/// The whole table on the model, beside one row on the model.
fn model() -> Result {
    let one = elapsed(privet(&["run", "--on", "model", "--exact", "upm.punch.fallocate_errors"]))?;
    let before = children()?;
    let all = elapsed(privet(&["run", "--on", "model"]))?;
    let cpu = children()?.since(before);
    println!(
        "model: {all:.1?} for the whole table, {:.1} times one row ({one:.1?}), with {:.1?} of CPU time; goal 5 s",
        ratio(all, one),
        cpu.user + cpu.system
    );
    Ok(())
}

/// The whole table in the rig, beside one row in the rig.
fn rig() -> Result {
    let one = elapsed(privet(&["run", "--on", "rig", "--exact", "upm.punch.fallocate_errors"]))?;
    let all = elapsed(privet(&["run", "--on", "rig"]))?;
    println!(
        "rig: {all:.1?} from power-on to power-off with the whole table, {:.1} times one row ({one:.1?}); goal 60 s",
        ratio(all, one)
    );
    Ok(())
}

/// A cold build of everything, beside a build that has nothing to do.
fn build() -> Result {
    let directory = tempfile::tempdir()?;
    let cargo = || {
        let mut command = Command::new(env!("CARGO"));
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        command.args(["build", "--quiet", "--target-dir"]).arg(directory.path()).current_dir(workspace);
        command
    };
    let cold = elapsed(cargo())?;
    let warm = elapsed(cargo())?;
    println!("build: cold {cold:.1?}, {:.0} times warm ({warm:.1?}); goal 2 min", ratio(cold, warm));
    fs::remove_dir_all(directory.path())?;
    Ok(())
}

fn privet(arguments: &[&str]) -> Command {
    let mut command = Command::new(PRIVET);
    command.args(arguments);
    command
}

fn worker(id: &str) -> Command {
    privet(&["worker", id, "--seed", "1", "--limit-ms", "60000"])
}

fn elapsed(mut command: Command) -> Result<Duration> {
    let start = Instant::now();
    command.stdout(Stdio::null()).status()?;
    Ok(start.elapsed())
}

/// User-mode CPU time of a child: all that it does outside of system calls.
fn user_time(mut command: Command) -> Result<Duration> {
    let before = children()?;
    command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(children()?.since(before).user)
}

/// CPU time.
struct CpuTime {
    user: Duration,
    system: Duration,
}

impl CpuTime {
    fn since(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

/// The CPU time of all children that have ended, and of theirs.
fn children() -> Result<CpuTime> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let duration = |time: TimeVal| Ok::<_, Box<dyn Error>>(Duration::from_micros(time.num_microseconds().try_into()?));
    Ok(CpuTime { user: duration(usage.user_time())?, system: duration(usage.system_time())? })
}

/// For CPU times, which some kernels count in ticks that are longer than the whole run.
fn mean(mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let sum = (0..RUNS).map(|_| measure()).sum::<Result<Duration>>()?;
    Ok(sum / RUNS as u32)
}

fn median(mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..RUNS).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[RUNS / 2])
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
