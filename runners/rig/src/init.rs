//! The guest's side: the worker as the first process of the rig's kernel.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;

use nix::kmod::{ModuleInitFlags, finit_module, init_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use privet_report::kernel_log::{KernelLog, judge};
use privet_report::{CaseReport, Place};

use crate::console::start_mark;
use crate::module_room::{Placed, Room};
use crate::plan::{
    CaseRun, Event, GuestModules, GuestPlan, GuestProgram, Input, Message, ModuleLoad, PROGRAMS, Request, Stream, Work,
    to_bytes, to_text,
};
use crate::port::Port;

/// Where the plan lies in the guest.
pub(crate) const PLAN: &str = "/plan.json";

/// Whether this process is the init of a rig, so that [`init`] has to be called. Being the first process
/// is not enough: in a container anything may be.
pub fn is_init() -> bool {
    std::process::id() == 1 && Path::new(PLAN).exists()
}

/// Mounts what a host has mounted, loads KVM, lets `prepare` find out what is true of all rows, gets the rows, has
/// `run` run them, and switches the machine off. `run` announces each row before it starts and hands over its
/// report when it has ended; from here they go to the host, with what the kernel said in between.
pub fn init<P>(prepare: impl FnOnce() -> io::Result<P>, run: impl FnOnce(P, &[CaseRun], &mut dyn FnMut(Event))) -> ! {
    // Standard error is the console, which the host reads when nothing else came.
    if let Err(error) = serve(prepare, run) {
        eprintln!("privet init: {error}");
    }
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("privet init: cannot power off: {errno}");
    // The kernel panics when its first process ends, which ends the machine too.
    std::process::exit(1)
}

fn serve<P>(
    prepare: impl FnOnce() -> io::Result<P>,
    run: impl FnOnce(P, &[CaseRun], &mut dyn FnMut(Event)),
) -> io::Result<()> {
    mount_all()?;
    // From here on the console has everything, so that a hang can be understood.
    fs::write("/sys/module/printk/parameters/ignore_loglevel", "Y")?;
    let plan: GuestPlan = serde_json::from_slice(&fs::read(PLAN)?)?;
    load_all(&plan.drivers)?;
    let mut port = Port::open(plan.port)?;
    let served = run_plan(plan, prepare, run, &mut port);
    if let Err(error) = &served {
        port.send(&Message::Broken(error.to_string()))?;
    }
    served
}

fn run_plan<P>(
    plan: GuestPlan,
    prepare: impl FnOnce() -> io::Result<P>,
    run: impl FnOnce(P, &[CaseRun], &mut dyn FnMut(Event)),
    port: &mut Port,
) -> io::Result<()> {
    let mut watch = KernelWatch::new()?;
    match &plan.modules {
        GuestModules::Files(modules) => load_all(modules)?,
        GuestModules::Memory(bytes) => load_from_memory(*bytes, port)?,
    }
    let panicked = |_| io::Error::other("the worker panicked as init: see the console");
    let prepared = mapping_single_pages(|| catch_unwind(AssertUnwindSafe(prepare))).map_err(panicked)??;
    watch.tell_unattributed(port)?;
    port.send(&Message::Ready)?;
    let cases: Vec<CaseRun> = match plan.work {
        Work::Rows(cases) => cases,
        Work::FromPort => match serde_json::from_str(&port.receive()?)? {
            Request::Rows(cases) => cases,
            Request::Symbols => {
                port.send(&Message::Symbols(functions()?))?;
                return port.send(&Message::Done);
            }
            Request::Program(program) => return watch_program(&program, &mut watch, port),
        },
        Work::Program(program) => return watch_program(&program, &mut watch, port),
    };

    let mut lost = Ok(());
    let mut on_event = |event| {
        let sent = watch.pass_on(event, &cases).and_then(|event| port.send(&Message::Event(event)));
        if lost.is_ok() {
            lost = sent;
        }
    };
    let ran = catch_unwind(AssertUnwindSafe(|| run(prepared, &cases, &mut on_event)));
    lost?;
    ran.map_err(panicked)?;
    watch.tell_unattributed(port)?;
    port.send(&Message::Done)
}

/// Runs a program, and tells what the kernel said of it.
fn watch_program(program: &GuestProgram, watch: &mut KernelWatch, port: &mut Port) -> io::Result<()> {
    run_program(program, port)?;
    watch.tell_unattributed(port)?;
    if program.tells_symbols {
        port.send(&Message::Symbols(functions()?))?;
    }
    port.send(&Message::Done)
}

/// Does something while a page fault maps a single page of a file, and not its neighbours, too: each row begins with
/// processes that did this, and unmaps at their end whatever they have (mm/memory.c: `fault_around_bytes_set`).
fn mapping_single_pages<T>(work: impl FnOnce() -> T) -> T {
    const AT_A_TIME: &str = "/sys/kernel/debug/fault_around_bytes";
    // A kernel that cannot be told takes longer.
    let usual = fs::read_to_string(AT_A_TIME).ok().filter(|_| fs::write(AT_A_TIME, "4096").is_ok());
    let done = work();
    if let Some(usual) = usual {
        let _ = fs::write(AT_A_TIME, usual.trim_end());
    }
    done
}

/// The lines of /proc/kallsyms that are about code.
fn functions() -> io::Result<String> {
    let symbols = fs::read_to_string("/proc/kallsyms").map_err(saying("read /proc/kallsyms".to_owned()))?;
    let is_code = |line: &&str| line.split(' ').nth(1).is_some_and(|kind| "tTwW".contains(kind));
    Ok(symbols.lines().filter(is_code).map(|line| format!("{line}\n")).collect())
}

/// What comes from the threads beside a program.
enum FromProgram {
    Message(Message),
    /// One of its outputs is closed.
    Closed,
}

/// Runs a program and tells what it prints, and how it ends. It reads what the host has for it; over a port that only
/// leads to the host, nothing.
fn run_program(program: &GuestProgram, port: &mut Port) -> io::Result<()> {
    let mut command = Command::new(&program.path);
    command.args(&program.arguments).env("PATH", format!("{PROGRAMS}:/usr/local/bin:/usr/bin:/bin")).env("HOME", "/");
    let has_input = matches!(port, Port::Serial(_));
    command.stdin(if has_input { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(saying(format!("start {}", program.path.display())))?;
    let (teller, told) = mpsc::channel();
    if let Some(stdin) = child.stdin.take() {
        let (port, teller) = (port.try_clone()?, teller.clone());
        std::thread::spawn(move || feed(stdin, port, &teller));
    }
    let out = child.stdout.take().map(|out| (Stream::Out, Box::new(out) as Box<dyn Read + Send>));
    let err = child.stderr.take().map(|err| (Stream::Err, Box::new(err) as Box<dyn Read + Send>));
    let mut open = 0;
    for (stream, mut pipe) in out.into_iter().chain(err) {
        open += 1;
        let teller = teller.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The receiver listens until both pipes are closed.
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                let printed = Message::Printed(stream, to_text(&buffer[..length]));
                let _ = teller.send(FromProgram::Message(printed));
            }
            let _ = teller.send(FromProgram::Closed);
        });
    }
    while open > 0 {
        match told.recv().expect("this function has a sender, too") {
            FromProgram::Message(message) => port.send(&message)?,
            FromProgram::Closed => open -= 1,
        }
    }
    let status = child.wait()?;
    let killed = || 128 + status.signal().unwrap_or_default();
    port.send(&Message::Exited(status.code().unwrap_or_else(killed)))
}

/// Gives a program what comes from the host, which is asked for it whenever the program can take more.
fn feed(mut stdin: ChildStdin, mut port: Port, teller: &mpsc::Sender<FromProgram>) {
    while teller.send(FromProgram::Message(Message::WantsInput)).is_ok() {
        let input = port.receive().ok().and_then(|line| serde_json::from_str::<Input>(&line).ok());
        let Some(Input(text)) = input.filter(|Input(text)| !text.is_empty()) else { return };
        if stdin.write_all(&to_bytes(&text)).is_err() {
            return;
        }
    }
}

fn mount_all() -> io::Result<()> {
    const MOUNTS: &[(&str, &str)] = &[
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("debugfs", "/sys/kernel/debug"),
    ];
    for (kind, target) in MOUNTS {
        fs::create_dir_all(target).map_err(saying(format!("create {target}")))?;
        mount(Some(*kind), *target, Some(*kind), MsFlags::empty(), None::<&str>)
            .map_err(saying(format!("mount {target}")))?;
    }
    Ok(())
}

fn load_all(modules: &[ModuleLoad]) -> io::Result<()> {
    modules.iter().try_for_each(|module| load(&module.path, &module.params))
}

fn load(path: &str, params: &str) -> io::Result<()> {
    let file = File::open(path).map_err(saying(format!("open {path}")))?;
    let arguments = CString::new(params).map_err(io::Error::other)?;
    finit_module(&file, &arguments, ModuleInitFlags::empty()).map_err(saying(format!("load {path} with \"{params}\"")))
}

/// Sets memory aside, waits until there are modules in it, and loads them.
fn load_from_memory(bytes: usize, port: &mut Port) -> io::Result<()> {
    let room = Room::set_aside(bytes).map_err(saying(format!("set {bytes} bytes aside for modules")))?;
    port.send(&Message::Room(room.frames()?))?;
    let modules: Vec<Placed> = serde_json::from_str(&port.receive()?)?;
    for (number, module) in (1..).zip(&modules) {
        let arguments = CString::new(module.params.as_str()).map_err(io::Error::other)?;
        let loaded = init_module(room.module(module)?, &arguments);
        loaded.map_err(saying(format!("load module {number} of {} with \"{}\"", modules.len(), module.params)))?;
    }
    Ok(())
}

fn saying<E: Into<io::Error>>(what: String) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("cannot {what}: {error}"))
    }
}

/// Holds rows to what the kernel says while they run.
struct KernelWatch {
    /// The log since before the modules were loaded.
    whole: KernelLog,
    /// The logs of the rows that are running.
    running: HashMap<usize, KernelLog>,
    /// The sequence numbers of the trouble that some row was blamed for.
    attributed: BTreeSet<u64>,
}

impl KernelWatch {
    fn new() -> io::Result<Self> {
        Ok(Self { whole: KernelLog::from_now()?, running: HashMap::new(), attributed: BTreeSet::new() })
    }

    fn pass_on(&mut self, event: Event, cases: &[CaseRun]) -> io::Result<Event> {
        match event {
            Event::Started(case) => {
                if let Some(case) = cases.get(case) {
                    fs::write("/dev/kmsg", start_mark(&case.label))?;
                }
                self.running.insert(case, KernelLog::from_now()?);
                Ok(event)
            }
            Event::Finished(case, report) => {
                let mut report = CaseReport { on: Place::Rig, ..*report };
                let lines = match self.running.remove(&case) {
                    Some(mut log) => log.lines()?,
                    None => Vec::new(),
                };
                judge(&mut report, &lines);
                let trouble: Vec<u64> =
                    lines.iter().filter(|line| line.is_trouble()).map(|line| line.sequence).collect();
                if !trouble.is_empty() {
                    // WARN_ON_ONCE speaks once a boot: the next row shall hear it too.
                    fs::write("/sys/kernel/debug/clear_warn_once", "1")?;
                }
                self.attributed.extend(trouble);
                Ok(Event::Finished(case, report.into()))
            }
        }
    }

    /// Tells the first trouble that has come while no row was running, since this was asked last.
    fn tell_unattributed(&mut self, port: &mut Port) -> io::Result<()> {
        let lines = self.whole.lines()?;
        let trouble = lines.into_iter().find(|line| line.is_trouble() && !self.attributed.contains(&line.sequence));
        trouble.map_or(Ok(()), |trouble| port.send(&Message::Unattributed(trouble.text)))
    }
}
