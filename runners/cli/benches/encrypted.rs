//! What encrypted guests cost in the sim, beside what the same machine does without encryption: `cargo bench -p privet
//! --bench encrypted [-- NAME...]`. It needs the rig's kernel (`privet rig build`). Nothing here passes or fails.
//!
//! The program runs itself in the sim, where it launches guests and says when it begins and ends with what; the clock is out
//! here.

#[path = "../tests/saved/mod.rs"]
#[expect(dead_code, reason = "no machine of this benchmark is taken out of its snapshot")]
mod saved;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use privet_harness::case::{Case, PayloadFile};
use privet_harness::host::Host;
use privet_harness::launch::snp;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::platform::Platform;
use privet_harness::sev::{Commands, Device, Memory, PageType, SevPolicy, SnpPolicy};
use privet_harness::test_range::RangeSpec;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;
use privet_payloads::GENERAL;
use privet_protocol::Op;
use saved::own_cache;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const PRIVET: &str = env!("CARGO_BIN_EXE_privet");
/// The argument by which this program knows that it is in the sim.
const INSIDE: &str = "in-the-sim";
/// What it says there, before the name of what begins or ends.
const BEGIN: &str = "begin ";
const END: &str = "end ";

/// Pages that are launched.
const LAUNCHED: u64 = 4096;
/// How often they are copied, which is much quicker: so that it takes longer than to tell of it.
const COPIES: u32 = 256;
/// Accesses that a guest makes, over few pages, whose translations a processor keeps, and over many, which it does not.
const ACCESSES: u64 = 1 << 21;
const RANGES: [(&str, u64); 2] = [("few", 16), ("many", 8192)];
const PLATFORMS: [(&str, Platform); 4] =
    [("plain", Platform::Plain), ("sev", Platform::Sev), ("sev_es", Platform::SevEs), ("snp", Platform::Snp)];

/// A row of all types, with a guest that does little.
const ROW: &str = "access.guest_and_host_share_memory";
/// Of so many runs the quickest counts.
const RUNS: usize = 10;

fn main() -> Result {
    // cargo passes `--bench` and the like.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if wanted.first().is_some_and(|first| first == INSIDE) {
        return inside().map_err(|stop| stop.to_string().into());
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if is_wanted("launch") || is_wanted("memory") {
        let took = watch()?;
        launch(&took)?;
        memory(&took)?;
    }
    if is_wanted("row") {
        row()?;
    }
    if is_wanted("smoke") {
        smoke()?;
    }
    Ok(())
}

/// How long each thing took that this program does in the sim.
fn watch() -> Result<BTreeMap<String, Duration>> {
    let mut sim = Command::new(PRIVET)
        .args(["sim", "--"])
        .arg(std::env::current_exe()?)
        .arg(INSIDE)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = sim.stdout.take().ok_or("no output")?;
    let (mut began, mut took) = (BTreeMap::new(), BTreeMap::new());
    for line in BufReader::new(output).lines() {
        let (now, line) = (Instant::now(), line?);
        if let Some(name) = line.strip_prefix(BEGIN) {
            began.insert(name.to_owned(), now);
        } else if let Some((name, start)) = line.strip_prefix(END).and_then(|name| began.remove_entry(name)) {
            took.insert(name, now - start);
        }
    }
    if sim.wait()?.success() { Ok(took) } else { Err("the sim has not come to its end".into()) }
}

/// Pages a second, beside a copy of them.
fn launch(took: &BTreeMap<String, Duration>) -> Result {
    let of = |name: &str| took.get(name).copied().ok_or_else(|| format!("nothing was measured of {name}"));
    let copied = of("copies")? / COPIES;
    for vm in ["sev_es", "snp"] {
        let launched = of(&format!("launch.{vm}"))?;
        println!(
            "launch: {:.0} pages a second for {vm}, each as long as {:.0} copies of a page by a program in the sim",
            LAUNCHED as f64 / launched.as_secs_f64(),
            ratio(launched, copied)
        );
    }
    Ok(())
}

/// Accesses to private memory, beside those of a plain guest.
fn memory(took: &BTreeMap<String, Duration>) -> Result {
    for (range, pages) in RANGES {
        let of = |vm: &str| {
            let name = format!("memory.{range}.{vm}");
            took.get(&name).copied().ok_or_else(|| format!("nothing was measured of {name}"))
        };
        let plain = of("plain")?;
        for vm in ["sev", "sev_es", "snp"] {
            let encrypted = ratio(of(vm)?, plain);
            println!("memory: {encrypted:.2} times a plain guest's accesses over {pages} pages for {vm}; goal 2");
        }
    }
    Ok(())
}

/// Command to verdict of a row with a SEV-ES guest, from a snapshot, beside one with a plain guest.
fn row() -> Result {
    let cache = tempfile::tempdir()?;
    own_cache(cache.path());
    let quickest = |vm: &str| quickest(cache.path(), &["run", "--on", "rig", "--exact", &format!("{vm}.{ROW}")]);
    let (encrypted, plain) = (quickest("sev_es")?, quickest("plain")?);
    println!(
        "row: {encrypted:.1?} from a snapshot for a SEV-ES guest, {:.2} times a plain one ({plain:.1?}); goal 2 s",
        ratio(encrypted, plain)
    );
    Ok(())
}

/// Upstream's own test of SEV, SEV-ES and SEV-SNP guests, from a snapshot.
fn smoke() -> Result {
    let built = privet_kernel::cache_dir()?.with_file_name("kselftests");
    let tests = std::fs::read_dir(&built).into_iter().flatten().flatten();
    let Some(test) = tests.map(|tests| tests.path().join("x86/sev_smoke_test")).find(|test| test.exists()) else {
        println!("smoke: not measured, as there is no sev_smoke_test: run `privet kselftests build`");
        return Ok(());
    };
    let cache = tempfile::tempdir()?;
    own_cache(cache.path());
    let test = test.to_str().ok_or("a path that is no text")?;
    let took = quickest(cache.path(), &["sim", "--keep", "--", test])?;
    println!("smoke: {took:.1?} from a snapshot for upstream's sev_smoke_test; goal 2 s");
    Ok(())
}

/// How long a command takes that goes on from a snapshot, which it makes before.
fn quickest(cache: &Path, arguments: &[&str]) -> Result<Duration> {
    let run = || -> Result<Duration> {
        let mut command = Command::new(PRIVET);
        command.args(arguments).env("XDG_CACHE_HOME", cache).stdin(Stdio::null());
        let start = Instant::now();
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        if status.success() { Ok(start.elapsed()) } else { Err(format!("{arguments:?}: {status}").into()) }
    };
    run()?;
    let runs = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    Ok(runs.into_iter().min().unwrap_or_default())
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

/// What is done in the sim.
fn inside() -> Outcome {
    let host = Arc::new(Host::open().map_err(|error| privet_harness::outcome::Stop::Error(error.to_string()))?);
    copy()?;
    launch_sev_es(&host)?;
    launch_snp(&host)?;
    for (range, pages) in RANGES {
        for (vm, platform) in PLATFORMS {
            access(&host, platform, pages, &format!("memory.{range}.{vm}"))?;
        }
    }
    Ok(())
}

/// Says when this begins and when it ends.
fn told<T>(name: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    say(BEGIN, name);
    let done = work()?;
    say(END, name);
    Ok(done)
}

fn say(word: &str, name: &str) {
    println!("{word}{name}");
    // Nobody is left to be told that there is no output.
    let _ = std::io::stdout().flush();
}

/// Pages that the host has touched.
fn pages() -> Outcome<Mapping> {
    let memory = Mapping::anonymous(LAUNCHED * PAGE_SIZE)?;
    memory.write(0, &vec![0x5a; (LAUNCHED * PAGE_SIZE) as usize])?;
    Ok(memory)
}

fn copy() -> Outcome {
    let (memory, mut to) = (pages()?, vec![1; (LAUNCHED * PAGE_SIZE) as usize]);
    told("copies", || (0..COPIES).try_for_each(|_| memory.read(0, &mut to)))
}

fn launch_sev_es(host: &Arc<Host>) -> Outcome {
    let (vm, device, memory) = (Vm::create(host, VmType::SevEs)?, Device::open()?, pages()?);
    let commands = Commands::new(&vm, &device);
    commands.init2(Default::default())?;
    commands.launch_start(0, SevPolicy::ES, None)?;
    told("launch.sev_es", || {
        commands.launch_update_data(Memory::In(&memory, 0), (LAUNCHED * PAGE_SIZE) as u32)?;
        Ok(())
    })
}

fn launch_snp(host: &Arc<Host>) -> Outcome {
    let (gpa, size) = (Gpa(0x1_0000_0000), LAUNCHED * PAGE_SIZE);
    let (vm, device, memory) = (Vm::create(host, VmType::Snp)?, Device::open()?, Arc::new(pages()?));
    let mut launch = snp::Launch::create(&vm, &device, Default::default())?.start(SnpPolicy::DEFAULT)?;
    let file = vm.create_guest_memfd(size, 0)?;
    vm.add_slot(SlotSpec::shared(1, gpa, PageCount(LAUNCHED), &memory).with_gmem(&file, 0))?;
    vm.set_private(gpa, PageCount(LAUNCHED))?;
    told("launch.snp", || launch.update(PageType::Normal, gpa, &memory, 0..size))
}

/// A guest increments words in its private memory, a page apart, over and over.
fn access(host: &Arc<Host>, platform: Platform, pages: u64, name: &str) -> Outcome {
    let payload = PayloadFile { name: GENERAL.name, elf: GENERAL.elf };
    let case = Case::new(Arc::clone(host), platform, payload, 1, Duration::from_secs(600));
    let g = case.guest().range(RangeSpec::new(pages)).boot()?;
    if platform.has_private_memory() {
        g.make_private(0, 0..pages)?;
    }
    let gva = g.range(0).private_gva(0).0;
    let rounds = |limit: u64| g.vcpu(0).call(Op::HammerAdd { gva, pages, limit });
    rounds(2)?;
    told(name, || rounds(ACCESSES / pages).map(drop))
}
