//! Memory as a key sees it.

use super::Key;
use crate::PhysicalMemory;

/// [`PhysicalMemory`] behind the encryption of the memory controller; its own methods use [`Key::PLAIN`].
pub trait KeyedMemory: PhysicalMemory {
    /// Bytes of RAM, from address 0 on. Beyond are devices and holes.
    fn size(&self) -> u64;

    /// Fills `bytes` from system-physical address `pa` on, decrypted with `key`.
    fn read_as(&mut self, key: Key, pa: u64, bytes: &mut [u8]);

    /// Stores `bytes` from system-physical address `pa` on, encrypted with `key`.
    fn write_as(&mut self, key: Key, pa: u64, bytes: &[u8]);

    /// The rights to the page at `pa` have changed: no processor may use a translation to it that it remembers.
    fn flush_page(&mut self, pa: u64);

    /// The rights to the 2 MiB around `pa` as one page have changed: no processor may use what it remembers of one
    /// translation of them all, its own or that of a guest, for any page inside.
    fn flush_large_page(&mut self, pa: u64);

    /// The ASID has another owner: no processor may use a translation of its guest that it remembers.
    fn flush_asid(&mut self, asid: u16);
}
