//! Memory as silicon reaches it: by system-physical address, past all page tables.

/// The memory of the machine, as its processors' microcode, its secure processor and its table walkers see it.
///
/// There is no failure: where nothing answers, reads give ones and writes are lost, as on a bus. Accesses may cross
/// pages. Nothing here is atomic: a machine runs on one thread.
pub trait PhysicalMemory {
    /// Fills `bytes` from system-physical address `pa` on.
    fn read(&mut self, pa: u64, bytes: &mut [u8]);

    /// Stores `bytes` from system-physical address `pa` on.
    fn write(&mut self, pa: u64, bytes: &[u8]);
}

/// `N` bytes at `pa`.
pub fn read_array<const N: usize>(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(pa, &mut bytes);
    bytes
}

/// A little-endian word of 2 bytes at `pa`.
pub fn read_u16(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> u16 {
    u16::from_le_bytes(read_array(memory, pa))
}

/// A little-endian word of 4 bytes at `pa`.
pub fn read_u32(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> u32 {
    u32::from_le_bytes(read_array(memory, pa))
}

/// A little-endian word of 8 bytes at `pa`.
pub fn read_u64(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> u64 {
    u64::from_le_bytes(read_array(memory, pa))
}

/// Stores a little-endian word of 4 bytes at `pa`.
pub fn write_u32(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, value: u32) {
    memory.write(pa, &value.to_le_bytes());
}

/// Stores a little-endian word of 8 bytes at `pa`.
pub fn write_u64(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, value: u64) {
    memory.write(pa, &value.to_le_bytes());
}
