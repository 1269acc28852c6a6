//! Which of the CPU's worlds is which guest's: what SDM volume 3, 30.4, tags translations with.

use std::collections::BTreeMap;

use privet_cpu::state::World;
use serde::{Deserialize, Serialize};

use crate::board::{Board, Flush};

/// Bits of an EPT pointer that name its tables (EP4TA).
const TABLES: u64 = 0x000f_ffff_ffff_f000;

/// The tag of a translation: a VPID (0 for guests without one) and the EPT tables, if there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Tag {
    vpid: u16,
    ept: Option<u64>,
}

/// The worlds of a processor's guests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Worlds {
    numbers: BTreeMap<Tag, u32>,
    last: u32,
}

impl Worlds {
    /// The world of a guest; a new one if it has none.
    pub(super) fn of(&mut self, vpid: u16, ept: Option<u64>) -> World {
        let last = &mut self.last;
        let tag = Tag { vpid, ept: ept.map(|pointer| pointer & TABLES) };
        World(*self.numbers.entry(tag).or_insert_with(|| {
            *last += 1;
            *last
        }))
    }

    /// Those of this VPID.
    pub(super) fn of_vpid(&self, vpid: u16) -> impl Iterator<Item = World> {
        self.numbers.iter().filter(move |(tag, _)| tag.vpid == vpid).map(|(_, number)| World(*number))
    }

    /// Drops the translations of EPT tables, or of all of them.
    pub(super) fn flush_ept(&mut self, board: &mut impl Board, pointer: Option<u64>) {
        self.forget(board, |tag| match (tag.ept, pointer) {
            (Some(tables), Some(pointer)) => tables == pointer & TABLES,
            (Some(_), None) => true,
            (None, _) => false,
        });
    }

    /// Drops the translations of a VPID, or of all but 0.
    pub(super) fn flush_vpid(&mut self, board: &mut impl Board, vpid: Option<u16>) {
        self.forget(board, |tag| vpid.map_or(tag.vpid != 0, |vpid| tag.vpid == vpid));
    }

    /// Drops translations; their guests get new worlds, so that there are not more of them than guests.
    fn forget(&mut self, board: &mut impl Board, whose: impl Fn(&Tag) -> bool) {
        self.numbers.retain(|tag, number| {
            let goes = whose(tag);
            if goes {
                board.flush(Flush::World(World(*number)));
            }
            !goes
        });
    }
}
