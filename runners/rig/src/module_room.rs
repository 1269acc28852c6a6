//! KVM's modules from outside: a guest sets memory aside, and once it has been saved so, whoever goes on from there writes
//! modules into it, like a device would. Kernels of which only modules differ share one boot in that way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memmap2::MmapMut;
use privet_sim::Machine;
use serde::{Deserialize, Serialize};

use crate::plan::ModuleLoad;

const PAGE: usize = 4096;

/// A room has this size or a multiple of it, so that modules that differ by little have the same room.
const STEP: usize = 4 << 20;

/// A module in a room.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Placed {
    /// Where it begins, in bytes.
    pub(crate) start: usize,
    /// How long it is.
    pub(crate) bytes: usize,
    /// Its parameters, separated by spaces.
    pub(crate) params: String,
}

/// Modules one behind the other, each from the beginning of a page on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// What the room holds.
    pub(crate) contents: Vec<u8>,
    /// Where each module is.
    pub(crate) modules: Vec<Placed>,
}

impl Layout {
    /// These modules in their order.
    pub(crate) fn of<'a>(modules: impl Iterator<Item = (&'a ModuleLoad, &'a [u8])>) -> Self {
        let mut layout = Self { contents: Vec::new(), modules: Vec::new() };
        for (load, bytes) in modules {
            let start = layout.contents.len();
            layout.modules.push(Placed { start, bytes: bytes.len(), params: load.params.clone() });
            layout.contents.extend(bytes);
            layout.contents.resize(layout.contents.len().next_multiple_of(PAGE), 0);
        }
        layout
    }

    /// How many bytes a guest has to set aside for it.
    pub(crate) fn room(&self) -> usize {
        self.contents.len().next_multiple_of(STEP)
    }
}

/// Writes what a room holds into a guest's memory, of which it has these page frames.
pub(crate) fn fill(machine: &mut Machine, frames: &[u64], contents: &[u8]) {
    for (frame, page) in frames.iter().zip(contents.chunks(PAGE)) {
        machine.write_memory(frame * PAGE as u64, page);
    }
}

/// The guest's side: memory that stays where it is.
pub(crate) struct Room(MmapMut);

impl Room {
    /// Sets so many bytes aside.
    ///
    /// # Errors
    /// Of `mmap(2)` and `mlock(2)`.
    pub(crate) fn set_aside(bytes: usize) -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(bytes)?;
        memory.lock()?;
        // A page that was only read may be shared.
        memory.fill(1);
        Ok(Self(memory))
    }

    /// Its page frames in their order, of /proc/self/pagemap (kernel: Documentation/admin-guide/mm/pagemap.rst).
    ///
    /// # Errors
    /// If that cannot be read, or does not tell: it takes CAP_SYS_ADMIN.
    pub(crate) fn frames(&self) -> io::Result<Vec<u64>> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let mut entries = vec![0; self.0.len() / PAGE * size_of::<u64>()];
        let first = self.0.as_ptr().addr() / PAGE * size_of::<u64>();
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, first as u64)?;
        let entry = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let frame = |entry: u64| match entry & FRAME {
            frame @ 1.. if entry & PRESENT != 0 => Ok(frame),
            _ => Err(io::Error::other("a page that was set aside for modules is nowhere")),
        };
        entries.chunks_exact(size_of::<u64>()).map(entry).map(frame).collect()
    }

    /// A module that somebody has written into it.
    ///
    /// # Errors
    /// If it does not lie in there.
    pub(crate) fn module(&self, placed: &Placed) -> io::Result<&[u8]> {
        let end = placed.start.checked_add(placed.bytes);
        let module = end.and_then(|end| self.0.get(placed.start..end));
        module.ok_or_else(|| io::Error::other("a module lies outside of the memory that was set aside for modules"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(params: &str) -> ModuleLoad {
        ModuleLoad { path: String::new(), params: params.to_owned() }
    }

    #[test]
    fn modules_begin_at_pages_and_their_room_hardly_ever_changes() {
        let (first, second) = (load(""), load("npt=0"));
        let layout = Layout::of([(&first, &[1; 5000][..]), (&second, &[2; 3][..])].into_iter());
        let placed = |start, bytes, params: &str| Placed { start, bytes, params: params.to_owned() };
        assert_eq!(layout.modules, [placed(0, 5000, ""), placed(8192, 3, "npt=0")]);
        assert_eq!((layout.contents.len(), layout.contents[4999], layout.contents[8192]), (12288, 1, 2));
        assert_eq!(layout.room(), STEP);
    }

    #[test]
    fn a_room_has_the_modules_that_lie_in_it() {
        let room = Room::set_aside(2 * PAGE).unwrap();
        let placed = |start, bytes| Placed { start, bytes, params: String::new() };
        assert_eq!(room.module(&placed(PAGE, 2)).unwrap(), [1, 1]);
        assert!(room.module(&placed(PAGE, PAGE + 1)).is_err());
        assert!(room.module(&placed(usize::MAX, 2)).is_err());
    }
}
