//! Accesses of one instruction that want one page with different keys.
//!
//! A page is plain for one key at a time, and who comes with another has every translation to it dropped. An instruction
//! that needs the page with both, one whose data is shared in the page of its own code or page tables, would start
//! over for ever: its data is then accessed in place, and nothing of that is remembered.

use privet_silicon::encryption::Key;
use serde::{Deserialize, Serialize};

/// So many changes between two retired instructions are no accident. One instruction may meet a dozen pages.
const LIMIT: u32 = 64;

/// How often pages have changed their keys since the last instruction retired.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contention {
    /// The count of instructions then.
    instructions: u64,
    changes: u32,
    /// The page that is accessed in place, and the key.
    in_place: Option<(u64, Key)>,
}

impl Contention {
    /// An access wants another key than `page` has. Whether it has to be made in place.
    pub(crate) fn meet(&mut self, instructions: u64, page: u64, key: Key, data: bool) -> bool {
        if self.instructions != instructions {
            *self = Contention { instructions, ..Contention::default() };
        }
        self.changes = self.changes.saturating_add(1);
        let stuck = data && self.changes > LIMIT;
        if stuck {
            self.in_place = Some((page, key));
        }
        stuck
    }

    /// The key with which memory at this address is accessed in place; none if it is not.
    pub(crate) fn key(&self, instructions: u64, address: u64) -> Option<Key> {
        let (page, key) = self.in_place.filter(|_| self.instructions == instructions)?;
        (address & !0xfff == page).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::numbered(1);

    #[test]
    fn an_instruction_that_never_ends_gets_its_data_in_place() {
        let mut contention = Contention::default();
        for _ in 0..LIMIT {
            assert!(!contention.meet(7, 0x5000, KEY, true));
        }
        assert!(!contention.meet(7, 0x5000, KEY, false), "tables and code cannot be");
        assert!(contention.meet(7, 0x5000, Key::PLAIN, true));
        assert_eq!(contention.key(7, 0x5123), Some(Key::PLAIN));
        assert_eq!((contention.key(7, 0x6123), contention.key(8, 0x5123)), (None, None));
        assert!(!contention.meet(8, 0x5000, KEY, true), "the next instruction begins anew");
    }
}
