//! The tag of each page of RAM.

use serde::{Deserialize, Serialize};

use super::cipher::{decrypt, encrypt};
use super::integrity::Integrity;
use crate::{Rule, Rules};

/// The unit in which memory changes its key, bytes.
pub const PAGE_SIZE: usize = 4096;

/// A key of the memory controller. Its owner is a guest, for as long as the secure processor knows that guest; what
/// the key has encrypted stays encrypted with it for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Key(u32);

impl Key {
    /// No key: the host's and every device's, whose bytes lie in DRAM as they are (C-bit clear).
    pub const PLAIN: Key = Key(0);

    /// The key of this number, which is not 0 if it shall encrypt.
    #[must_use]
    pub const fn numbered(number: u32) -> Key {
        Key(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// For which key each page of RAM is plain at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptedPages {
    keys: Vec<Key>,
    rules: Rules,
    /// Where memory notices who wrote it.
    integrity: Option<Integrity>,
}

impl EncryptedPages {
    /// For so many pages from system-physical address 0 on, all plain for the host.
    #[must_use]
    pub fn new(pages: usize) -> EncryptedPages {
        EncryptedPages { keys: vec![Key::PLAIN; pages], rules: Rules::default(), integrity: None }
    }

    /// The same, with integrity: each line knows who wrote it.
    #[must_use]
    pub fn with_integrity(pages: usize) -> EncryptedPages {
        EncryptedPages { integrity: Some(Integrity::default()), ..EncryptedPages::new(pages) }
    }

    /// From here on only these rules hold.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// For which key the page is plain. Beyond RAM nothing is encrypted.
    #[must_use]
    pub fn key(&self, frame: u64) -> Key {
        self.slot(frame).map_or(Key::PLAIN, |slot| self.keys[slot])
    }

    /// Makes `page`, the bytes of page frame `frame`, what an access with `key` sees. Whether that changed anything:
    /// then no processor may use a translation to the page that it has remembered, in any world.
    pub fn present(&mut self, frame: u64, page: &mut [u8; PAGE_SIZE], key: Key) -> bool {
        let Some(slot) = self.slot(frame) else { return false };
        let old = std::mem::replace(&mut self.keys[slot], key);
        match &mut self.integrity {
            _ if old == key => {}
            Some(integrity) if self.rules.hold(Rule::HiddenLines) => integrity.convert(frame, page, old, key),
            None if self.rules.hold(Rule::Ciphertext) => convert(frame, page, old, key),
            _ => {}
        }
        old != key
    }

    /// Whoever the page is plain for has overwritten these bytes of it.
    pub fn overwritten(&mut self, frame: u64, bytes: std::ops::Range<usize>) {
        if let Some(integrity) = &mut self.integrity {
            integrity.overwritten(frame, bytes);
        }
    }

    /// Whether memory notices who wrote it.
    #[must_use]
    pub fn have_integrity(&self) -> bool {
        self.integrity.is_some()
    }

    /// A bit for each line of [`super::LINE`] bytes that is not as the page's owner has written it.
    #[must_use]
    pub fn poisoned(&self, frame: u64) -> u64 {
        let integrity = self.integrity.as_ref().filter(|_| self.rules.hold(Rule::PoisonedLines));
        integrity.map_or(0, |integrity| integrity.poisoned(frame))
    }

    /// The bytes of `page` as an access with `key` sees them, the page left as it is.
    #[must_use]
    pub fn seen_with(&self, frame: u64, page: &[u8; PAGE_SIZE], key: Key) -> [u8; PAGE_SIZE] {
        let mut seen = *page;
        match &self.integrity {
            _ if self.key(frame) == key => {}
            Some(integrity) if self.rules.hold(Rule::HiddenLines) => {
                integrity.clone().convert(frame, &mut seen, self.key(frame), key);
            }
            None if self.rules.hold(Rule::Ciphertext) => convert(frame, &mut seen, self.key(frame), key),
            _ => {}
        }
        seen
    }

    fn slot(&self, frame: u64) -> Option<usize> {
        usize::try_from(frame).ok().filter(|&slot| slot < self.keys.len())
    }
}

fn convert(frame: u64, page: &mut [u8; PAGE_SIZE], from: Key, to: Key) {
    let address = frame * PAGE_SIZE as u64;
    encrypt(page, from, address);
    decrypt(page, to, address);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Key = Key::numbered(1);
    const OTHER: Key = Key::numbered(2);

    #[test]
    fn the_owner_reads_what_it_wrote_and_nobody_else_does() {
        let (mut pages, mut page) = (EncryptedPages::new(4), [0; PAGE_SIZE]);
        assert!(pages.present(2, &mut page, GUEST));
        page = [0x5a; PAGE_SIZE];
        assert!(pages.present(2, &mut page, Key::PLAIN));
        assert_ne!(page[..16], [0x5a; 16]);
        assert!(pages.present(2, &mut page, OTHER));
        assert_ne!(page[..16], [0x5a; 16]);
        assert!(pages.present(2, &mut page, GUEST));
        assert_eq!(page, [0x5a; PAGE_SIZE]);
        assert!(!pages.present(2, &mut page, GUEST), "nothing to flush when the key is the same");
    }

    #[test]
    fn a_host_write_spoils_one_block_of_the_guests_page() {
        let (mut pages, mut page) = (EncryptedPages::new(1), [0; PAGE_SIZE]);
        pages.present(0, &mut page, GUEST);
        page.fill(0);
        pages.present(0, &mut page, Key::PLAIN);
        page[0x208] ^= 1;
        pages.present(0, &mut page, GUEST);
        assert_ne!(page[0x200..0x210], [0; 16]);
        assert!(page[..0x200].iter().chain(&page[0x210..]).all(|&byte| byte == 0));
    }

    #[test]
    fn ciphertext_moved_to_another_page_is_garbage() {
        let mut pages = EncryptedPages::new(2);
        let (mut first, mut second) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        pages.present(0, &mut first, GUEST);
        first.fill(0x11);
        pages.present(0, &mut first, Key::PLAIN);
        second.copy_from_slice(&first);
        pages.present(1, &mut second, GUEST);
        assert_ne!(second[..16], [0x11; 16]);
    }

    #[test]
    fn with_integrity_a_host_write_poisons_a_line() {
        let (mut pages, mut page) = (EncryptedPages::with_integrity(1), [0; PAGE_SIZE]);
        pages.present(0, &mut page, GUEST);
        pages.overwritten(0, 0..PAGE_SIZE);
        page.fill(7);
        pages.present(0, &mut page, Key::PLAIN);
        assert_eq!(page, [0; PAGE_SIZE], "the host sees no ciphertext");
        page[0x208] ^= 1;
        pages.present(0, &mut page, GUEST);
        assert_eq!(pages.poisoned(0), 1 << 8);
        assert_eq!(EncryptedPages::new(1).poisoned(0), 0);
    }

    #[test]
    fn a_look_changes_nothing() {
        let (mut pages, mut page) = (EncryptedPages::new(1), [3; PAGE_SIZE]);
        let seen = pages.seen_with(0, &page, GUEST);
        assert_eq!((pages.key(0), page), (Key::PLAIN, [3; PAGE_SIZE]));
        pages.present(0, &mut page, GUEST);
        assert_eq!(page, seen);
    }

    #[test]
    fn beyond_ram_nothing_is_encrypted() {
        let (mut pages, mut page) = (EncryptedPages::new(1), [3; PAGE_SIZE]);
        assert!(!pages.present(1, &mut page, GUEST));
        assert_eq!((pages.key(1), page), (Key::PLAIN, [3; PAGE_SIZE]));
    }
}
