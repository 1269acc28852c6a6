//! What rows in the sim cost, beside QEMU and beside what the same machine costs otherwise: `cargo bench -p privet --bench
//! sim [-- NAME...]`. It needs the rig's kernel (`privet rig build`). Nothing here passes or fails.

#[path = "../tests/saved/mod.rs"]
mod saved;

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use privet_sim::{Machine, Rewindable};
use saved::{own_cache, perform, snapshot};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// A row with a guest that does little.
const ROW: &str = "upm.punch.across_slots";

/// Of so many runs the quickest counts: nothing but the machine itself was in its way.
const RUNS: usize = 20;

type Benchmark = (&'static str, fn() -> Result);

const BENCHMARKS: [Benchmark; 3] = [("machine", machine), ("row", row), ("table", table)];

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

/// One machine: how fast it executes, and what it takes to be put back, beside being restored from its file.
fn machine() -> Result {
    let cache = tempfile::tempdir()?;
    let snapshot = snapshot(cache.path());
    let restore = quickest(|| timed(|| Machine::restore(&snapshot)))?;
    let before = resident()?;
    let mut copy = Rewindable::restore(&snapshot)?;
    let saved = copy.machine.instructions();
    let first = timed(|| row_in(&mut copy.machine))?;
    let instructions = copy.machine.instructions() - saved;
    copy.rewind()?;
    let mut rewind = Duration::MAX;
    let again = quickest(|| {
        let row = timed(|| row_in(&mut copy.machine))?;
        rewind = rewind.min(timed(|| copy.rewind())?);
        Ok(row)
    })?;
    let rate = instructions as f64 / again.as_secs_f64() / 1e6;
    println!(
        "machine: {rate:.0} million instructions a second in {ROW}, of {:.1} million; goal 100",
        instructions as f64 / 1e6
    );
    println!("machine: {again:.1?} for the row, the first time {first:.1?}");
    println!(
        "machine: {rewind:.1?} to put it back, {:.1} times as fast as to restore it ({restore:.1?}); goal 20 ms",
        ratio(restore, rewind)
    );
    println!("machine: {} MiB resident after {RUNS} rows, most of them the file's", (resident()? - before) >> 20);
    Ok(())
}

fn row_in(machine: &mut Machine) -> Result<Vec<u8>> {
    Ok(perform(machine, ROW))
}

/// Command to verdict, from power-on and from a snapshot.
fn row() -> Result {
    let cache = tempfile::tempdir()?;
    own_cache(cache.path());
    let on = |machine| timed(|| run(cache.path(), machine, &["--exact", ROW]));
    let booted = on("sim")?;
    let qemu = on("qemu")?;
    let saved = quickest(|| on("sim"))?;
    println!("row: {booted:.1?} from power-on to verdict, {:.2} times QEMU ({qemu:.1?})", ratio(booted, qemu));
    println!("row: {saved:.1?} from a snapshot, {:.2} times QEMU; goal 500 ms", ratio(saved, qemu));
    Ok(())
}

/// All plain and UPM rows.
fn table() -> Result {
    let cache = tempfile::tempdir()?;
    own_cache(cache.path());
    run(cache.path(), "sim", &["--exact", ROW])?;
    let on = |machine| timed(|| run(cache.path(), machine, &["plain.", "upm."]));
    let (sim, qemu) = (on("sim")?, on("qemu")?);
    println!(
        "table: {sim:.1?} from a snapshot for plain and UPM, {:.2} times QEMU ({qemu:.1?}); goal 20 s",
        ratio(sim, qemu)
    );
    Ok(())
}

/// Runs rows on a machine of this kind. A row that fails is none of a benchmark's business.
fn run(cache: &Path, machine: &str, rows: &[&str]) -> Result {
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(["run", "--on", "rig", "--machine", machine]).args(rows).env("XDG_CACHE_HOME", cache);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(())
}

fn timed<T, E: Into<Box<dyn Error>>>(work: impl FnOnce() -> std::result::Result<T, E>) -> Result<Duration> {
    let start = Instant::now();
    work().map_err(Into::into)?;
    Ok(start.elapsed())
}

fn quickest(mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let runs = (0..RUNS).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    Ok(runs.into_iter().min().unwrap_or_default())
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

/// Bytes of this process's memory that are there, files among them.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim_end_matches("kB").trim().parse::<u64>()? << 10)
}
