//! Memory for tests of this crate.

use crate::encryption::{EncryptedPages, Key, PAGE_SIZE};
use crate::{KeyedMemory, PhysicalMemory};

/// RAM from address 0 on, with encryption, that notes what is flushed.
pub(crate) struct TestMemory {
    pages: Vec<[u8; PAGE_SIZE]>,
    keys: EncryptedPages,
    pub(crate) flushed: Vec<u64>,
    pub(crate) flushed_large: Vec<u64>,
}

impl TestMemory {
    pub(crate) fn new(bytes: usize) -> TestMemory {
        let pages = bytes / PAGE_SIZE;
        TestMemory {
            pages: vec![[0; PAGE_SIZE]; pages],
            keys: EncryptedPages::new(pages),
            flushed: Vec::new(),
            flushed_large: Vec::new(),
        }
    }

    /// `(page, offset, range of the caller's bytes)` for each page that an access touches.
    fn parts(pa: u64, length: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = pa as usize + done;
            let part = (length - done).min(PAGE_SIZE - at % PAGE_SIZE);
            let range = done..done + part;
            done += part;
            (part > 0).then_some((at / PAGE_SIZE, at % PAGE_SIZE, range))
        })
    }
}

impl PhysicalMemory for TestMemory {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        self.read_as(Key::PLAIN, pa, bytes);
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        self.write_as(Key::PLAIN, pa, bytes);
    }
}

impl KeyedMemory for TestMemory {
    fn size(&self) -> u64 {
        (self.pages.len() * PAGE_SIZE) as u64
    }

    fn read_as(&mut self, key: Key, pa: u64, bytes: &mut [u8]) {
        for (page, offset, range) in Self::parts(pa, bytes.len()) {
            match self.pages.get(page) {
                Some(content) => {
                    let seen = self.keys.seen_with(page as u64, content, key);
                    bytes[range.clone()].copy_from_slice(&seen[offset..][..range.len()]);
                }
                None => bytes[range].fill(0xFF),
            }
        }
    }

    fn write_as(&mut self, key: Key, pa: u64, bytes: &[u8]) {
        for (page, offset, range) in Self::parts(pa, bytes.len()) {
            if let Some(content) = self.pages.get_mut(page) {
                self.keys.present(page as u64, content, key);
                content[offset..][..range.len()].copy_from_slice(&bytes[range]);
            }
        }
    }

    fn flush_page(&mut self, pa: u64) {
        self.flushed.push(pa);
    }

    fn flush_large_page(&mut self, pa: u64) {
        self.flushed_large.push(pa);
    }

    fn flush_asid(&mut self, _: u16) {}
}
