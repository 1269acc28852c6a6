//! The memory controller: RAM behind its encryption, and who has to hear of a change.

use std::sync::Arc;

use privet_cpu::{Flush, HostPage, Kick, PAGE_SIZE, World};
use privet_silicon::encryption::{EncryptedPages, Key};
use privet_silicon::{KeyedMemory, PhysicalMemory};

use crate::ram::Ram;

/// Memory as processors and chips reach it.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) ram: Ram,
    /// With which key each page is plain.
    pub(crate) keys: EncryptedPages,
    /// The processors, which remember where pages are.
    processors: Vec<Arc<Kick>>,
}

impl Memory {
    /// All of it without encryption.
    pub(crate) fn new(ram: Ram) -> Memory {
        let keys = EncryptedPages::new((ram.top() / PAGE_SIZE) as usize);
        Memory::with_keys(ram, keys)
    }

    /// The same, whose lines know who has written them.
    pub(crate) fn with_integrity(ram: Ram) -> Memory {
        let keys = EncryptedPages::with_integrity((ram.top() / PAGE_SIZE) as usize);
        Memory::with_keys(ram, keys)
    }

    pub(crate) fn with_keys(ram: Ram, keys: EncryptedPages) -> Memory {
        Memory { ram, keys, processors: Vec::new() }
    }

    /// From here on this processor hears of changes.
    pub(crate) fn attach(&mut self, processor: Arc<Kick>) {
        self.processors.push(processor);
    }

    /// For which key the page at a system-physical address is plain.
    pub(crate) fn key(&self, page: u64) -> Key {
        self.keys.key(page / PAGE_SIZE)
    }

    /// The page at a system-physical address, which is page aligned, as an access with this key sees it; `None` if
    /// there is no memory.
    pub(crate) fn page(&mut self, page: u64, key: Key) -> Option<HostPage> {
        self.present(page, key);
        self.ram.page(page)
    }

    /// The same, to be written.
    pub(crate) fn page_to_write(&mut self, page: u64, key: Key) -> Option<HostPage> {
        self.present(page, key);
        self.ram.page_to_write(page)
    }

    /// Whether an access with this key finds a line of the page that somebody else has written.
    pub(crate) fn is_poisoned(&mut self, page: u64, key: Key) -> bool {
        if !self.keys.have_integrity() {
            return false;
        }
        self.present(page, key);
        self.keys.poisoned(page / PAGE_SIZE) != 0
    }

    /// Makes a page what an access with this key sees.
    fn present(&mut self, page: u64, key: Key) {
        let frame = page / PAGE_SIZE;
        if self.keys.key(frame) != key
            && let Some(found) = self.ram.page(page)
        {
            let mut bytes = [0; PAGE_SIZE as usize];
            self.ram.read(page, &mut bytes);
            self.keys.present(frame, &mut bytes, key);
            self.ram.write(page, &bytes);
            self.flush(Flush::Backing(found.start().addr()));
        }
    }

    fn flush(&self, what: Flush) {
        for processor in &self.processors {
            processor.request(what);
        }
    }

    /// Makes all pages of a range of bytes what an access with this key sees.
    fn present_all(&mut self, key: Key, pa: u64, length: usize) {
        let (first, end) = (pa & !(PAGE_SIZE - 1), pa.saturating_add(length as u64));
        for page in (first..end).step_by(PAGE_SIZE as usize) {
            self.present(page, key);
        }
    }
}

impl Memory {
    /// A range of bytes was overwritten by whom its pages are plain for.
    fn overwritten(&mut self, pa: u64, length: usize) {
        let end = pa.saturating_add(length as u64);
        for page in (pa & !(PAGE_SIZE - 1)..end).step_by(PAGE_SIZE as usize) {
            let (from, to) = (pa.max(page) - page, end.min(page + PAGE_SIZE) - page);
            self.keys.overwritten(page / PAGE_SIZE, from as usize..to as usize);
        }
    }
}

impl PhysicalMemory for Memory {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        self.read_as(Key::PLAIN, pa, bytes);
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        self.write_as(Key::PLAIN, pa, bytes);
    }
}

impl KeyedMemory for Memory {
    fn size(&self) -> u64 {
        self.ram.top()
    }

    fn read_as(&mut self, key: Key, pa: u64, bytes: &mut [u8]) {
        self.present_all(key, pa, bytes.len());
        self.ram.read(pa, bytes);
    }

    fn write_as(&mut self, key: Key, pa: u64, bytes: &[u8]) {
        self.present_all(key, pa, bytes.len());
        self.ram.write(pa, bytes);
        self.overwritten(pa, bytes.len());
    }

    fn flush_page(&mut self, pa: u64) {
        if let Some(page) = self.ram.page(pa & !(PAGE_SIZE - 1)) {
            self.flush(Flush::Backing(page.start().addr()));
        }
    }

    fn flush_large_page(&mut self, _: u64) {
        // All that there is: more than is asked for cannot be noticed, and it is rare.
        self.processors.iter().for_each(|processor| processor.request_flush());
    }

    fn flush_asid(&mut self, asid: u16) {
        self.flush(Flush::World(World(asid.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory::new(Ram::new(2 << 20).unwrap())
    }

    #[test]
    fn another_key_sees_something_else() {
        let (mut memory, guest) = (memory(), Key::numbered(3));
        memory.write_as(guest, 0x1ffc, &[7; 8]);
        let mut bytes = [0; 8];
        memory.read(0x1ffc, &mut bytes);
        assert_ne!(bytes, [7; 8]);
        memory.read_as(guest, 0x1ffc, &mut bytes);
        assert_eq!(bytes, [7; 8]);
    }

    #[test]
    fn with_integrity_whole_lines_that_their_owner_writes_are_good() {
        let (mut memory, guest) = (Memory::with_integrity(Ram::new(2 << 20).unwrap()), Key::numbered(3));
        memory.write_as(guest, 0x1fc0, &[7; 0x80]);
        assert_eq!((memory.keys.poisoned(1), memory.keys.poisoned(2)), (!(1 << 63), !1));
        memory.write_as(guest, 0x1000, &[7; 0x1000]);
        let mut bytes = [1; 4];
        memory.read(0x1000, &mut bytes);
        assert_eq!(bytes, [0; 4], "the host reads zeros");
        assert_eq!(memory.keys.poisoned(1), 0);
    }

    #[test]
    fn where_there_is_no_memory_reads_give_ones() {
        let mut memory = memory();
        let mut bytes = [0; 4];
        memory.write((2 << 20) - 2, &[1, 2, 3, 4]);
        memory.read((2 << 20) - 2, &mut bytes);
        assert_eq!(bytes, [1, 2, 0xff, 0xff]);
        assert_eq!(memory.size(), 2 << 20);
    }
}
