//! Memory that notices who wrote it: Intel's TME-MK with a TD-owner bit and a MAC for each line (TDX module base
//! architecture, "Memory Integrity Protection").
//!
//! Who comes without the key sees zeros, never ciphertext. Who comes with a key finds each line poisoned that somebody
//! else has written since. Processors write memory without telling, so a line counts as written if it is not as it was
//! shown: a stranger who writes zeros over the zeros that he sees goes unnoticed, which hardware would notice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pages::{Key, PAGE_SIZE};

/// Bytes of a line.
pub const LINE: usize = 64;
const LINES: usize = PAGE_SIZE / LINE;
const ALL: u64 = u64::MAX;

/// A page as its owner left it, while somebody else looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hidden {
    key: Key,
    bytes: Vec<u8>,
}

/// What is known of the lines of each page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Integrity {
    hidden: BTreeMap<u64, Hidden>,
    /// A bit for each line that its owner must not use.
    poisoned: BTreeMap<u64, u64>,
}

impl Integrity {
    /// `page` was the bytes that `from` sees and becomes those that `to` sees.
    pub(super) fn convert(&mut self, frame: u64, page: &mut [u8; PAGE_SIZE], from: Key, to: Key) {
        if from != Key::PLAIN {
            self.hidden.insert(frame, Hidden { key: from, bytes: page.to_vec() });
            page.fill(0);
        }
        if to != Key::PLAIN {
            let poison = match self.hidden.remove(&frame) {
                Some(hidden) if hidden.key == to => restore(page, &hidden.bytes),
                // Nothing in it was written with this key.
                _ => ALL,
            };
            if poison != 0 {
                *self.poisoned.entry(frame).or_default() |= poison;
            }
        }
    }

    /// The owner of `key` has overwritten these bytes of the page: whole lines are good again. Who overwrites all of it
    /// leaves nothing of anybody else's.
    pub(super) fn overwritten(&mut self, frame: u64, bytes: std::ops::Range<usize>) {
        let whole = bytes.start.div_ceil(LINE)..bytes.end / LINE;
        if whole == (0..LINES) {
            self.hidden.remove(&frame);
        }
        if let Some(poisoned) = self.poisoned.get_mut(&frame) {
            whole.for_each(|line| *poisoned &= !(1 << line));
            if *poisoned == 0 {
                self.poisoned.remove(&frame);
            }
        }
    }

    /// A bit for each poisoned line of the page.
    pub(super) fn poisoned(&self, frame: u64) -> u64 {
        self.poisoned.get(&frame).copied().unwrap_or(0)
    }
}

/// Puts back what a stranger has left alone, which is what is still zero. The lines that are spoiled.
fn restore(page: &mut [u8; PAGE_SIZE], hidden: &[u8]) -> u64 {
    let mut poison = 0;
    for (index, (line, before)) in page.chunks_mut(LINE).zip(hidden.chunks(LINE)).enumerate() {
        if line.iter().all(|&byte| byte == 0) {
            line.copy_from_slice(before);
        } else {
            poison |= 1 << index;
        }
    }
    poison
}

#[cfg(test)]
mod tests {
    use super::*;

    const TD: Key = Key::numbered(1);
    const OTHER: Key = Key::numbered(2);

    /// A page that the TD has written all of.
    fn owned() -> (Integrity, [u8; PAGE_SIZE]) {
        let (mut integrity, mut page) = (Integrity::default(), [0; PAGE_SIZE]);
        integrity.convert(3, &mut page, Key::PLAIN, TD);
        integrity.overwritten(3, 0..PAGE_SIZE);
        page.fill(0x5A);
        (integrity, page)
    }

    #[test]
    fn a_stranger_sees_zeros_and_the_owner_what_it_was() {
        let (mut integrity, mut page) = owned();
        assert_eq!(integrity.poisoned(3), 0);
        integrity.convert(3, &mut page, TD, Key::PLAIN);
        assert_eq!(page, [0; PAGE_SIZE]);
        integrity.convert(3, &mut page, Key::PLAIN, TD);
        assert_eq!((page, integrity.poisoned(3)), ([0x5A; PAGE_SIZE], 0));
    }

    #[test]
    fn a_line_that_a_stranger_writes_is_poisoned_until_it_is_overwritten() {
        let (mut integrity, mut page) = owned();
        integrity.convert(3, &mut page, TD, Key::PLAIN);
        page[0x47] = 1;
        integrity.convert(3, &mut page, Key::PLAIN, TD);
        assert_eq!(integrity.poisoned(3), 1 << 1);
        assert_eq!((page[0], page[0x80]), (0x5A, 0x5A), "its neighbours are as they were");
        integrity.overwritten(3, 0x40..0x7F);
        assert_eq!(integrity.poisoned(3), 1 << 1, "a part of it does not help");
        integrity.overwritten(3, 0x40..0x80);
        assert_eq!(integrity.poisoned(3), 0);
    }

    #[test]
    fn memory_that_was_never_written_with_the_key_is_poisoned() {
        let (mut integrity, mut page) = (Integrity::default(), [0; PAGE_SIZE]);
        integrity.convert(3, &mut page, Key::PLAIN, TD);
        assert_eq!(integrity.poisoned(3), ALL);
        let (mut integrity, mut page) = owned();
        integrity.convert(3, &mut page, TD, OTHER);
        assert_eq!((integrity.poisoned(3), page), (ALL, [0; PAGE_SIZE]), "another TD's");
    }

    #[test]
    fn who_overwrites_all_of_a_page_leaves_nothing_of_the_former_owners() {
        let (mut integrity, mut page) = owned();
        integrity.convert(3, &mut page, TD, Key::PLAIN);
        integrity.overwritten(3, 0..PAGE_SIZE);
        assert_eq!(integrity, Integrity::default());
        integrity.convert(3, &mut page, Key::PLAIN, TD);
        assert_eq!(integrity.poisoned(3), ALL);
    }
}
