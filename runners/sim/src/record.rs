//! What a machine has executed, block by block: what profiles and coverage are made of.
//!
//! Instructions of the kernel are told by address, those of processes by program, those of guests by their number. Who
//! wants to know lines of source and functions has to ask the kernel's symbols.

use std::collections::{BTreeMap, HashMap};

use privet_cpu::paging::{self, Tables, View, Walk, WalkRegisters};
use privet_cpu::{AccessKind, Config, CpuState, PAGE_SIZE, World};
use serde::{Deserialize, Serialize};

use crate::ram::Ram;

/// What was executed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// By the kernel, by address. Blocks may overlap: a jump may lead into the middle of one.
    pub kernel: Vec<Block>,
    /// Instructions by programs in processes, by the path with which the program was started.
    pub programs: BTreeMap<String, u64>,
    /// Instructions by guests.
    pub guests: u64,
}

/// Some instructions of the kernel that were executed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 4]", into = "[u64; 4]")]
pub struct Block {
    /// The linear address of the first.
    pub start: u64,
    /// The most bytes that were executed from there on at one time.
    pub bytes: u64,
    /// How many times.
    pub times: u64,
    /// How many instructions in all.
    pub instructions: u64,
}

impl Record {
    /// Instructions, whoever executed them.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        let kernel: u64 = self.kernel.iter().map(|block| block.instructions).sum();
        kernel + self.programs.values().sum::<u64>() + self.guests
    }

    /// Adds what another record has, of the same kernel at the same addresses.
    pub fn add(&mut self, other: &Record) {
        let mut blocks: BTreeMap<u64, Block> = self.kernel.drain(..).map(|block| (block.start, block)).collect();
        for block in &other.kernel {
            blocks.entry(block.start).and_modify(|known| known.add(block)).or_insert(*block);
        }
        self.kernel = blocks.into_values().collect();
        for (program, instructions) in &other.programs {
            *self.programs.entry(program.clone()).or_default() += instructions;
        }
        self.guests += other.guests;
    }
}

impl From<[u64; 4]> for Block {
    fn from([start, bytes, times, instructions]: [u64; 4]) -> Block {
        Block { start, bytes, times, instructions }
    }
}

impl From<Block> for [u64; 4] {
    fn from(block: Block) -> [u64; 4] {
        [block.start, block.bytes, block.times, block.instructions]
    }
}

impl Block {
    fn add(&mut self, other: &Block) {
        self.bytes = self.bytes.max(other.bytes);
        self.times += other.times;
        self.instructions += other.instructions;
    }
}

/// Writes down what the processors of a machine execute.
#[derive(Debug)]
pub(crate) struct Recorder {
    config: Config,
    kernel: HashMap<u64, Block>,
    programs: BTreeMap<String, u64>,
    guests: u64,
    /// What was entered last, and may still be cut short.
    last: Option<(Who, Block)>,
    /// The program of the process that executed last, and its root of the page tables.
    program: (u64, String),
}

/// Who executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Kernel,
    /// The program that [`Recorder::program`] names.
    Process,
    Guest,
}

impl Recorder {
    pub(crate) fn new(config: Config) -> Recorder {
        let program = (u64::MAX, String::new());
        Recorder { config, kernel: HashMap::new(), programs: BTreeMap::new(), guests: 0, last: None, program }
    }

    /// So many instructions from RIP on are about to be executed.
    pub(crate) fn entered(&mut self, state: &CpuState, ram: &mut Ram, instructions: usize, bytes: u64) {
        let before = self.write_down();
        let who = match (state.world, state.cpl()) {
            (World::HOST, 3) => Who::Process,
            (World::HOST, _) => Who::Kernel,
            _ => Who::Guest,
        };
        // Another program may have been started in it by whoever executed in between.
        if who == Who::Process && (before != Some(Who::Process) || self.program.0 != state.cr3) {
            self.program = (state.cr3, program(state, &self.config, ram).unwrap_or_else(|| NAMELESS.to_owned()));
        }
        let block = Block { start: state.linear_rip(), bytes, times: 1, instructions: instructions as u64 };
        self.last = Some((who, block));
    }

    /// Of those, so many from `rip` on were not executed.
    pub(crate) fn cut_short(&mut self, rip: u64, instructions: usize) {
        if let Some((_, block)) = &mut self.last {
            block.instructions -= instructions as u64;
            block.bytes = block.bytes.min(rip.wrapping_sub(block.start));
        }
    }

    /// Puts what was entered last where it belongs.
    fn write_down(&mut self) -> Option<Who> {
        let (who, block) = self.last.take()?;
        match who {
            Who::Kernel if block.instructions > 0 => {
                self.kernel.entry(block.start).and_modify(|known| known.add(&block)).or_insert(block);
            }
            Who::Kernel => {}
            Who::Process => match self.programs.get_mut(&self.program.1) {
                Some(instructions) => *instructions += block.instructions,
                None => drop(self.programs.insert(self.program.1.clone(), block.instructions)),
            },
            Who::Guest => self.guests += block.instructions,
        }
        Some(who)
    }

    /// What was executed since the last call.
    pub(crate) fn take(&mut self) -> Record {
        self.write_down();
        let mut kernel: Vec<Block> = self.kernel.drain().map(|(_, block)| block).collect();
        kernel.sort_by_key(|block| block.start);
        Record { kernel, programs: std::mem::take(&mut self.programs), guests: std::mem::take(&mut self.guests) }
    }
}

/// What a program is called whose name is not to be found.
const NAMELESS: &str = "(a process)";

/// Where the stack of a process ends, if its place is not random (`norandmaps`) and page tables have four levels.
const STACK_END: u64 = 0x7fff_ffff_f000;

/// The path with which the program of this process was started. Linux leaves it at the very end of the stack, with
/// eight zero bytes behind it (fs/exec.c: `bprm_init`, `bprm_execve`; AT_EXECFN points to it).
fn program(state: &CpuState, config: &Config, ram: &mut Ram) -> Option<String> {
    let registers = WalkRegisters::of(state, config);
    let end = STACK_END - PAGE_SIZE;
    let walk = paging::walk(&mut Unchanged(ram), &registers, end, AccessKind::Read, View::User, false);
    let Ok(Walk::Page { gpa, .. }) = walk else { return None };
    let mut page = [0; PAGE_SIZE as usize];
    ram.read(gpa, &mut page);
    let (text, zeros) = page.split_at(page.len() - 9);
    let start = text.iter().rposition(|byte| *byte == 0)? + 1;
    let is_one = zeros == [0; 9] && start < text.len();
    is_one.then(|| String::from_utf8_lossy(&text[start..]).into_owned())
}

/// Page tables that are looked at without leaving a trace.
struct Unchanged<'a>(&'a mut Ram);

impl Tables for Unchanged<'_> {
    type Error = std::convert::Infallible;

    fn read(&mut self, gpa: u64) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.read(gpa, &mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn update(&mut self, _: u64, _: u64, _: u64) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rip: u64) -> CpuState {
        CpuState { rip, ..CpuState::reset() }
    }

    #[test]
    fn what_was_cut_short_was_not_executed() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let mut recorder = Recorder::new(Config::default());
        let start = at(0x10).linear_rip();
        recorder.entered(&at(0x10), &mut ram, 3, 9);
        recorder.cut_short(start + 5, 1);
        recorder.entered(&at(0x20), &mut ram, 2, 4);
        recorder.cut_short(start + 0x10, 2);
        recorder.entered(&at(0x10), &mut ram, 3, 9);
        let record = recorder.take();
        assert_eq!(record.kernel, [Block { start, bytes: 9, times: 2, instructions: 5 }]);
        assert_eq!(recorder.take(), Record::default());
    }

    #[test]
    fn guests_are_counted_and_no_more() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let mut recorder = Recorder::new(Config::default());
        recorder.entered(&CpuState { world: World(5), ..at(0x10) }, &mut ram, 3, 9);
        assert_eq!(recorder.take(), Record { guests: 3, ..Record::default() });
    }

    #[test]
    fn records_add_up() {
        let block = |start, bytes| Block { start, bytes, times: 1, instructions: 2 };
        let record = |kernel: &[Block]| Record {
            kernel: kernel.to_vec(),
            programs: BTreeMap::from([("/bin/sh".to_owned(), 7)]),
            guests: 1,
        };
        let mut sum = record(&[block(0x10, 4), block(0x30, 4)]);
        sum.add(&record(&[block(0x10, 6), block(0x20, 4)]));
        let starts: Vec<_> = sum.kernel.iter().map(|block| (block.start, block.bytes, block.times)).collect();
        assert_eq!(starts, [(0x10, 6, 2), (0x20, 4, 1), (0x30, 4, 1)]);
        assert_eq!(sum.instructions(), 8 + 14 + 2);
    }
}
