//! Where a command finds its memory.

use crate::mapping::Mapping;

/// Below this no process has memory (`vm.mmap_min_addr`).
const LOWEST: u64 = 64 << 10;
/// From here on no process has memory (4-level paging).
const HIGHEST: u64 = 1 << 47;

/// Memory that a command reads or writes.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// A mapping from this offset on.
    In(&'a Mapping, u64),
    /// A host address at which no process has memory: below 64 KiB, or not below 128 TiB.
    Nowhere(u64),
}

impl Memory<'_> {
    /// The address zero, which many commands take for "none".
    pub const NONE: Memory<'static> = Memory::Nowhere(0);

    /// The host address, of which KVM can be told for a command that touches at most `bytes` bytes from there on.
    ///
    /// # Panics
    /// If these are not in the mapping, or could be somebody's: an error in the row, not in the kernel.
    pub(crate) fn address(self, bytes: u64) -> u64 {
        match self {
            Memory::In(mapping, offset) => {
                let address = mapping.addr() + offset;
                assert!(
                    mapping.contains(address, bytes),
                    "{bytes:#x} bytes from {offset:#x} on are not in the mapping"
                );
                address
            }
            Memory::Nowhere(address) => {
                assert!(
                    !(LOWEST..HIGHEST).contains(&address),
                    "{bytes:#x} bytes at {address:#x} could be somebody's memory"
                );
                address
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_its_mapping_or_nobodys() {
        let mapping = Mapping::anonymous(0x2000).unwrap();
        assert_eq!(Memory::In(&mapping, 0x1000).address(0x1000), mapping.addr() + 0x1000);
        assert_eq!(Memory::Nowhere(u64::MAX - 0xfff).address(0x2000), u64::MAX - 0xfff);
        assert_eq!(Memory::NONE.address(0x1000), 0);
        let refuses = |memory: Memory<'_>, bytes| {
            let attempt = std::panic::AssertUnwindSafe(|| memory.address(bytes));
            std::panic::catch_unwind(attempt).is_err()
        };
        assert!(refuses(Memory::In(&mapping, 0x1001), 0x1000));
        assert!(refuses(Memory::Nowhere(0x10_0000), 1));
    }
}
