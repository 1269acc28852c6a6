//! A board with a little memory that writes down what the silicon asks of it.

use std::collections::BTreeMap;

use crate::board::{Board, Flush};
use crate::encryption::{Key, KeyedMemory};
use crate::memory::PhysicalMemory;
use crate::rmp::Rmp;
use crate::test_memory::TestMemory;

pub(crate) const MEMORY_BYTES: u64 = 0x20_0000;

pub(crate) struct TestBoard {
    pub(crate) memory: TestMemory,
    pub(crate) flushed: Vec<Flush>,
    pub(crate) event_raised: bool,
    pub(crate) unsimulated: Vec<&'static str>,
    /// What the secure processor has launched.
    pub(crate) guest_keys: BTreeMap<u16, Key>,
    pub(crate) rmp: Option<Rmp>,
    pub(crate) tsc: u64,
}

impl TestBoard {
    pub(crate) fn new() -> TestBoard {
        TestBoard {
            memory: TestMemory::new(MEMORY_BYTES as usize),
            flushed: Vec::new(),
            event_raised: false,
            unsimulated: Vec::new(),
            guest_keys: BTreeMap::new(),
            rmp: None,
            tsc: 0,
        }
    }
}

impl PhysicalMemory for TestBoard {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        self.memory.read(pa, bytes);
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        self.memory.write(pa, bytes);
    }
}

impl KeyedMemory for TestBoard {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read_as(&mut self, key: Key, pa: u64, bytes: &mut [u8]) {
        self.memory.read_as(key, pa, bytes);
    }

    fn write_as(&mut self, key: Key, pa: u64, bytes: &[u8]) {
        self.memory.write_as(key, pa, bytes);
    }

    fn flush_page(&mut self, pa: u64) {
        self.memory.flush_page(pa);
    }

    fn flush_large_page(&mut self, pa: u64) {
        self.memory.flush_large_page(pa);
    }

    fn flush_asid(&mut self, asid: u16) {
        self.memory.flush_asid(asid);
    }
}

impl Board for TestBoard {
    fn flush(&mut self, what: Flush) {
        self.flushed.push(what);
    }

    fn raise_event(&mut self) {
        self.event_raised = true;
    }

    fn guest_key(&self, asid: u16) -> Option<Key> {
        self.guest_keys.get(&asid).copied()
    }

    fn rmp(&self) -> Option<Rmp> {
        self.rmp
    }

    fn tsc(&self) -> u64 {
        self.tsc
    }

    fn unsimulated(&mut self, what: &'static str) {
        self.unsimulated.push(what);
    }
}
