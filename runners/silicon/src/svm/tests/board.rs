//! A board with a little memory that writes down what the silicon asks of it.

use crate::board::{Board, Flush};
use crate::memory::PhysicalMemory;

pub(crate) const MEMORY_BYTES: u64 = 0x20_0000;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

pub(crate) struct TestBoard {
    pages: Vec<Page>,
    pub(crate) flushed: Vec<Flush>,
    pub(crate) event_raised: bool,
    pub(crate) unsimulated: Vec<&'static str>,
}

impl TestBoard {
    pub(crate) fn new() -> TestBoard {
        TestBoard {
            pages: vec![Page([0; 4096]); (MEMORY_BYTES >> 12) as usize],
            flushed: Vec::new(),
            event_raised: false,
            unsimulated: Vec::new(),
        }
    }

    /// The page that `pa` is in, if it is in memory.
    pub(crate) fn page(&mut self, pa: u64) -> Option<&mut [u8; 4096]> {
        self.pages.get_mut((pa >> 12) as usize).map(|page| &mut page.0)
    }
}

impl PhysicalMemory for TestBoard {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        for (offset, byte) in bytes.iter_mut().enumerate() {
            let at = pa.wrapping_add(offset as u64);
            *byte = self.page(at).map_or(0xff, |page| page[(at & 0xfff) as usize]);
        }
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            let at = pa.wrapping_add(offset as u64);
            if let Some(page) = self.page(at) {
                page[(at & 0xfff) as usize] = *byte;
            }
        }
    }
}

impl Board for TestBoard {
    fn flush(&mut self, what: Flush) {
        self.flushed.push(what);
    }

    fn raise_event(&mut self) {
        self.event_raised = true;
    }

    fn unsimulated(&mut self, what: &'static str) {
        self.unsimulated.push(what);
    }
}
