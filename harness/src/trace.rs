//! What a worker has seen, kept cheaply and told only when somebody asks: the last exits, the last steps of the host,
//! and all launches.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use nix::errno::Errno;
use privet_protocol::Op;

use crate::exit::Exit;
use crate::host_action::HostAction;
use crate::measure::EventLog;
use crate::outcome::Outcome;

/// The longest x86 instruction in bytes.
pub(crate) const LONGEST_INSTRUCTION: usize = 15;

/// Where the bytes of guest code can be had.
pub trait CodeSource {
    /// Up to [`LONGEST_INSTRUCTION`] bytes of guest code from guest virtual address `rip` on; empty where
    /// nothing is known.
    fn code_at(&self, rip: u64) -> Vec<u8>;
}

impl<F: Fn(u64) -> Vec<u8>> CodeSource for F {
    fn code_at(&self, rip: u64) -> Vec<u8> {
        self(rip)
    }
}

#[derive(Debug)]
struct Entry {
    number: u64,
    at_us: u64,
    vcpu: VcpuName,
    op: Option<Op>,
    rip: Option<u64>,
    exit: Outcome<Exit>,
}

/// What the host did to a VM's memory between exits.
#[derive(Debug)]
struct HostStep {
    at_us: u64,
    vm: u64,
    action: HostAction,
    errno: Option<Errno>,
}

/// A vCPU among those of all VMs that share a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VcpuName {
    /// The number of its VM, in the order in which they were made; the first is 1.
    pub(crate) vm: u64,
    /// Its own number.
    pub(crate) vcpu: u64,
}

impl fmt::Display for VcpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vm {} vcpu {}", self.vm, self.vcpu)
    }
}

/// Rings of the last exits, shared by all vCPUs, and of the host's last steps; and the launches of all VMs.
#[derive(Debug)]
pub struct Trace {
    start: Instant,
    vms: AtomicU64,
    exits: AtomicU64,
    entries: Mutex<VecDeque<Entry>>,
    host_steps: Mutex<VecDeque<HostStep>>,
    launches: Mutex<Vec<EventLog>>,
    ended_launches: AtomicU64,
    depth: usize,
}

impl Trace {
    /// An empty trace that keeps `depth` exits, and as many steps of the host.
    pub fn new(depth: usize) -> Trace {
        Trace {
            start: Instant::now(),
            vms: AtomicU64::new(0),
            exits: AtomicU64::new(0),
            entries: Mutex::new(VecDeque::with_capacity(depth)),
            host_steps: Mutex::default(),
            launches: Mutex::default(),
            ended_launches: AtomicU64::new(0),
            depth,
        }
    }

    /// How often KVM_RUN returned.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// What was measured in each launch by steps that has come to its end, in order.
    pub fn launches(&self) -> Vec<EventLog> {
        self.launches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often the secure processor has finished a launch, by steps or by single commands.
    pub fn ended_launches(&self) -> u64 {
        self.ended_launches.load(Ordering::Relaxed)
    }

    /// It has finished one more.
    pub(crate) fn launch_ended(&self) {
        self.ended_launches.fetch_add(1, Ordering::Relaxed);
    }

    /// One more launch has come to its end, and this was measured.
    pub(crate) fn launched(&self, log: EventLog) {
        self.launches.lock().unwrap_or_else(PoisonError::into_inner).push(log);
    }

    /// The number of a VM that is about to be made.
    pub(crate) fn next_vm(&self) -> u64 {
        self.vms.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds an exit of a vCPU that executes `op`, and drops the oldest one if there are too many.
    pub(crate) fn record(&self, vcpu: VcpuName, op: Option<Op>, rip: Option<u64>, exit: &Outcome<Exit>) {
        let number = self.exits.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Entry { number, at_us: self.now_us(), vcpu, op, rip, exit: exit.clone() };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == self.depth {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// Adds what the host has done to the memory of a VM, with what came of it, and drops the oldest if there are too
    /// many.
    pub(crate) fn host_did(&self, vm: u64, action: HostAction, came: &Result<(), Errno>) {
        let step = HostStep { at_us: self.now_us(), vm, action, errno: came.err() };
        let mut steps = self.host_steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() == self.depth {
            steps.pop_front();
        }
        steps.push_back(step);
    }

    /// One line an exit or a step of the host, oldest first, with the instruction at RIP where RIP was readable and
    /// `code` knows the bytes there.
    pub fn render(&self, code: &dyn CodeSource) -> Vec<String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = self.host_steps.lock().unwrap_or_else(PoisonError::into_inner);
        let exits = entries.iter().map(|entry| (entry.at_us, entry.line(code)));
        let mut lines: Vec<(u64, String)> = steps.iter().map(|step| (step.at_us, step.line())).chain(exits).collect();
        lines.sort_by_key(|(at_us, _)| *at_us);
        lines.into_iter().map(|(_, line)| line).collect()
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

impl HostStep {
    fn line(&self) -> String {
        let Self { at_us, vm, action, errno } = self;
        let came = errno.map_or_else(String::new, |errno| format!(": {errno:?}"));
        format!("host +{at_us} us vm {vm}: {action}{came}")
    }
}

impl Entry {
    fn line(&self, code: &dyn CodeSource) -> String {
        let Entry { number, at_us, vcpu, .. } = self;
        let exit = match (&self.exit, self.op) {
            (Ok(exit), Some(op)) if exit.is_doorbell() => format!("{op}: done"),
            (Ok(exit), Some(op)) => format!("{op}: {exit}"),
            (Ok(exit), None) => exit.to_string(),
            (Err(stop), _) => stop.to_string(),
        };
        let at = match self.rip {
            None => String::new(),
            Some(rip) => match disassemble(rip, &code.code_at(rip)) {
                Some(instruction) => format!(" at rip {rip:#x} `{instruction}`"),
                None => format!(" at rip {rip:#x}"),
            },
        };
        format!("exit {number} +{at_us} us {vcpu}: {exit}{at}")
    }
}

/// The 64-bit instruction that `bytes`, at address `rip`, start with.
pub(crate) fn disassemble(rip: u64, bytes: &[u8]) -> Option<String> {
    let instruction = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.format(&instruction, &mut text);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Stop;
    use privet_protocol::Width;

    #[test]
    fn the_last_exits_are_kept_and_all_are_counted() {
        let trace = Trace::new(3);
        let name = |vcpu| VcpuName { vm: 3, vcpu };
        let op = Some(Op::Read { gva: 0x1000, width: Width::B8 });
        trace.record(name(0), None, None, &Ok(Exit::Shutdown));
        trace.record(name(1), op, Some(0x40_0000), &Ok(Exit::Hlt));
        trace.record(name(2), op, None, &Ok(Exit::doorbell()));
        trace.record(name(2), op, Some(0x50_0000), &Err(Stop::Error("damaged".into())));
        assert_eq!(trace.exits(), 4);
        let lines = trace.render(&|rip| if rip == 0x40_0000 { b"\x48\x89\x07".to_vec() } else { Vec::new() });
        let ends = [
            "vm 3 vcpu 1: Read 0x1000 0x8: HLT at rip 0x400000 `mov [rdi],rax`",
            "vm 3 vcpu 2: Read 0x1000 0x8: done",
            "vm 3 vcpu 2: damaged at rip 0x500000",
        ];
        assert_eq!(lines.len(), ends.len());
        for (number, (line, end)) in (2..).zip(lines.iter().zip(ends)) {
            assert!(line.starts_with(&format!("exit {number} +")) && line.ends_with(end), "{lines:?}");
        }
    }

    #[test]
    fn steps_of_the_host_stand_between_the_exits_around_them() {
        let trace = Trace::new(2);
        let vcpu = VcpuName { vm: 1, vcpu: 0 };
        trace.record(vcpu, None, None, &Ok(Exit::Hlt));
        let deletion = |slot| HostAction::SetMemoryRegion { slot, gpa: 0, bytes: 0 };
        let sharing = HostAction::SetMemoryAttributes { attributes: 0, gpa: 0x1000, bytes: 0x2000 };
        for (action, came) in [(deletion(1), Ok(())), (deletion(2), Ok(())), (sharing, Err(Errno::EINVAL))] {
            std::thread::sleep(std::time::Duration::from_micros(5));
            trace.host_did(1, action, &came);
        }
        std::thread::sleep(std::time::Duration::from_micros(5));
        trace.record(vcpu, None, None, &Ok(Exit::Shutdown));
        let lines = trace.render(&|_| Vec::new());
        let ends: Vec<&str> = lines.iter().map(|line| line.split_once(": ").unwrap().1).collect();
        let [second, third] =
            ["SET_USER_MEMORY_REGION deletes slot 2", "SET_MEMORY_ATTRIBUTES shared, gpa 0x1000, 0x2000 bytes: EINVAL"];
        assert_eq!(ends, ["HLT", second, third, "SHUTDOWN"], "{lines:?}");
        assert!(lines[1].starts_with("host +") && lines[1].contains(" us vm 1: "), "{lines:?}");
    }

    #[test]
    fn bytes_that_are_no_instruction_are_not_disassembled() {
        assert_eq!(disassemble(0, &[]), None);
        assert_eq!(disassemble(0, b"\x48"), None, "cut short");
        assert_eq!(disassemble(0x1000, b"\xEB\xFE").as_deref(), Some("jmp short 0x1000"));
    }
}
