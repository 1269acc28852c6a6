//! The process of a machine of ours: it runs the machine and passes on what its guest says.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use privet_sim::{Description, Limits, Machine, Outcome, Rewindable, Rules, SimError, Turns};

use crate::input::HostInput;
use crate::module_room;
use crate::plan::{Event, Message, SimOptions, to_text};
use crate::sim_job::{SimJob, SimStart, SimTask};

/// After how many instructions the console is written, if nothing else happens: a machine that crashes shall leave
/// most of it.
const SLICE: u64 = 50_000_000;

/// Is the machine that `job` describes, as JSON. What its guest sends goes to standard output, with what the machine
/// itself has to say in between.
///
/// # Errors
/// One line: the job cannot be done, or the machine ended as no machine should.
pub fn sim_machine(job: &str) -> Result<(), String> {
    let job: SimJob = serde_json::from_str(job).map_err(|error| format!("this is no machine: {error}"))?;
    match &job.start {
        SimStart::Boot { kernel, initramfs, command_line, options, save_to, limit } => {
            let description = describe(kernel, initramfs, command_line.clone(), options)?;
            let mut machine = Machine::new(&description).map_err(one_line)?;
            let until = save_to.as_ref().map(|_| *limit);
            Running::new(&mut machine, &job, until)?.run(save_to.as_deref())
        }
        SimStart::ResumeWithModules { saved, frames, contents, modules, limit, save_to } => {
            let mut machine = Machine::restore(saved).map_err(one_line)?;
            let frames: Vec<u64> =
                serde_json::from_slice(&read(frames)?).map_err(|error| format!("these are no page frames: {error}"))?;
            module_room::fill(&mut machine, &frames, &read(contents)?);
            let modules = serde_json::to_string(modules).map_err(|error| error.to_string())?;
            machine.feed_port(format!("{modules}\n").as_bytes());
            let until = machine.now() + *limit;
            Running::new(&mut machine, &job, Some(until))?.run(Some(save_to))
        }
        SimStart::Resume { saved } => {
            let mut copy = Rewindable::restore(saved).map_err(one_line)?;
            for line in io::stdin().lines() {
                let line = line.map_err(|error| format!("cannot read what to do: {error}"))?;
                let task: SimTask = serde_json::from_str(&line).map_err(|error| format!("this is no task: {error}"))?;
                perform(&mut copy.machine, &job, &task)?;
                copy.rewind().map_err(one_line)?;
            }
            Ok(())
        }
        SimStart::ResumeOnce { saved, task } => {
            perform(&mut Rewindable::restore(saved).map_err(one_line)?.machine, &job, task)
        }
    }
}

/// Has a machine that is as it was saved do something.
fn perform(machine: &mut Machine, job: &SimJob, task: &SimTask) -> Result<(), String> {
    if let Some(seed) = task.schedule {
        machine.reseed(seed, Turns::Short);
    }
    if let Some(rule) = task.without_rule {
        machine.set_rules(Rules::without(rule));
    }
    machine.set_tdx_faults(&task.tdx_faults).map_err(one_line)?;
    let request = serde_json::to_string(&task.request).map_err(|error| error.to_string())?;
    machine.feed_port(format!("{request}\n").as_bytes());
    let until = machine.now() + task.limit;
    Running::new(machine, job, Some(until))?.run(None)
}

fn cannot_pass_on(error: &io::Error) -> String {
    format!("cannot pass on what the guest says: {error}")
}

fn one_line(error: SimError) -> String {
    error.to_string()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn describe(
    kernel: &Path,
    initramfs: &Path,
    command_line: String,
    options: &SimOptions,
) -> Result<Description, String> {
    let read = |path: &Path| read(path).map(Arc::from);
    Ok(Description {
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        profile: options.profile,
        without: options.without,
        seed: options.seed,
        ..Description::new(read(kernel)?, read(initramfs)?, command_line)
    })
}

/// What a guest has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    /// That it waits for modules.
    Room,
    /// That it is ready for rows.
    Ready,
    /// That it has done all that it was asked.
    Done,
}

/// A machine that is running.
struct Running<'a> {
    machine: &'a mut Machine,
    /// When it has had enough time, by its own clock.
    until: Option<Duration>,
    console: File,
    /// Whether what comes over its console is told, too.
    shows_log: bool,
    /// Whether it is told what is executed.
    records: bool,
    /// What its guest's program gets to read.
    input: HostInput,
    /// What its guest has sent of a line that has not ended yet.
    line: Vec<u8>,
}

impl<'a> Running<'a> {
    fn new(machine: &'a mut Machine, job: &SimJob, until: Option<Duration>) -> Result<Running<'a>, String> {
        let console = File::options().append(true).open(&job.console).map_err(|error| error.to_string())?;
        let (shows_log, records) = (job.shows_log, job.records);
        Ok(Running { machine, until, console, shows_log, records, input: HostInput::default(), line: Vec::new() })
    }

    /// Runs the machine to its end, or to its guest's last word, or until it is saved.
    fn run(&mut self, save_to: Option<&Path>) -> Result<(), String> {
        let ended = self.run_to_the_end(save_to);
        // What ended early, and so was told nothing about, has been executed all the same.
        self.tell_record().map_err(|error| cannot_pass_on(&error))?;
        ended
    }

    fn run_to_the_end(&mut self, save_to: Option<&Path>) -> Result<(), String> {
        loop {
            let limits = Limits {
                until: self.until,
                instructions: Some(self.machine.instructions() + SLICE),
                returns_when_idle: self.input.is_wanted(),
                ..Limits::default()
            };
            let outcome = self.machine.run(&limits);
            let said = self.pass_on().map_err(|error| cannot_pass_on(&error))?;
            match (said, save_to) {
                (Some(Said::Room | Said::Ready), Some(save_to)) => {
                    // What Linux asks for while it starts is no row's business.
                    self.machine.take_findings();
                    return self.machine.save(save_to).map_err(one_line);
                }
                (Some(Said::Done), _) => return Ok(()),
                _ => {}
            }
            match outcome {
                Outcome::Port | Outcome::InstructionLimit | Outcome::Stopped => {
                    self.offer_input(Some(Duration::ZERO))?
                }
                // Somebody may be typing: time passes here as it does there.
                Outcome::Waiting { until } => {
                    let patience = until.map(|until| until.saturating_sub(self.machine.now()));
                    self.offer_input(patience)?;
                    if let Some(until) = until {
                        self.machine.run(&Limits { until: Some(until), ..Limits::default() });
                    }
                }
                Outcome::PoweredOff => return Ok(()),
                Outcome::Reset => return Err("the guest has reset the machine".into()),
                Outcome::TripleFault { cpu } => return Err(format!("processor {cpu} has shut down: a triple fault")),
                Outcome::Idle => self.stuck("all processors wait, and nothing will wake them".into())?,
                Outcome::TimeLimit => {
                    let seconds = self.until.unwrap_or_default().as_secs();
                    self.stuck(format!("it had not ended when its clock had come to {seconds} s"))?;
                }
            }
        }
    }

    /// Passes on what the guest has said since the last time: its console, and whole lines of its messages. What the
    /// machine lacked is told before what the guest says of it. Returns how far the guest says that it is.
    fn pass_on(&mut self) -> io::Result<Option<Said>> {
        let log = self.machine.take_console();
        self.console.write_all(&log)?;
        if self.shows_log && !log.is_empty() {
            tell(&mut io::stdout().lock(), &Message::Logged(to_text(&log)))?;
        }
        self.line.extend(self.machine.take_port());
        let mut out = io::stdout();
        let mut said = None;
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            for finding in self.machine.take_findings() {
                writeln!(self.console, "sim: {finding}")?;
                tell(&mut out, &Message::NotSimulated(finding.to_string()))?;
            }
            let line: Vec<u8> = self.line.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Message::Room(_)) => said = Some(Said::Room),
                Ok(Message::Ready) => {
                    said = Some(Said::Ready);
                    self.start_recording();
                }
                Ok(Message::Event(Event::Started(_))) => self.start_recording(),
                Ok(Message::Event(Event::Finished(..)) | Message::Exited(_)) => self.tell_record()?,
                Ok(Message::WantsInput) => self.input.wanted(),
                Ok(Message::Done) => {
                    // Whoever listens takes what follows for the next task's.
                    self.tell_record()?;
                    said = Some(Said::Done);
                }
                _ => {}
            }
            out.write_all(&line)?;
        }
        out.flush()?;
        Ok(said)
    }

    fn start_recording(&mut self) {
        if self.records {
            self.machine.start_recording();
        }
    }

    /// Tells what was executed, if anything was and that is asked for.
    fn tell_record(&mut self) -> io::Result<()> {
        let record = self.machine.take_record();
        if record.instructions() == 0 {
            return Ok(());
        }
        tell(&mut io::stdout().lock(), &Message::Recorded(record))
    }

    /// Gives the guest's program what there is to read, if it wants something, and waits for it so long at most.
    fn offer_input(&mut self, patience: Option<Duration>) -> Result<(), String> {
        let input = self.input.take(patience).map_err(|error| format!("cannot read standard input: {error}"))?;
        if let Some(input) = input {
            let line = serde_json::to_string(&input).map_err(|error| error.to_string())?;
            self.machine.feed_port(format!("{line}\n").as_bytes());
        }
        Ok(())
    }

    /// Says that it goes nowhere, and why. Whoever listens ends this process.
    fn stuck(&mut self, why: String) -> Result<(), String> {
        tell(&mut io::stdout().lock(), &Message::Stuck(why.clone())).map_err(|error| error.to_string())?;
        Err(why)
    }
}

fn tell(out: &mut impl Write, message: &Message) -> io::Result<()> {
    serde_json::to_writer(&mut *out, message)?;
    out.write_all(b"\n")?;
    out.flush()
}
