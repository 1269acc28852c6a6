//! What silicon asks of the board that it sits on.

use privet_cpu::state::World;

use crate::encryption::{Key, KeyedMemory};
use crate::rmp::Rmp;

/// Which translations of a processor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// All of every world.
    All,
    /// All of one world, global pages included.
    World(World),
    /// Those of one linear address in one world.
    Page(World, u64),
}

/// One processor's surroundings.
pub trait Board: KeyedMemory {
    /// Drops translations of this processor before its next access.
    fn flush(&mut self, what: Flush);

    /// Has this processor ask for events ([`privet_cpu::Bus::take_event`]) before its next instruction.
    fn raise_event(&mut self);

    /// The key of the guest that the secure processor has launched under this ASID; none if VMRUN may not run it.
    fn guest_key(&self, asid: u16) -> Option<Key>;

    /// The reverse map table, if SNP is enabled in this processor.
    fn rmp(&self) -> Option<Rmp>;

    /// The time stamp counter of this processor, as it is outside of guests.
    fn tsc(&self) -> u64;

    /// Software asks for something that this silicon has not: told loudly, once, by this name.
    fn unsimulated(&mut self, what: &'static str);
}
