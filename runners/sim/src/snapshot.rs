//! A machine in a file: its memory, sparse, and behind that everything else.
//!
//! A restored machine maps the file and shares what it does not write with whoever else does. It can go on from there
//! as often as it is rewound, and remembers the code that it has decoded. The file belongs to the build of this crate
//! that wrote it; another one refuses it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use privet_cpu::{CpuState, Extensions};
use privet_silicon::encryption::EncryptedPages;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::board::Board;
use crate::error::SimError;
use crate::machine::{Activity, Machine, Processor};
use crate::memory::Memory;
use crate::page_set::PageSet;
use crate::ram::Ram;
use crate::scheduler::Scheduler;

/// The last bytes of the file: this, then the length of the state, then its checksum.
const MAGIC: [u8; 16] = *b"privet sim 0001\n";
const FOOTER: u64 = 32;

/// Everything but the bytes of the memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    /// What of the host's processor the machine's have.
    extensions: Extensions,
    processors: Vec<(CpuState, Activity)>,
    board: Board,
    scheduler: Scheduler,
    memory_bytes: u64,
    touched: PageSet,
    keys: EncryptedPages,
}

impl State {
    fn of(machine: &Machine) -> State {
        let processor = |processor: &Processor| (processor.cpu.state.clone(), processor.activity);
        State {
            extensions: Extensions::of_host(),
            processors: machine.processors.iter().map(processor).collect(),
            board: machine.board.clone(),
            scheduler: machine.scheduler.clone(),
            memory_bytes: machine.memory.ram.bytes(),
            touched: machine.memory.ram.touched(),
            keys: machine.memory.keys.clone(),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("the state is data, and a vector takes everything")
    }
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> SimError {
    let what = format!("{what} {}", path.display());
    move |source| SimError::Io { what, source }
}

impl Machine {
    /// Writes the machine to a new file. It can go on running, and does so as one that is restored from there.
    ///
    /// # Errors
    /// If the file exists, or cannot be written; then it is removed.
    pub fn save(&mut self, path: &Path) -> Result<(), SimError> {
        // What caches remember is no state; from here on both machines remember nothing.
        for processor in &mut self.processors {
            processor.cpu.flush_tlb();
        }
        let file = File::create_new(path).map_err(failed("create", path))?;
        self.write_to(&file).map_err(|source| {
            // Nothing half-written stays, if that can be helped.
            let _ = std::fs::remove_file(path);
            failed("write", path)(source)
        })
    }

    fn write_to(&mut self, file: &File) -> io::Result<()> {
        for (offset, page) in self.memory.ram.contents() {
            file.write_all_at(&page, offset)?;
        }
        write_state(file, &State::of(self))
    }

    /// A machine that goes on where it was saved.
    ///
    /// # Errors
    /// If the file cannot be read, or was written by another version, or on a host with another processor.
    pub fn restore(path: &Path) -> Result<Machine, SimError> {
        Rewindable::restore(path).map(|restored| restored.machine)
    }

    /// A fingerprint of the whole machine: registers, devices, and memory. Equal machines have equal ones.
    #[must_use]
    pub fn digest(&mut self) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&State::of(self).to_bytes());
        for (offset, page) in self.memory.ram.contents() {
            hash.update(&offset.to_le_bytes());
            hash.update(&page);
        }
        hash.digest128()
    }
}

/// A machine with the file that it was restored from.
#[derive(Debug)]
pub struct Rewindable {
    /// The machine.
    pub machine: Machine,
    file: File,
    state: State,
}

impl Rewindable {
    /// A machine that goes on where it was saved.
    ///
    /// # Errors
    /// If the file cannot be read, or was written by another version, or on a host with another processor.
    pub fn restore(path: &Path) -> Result<Rewindable, SimError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let state = read_state(&file).map_err(failed("read", path))?;
        let State { processors, board, scheduler, memory_bytes, touched, keys, .. } = state.clone();
        let mut memory = Memory::with_keys(Ram::map(&file, memory_bytes, touched)?, keys);
        let processor = |(registers, activity)| Processor::new(board.processors, registers, activity, &mut memory);
        let processors = processors.into_iter().map(processor).collect();
        Ok(Rewindable { machine: Machine { processors, board, scheduler, memory, recorder: None }, file, state })
    }

    /// Puts the machine back to where it was saved: nothing that a guest or a count can see is left of what it has
    /// done since then.
    ///
    /// # Errors
    /// If the file cannot be mapped; the machine is of no use then.
    pub fn rewind(&mut self) -> Result<(), SimError> {
        let State { processors, board, scheduler, keys, .. } = self.state.clone();
        let machine = &mut self.machine;
        machine.memory.ram.put_back(&self.file)?;
        machine.memory.keys = keys;
        machine.stop_recording();
        for (processor, (registers, activity)) in machine.processors.iter_mut().zip(processors) {
            processor.cpu.put_to(registers);
            processor.activity = activity;
        }
        machine.board = board;
        machine.scheduler = scheduler;
        Ok(())
    }
}

/// Writes everything but the bytes of the memory, behind them.
fn write_state(file: &File, state: &State) -> io::Result<()> {
    let mut end = state.to_bytes();
    let (length, checksum) = (end.len() as u64, xxh3_64(&end));
    end.extend(MAGIC);
    end.extend(length.to_le_bytes());
    end.extend(checksum.to_le_bytes());
    file.write_all_at(&end, state.memory_bytes)
}

fn read_state(file: &File) -> io::Result<State> {
    let not_ours = || io::Error::other("it is no machine that this version has saved");
    let end = file.metadata()?.len();
    let footer_at = end.checked_sub(FOOTER).ok_or_else(not_ours)?;
    let mut footer = [0; FOOTER as usize];
    file.read_exact_at(&mut footer, footer_at)?;
    let word = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().expect("eight bytes"));
    let (length, checksum) = (word(16), word(24));
    let start = footer_at.checked_sub(length).filter(|_| footer[..16] == MAGIC).ok_or_else(not_ours)?;
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, start)?;
    let state: State = postcard::from_bytes(&bytes).map_err(|_| not_ours())?;
    if xxh3_64(&bytes) != checksum || state.memory_bytes != start {
        return Err(not_ours());
    }
    if state.extensions != Extensions::of_host() {
        return Err(io::Error::other("it was saved on another processor: it has not what this one's instructions do"));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    #[test]
    fn a_machine_of_another_processor_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let extensions = Extensions::of_host();
        for (aes, refused) in [(extensions.aes, false), (!extensions.aes, true)] {
            let state = State {
                extensions: Extensions { aes, ..extensions },
                processors: vec![(CpuState::reset(), Activity::Running)],
                board: Board::new(Profile::Plain.into(), 1, None),
                scheduler: Scheduler::new(0),
                memory_bytes: 4096,
                touched: PageSet::new(1),
                keys: EncryptedPages::new(1),
            };
            write_state(file.as_file(), &state).unwrap();
            let restored = Machine::restore(file.path());
            assert_eq!(restored.is_err_and(|error| error.to_string().contains("another processor")), refused);
        }
    }

    #[test]
    fn what_is_no_saved_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], &[0; 100], &[&[0; 64][..], &MAGIC, &[255; 16]].concat()] {
            let path = dir.path().join("machine");
            std::fs::write(&path, bytes).unwrap();
            assert!(Machine::restore(&path).unwrap_err().to_string().contains("no machine that this version"));
        }
    }
}
