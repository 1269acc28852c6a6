//! PCI: configuration mechanism #1 (PCI local bus specification 3.0, section 3.2.2.3.2) and the functions on bus 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of a function's configuration space.
const CONFIG: usize = 256;
const ENABLE: u32 = 1 << 31;

mod offset {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const CLASS: usize = 0x09;
}

/// Where a function is on its bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Slot {
    device: u8,
    function: u8,
}

/// The configuration space of one function: bytes, and which of their bits software can change. The size of a BAR is
/// said by its fixed bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Function {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl Function {
    /// A function without BARs and capabilities; `class` is class, subclass and programming interface.
    pub(crate) fn new(vendor: u16, device: u16, class: u32) -> Function {
        let mut function = Function { bytes: vec![0; CONFIG], writable: vec![0; CONFIG] };
        function.set(offset::VENDOR, &vendor.to_le_bytes());
        function.set(offset::DEVICE, &device.to_le_bytes());
        function.set(offset::CLASS, &class.to_le_bytes()[..3]);
        // I/O, memory, bus master, and interrupt disable.
        function.allow(offset::COMMAND, &[0x07, 0x04]);
        function
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    fn read(&self, at: usize, size: usize) -> u32 {
        self.bytes[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&mut self, at: usize, size: usize, value: u32) {
        for (index, byte) in value.to_le_bytes()[..size].iter().enumerate() {
            let mask = self.writable[at + index];
            let old = &mut self.bytes[at + index];
            *old = *old & !mask | byte & mask;
        }
    }
}

/// The bus, and the address register in front of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pci {
    address: u32,
    functions: BTreeMap<Slot, Function>,
}

impl Pci {
    /// A bus with nothing but its host bridge, that of an AMD EPYC.
    pub(crate) fn new() -> Pci {
        let host_bridge = Function::new(0x1022, 0x1480, 0x06_0000);
        Pci { address: 0, functions: BTreeMap::from([(Slot { device: 0, function: 0 }, host_bridge)]) }
    }

    pub(crate) fn address(&self) -> u32 {
        self.address
    }

    pub(crate) fn set_address(&mut self, value: u32) {
        self.address = value & !0x7000_0003;
    }

    /// The function that the address register names, and the offset in it. Other buses than 0 are empty, and no
    /// function has an extended space, whose offset would continue in bits 27:24.
    fn selected(&mut self, byte: u16) -> Option<(&mut Function, usize)> {
        let address = self.address;
        if address & ENABLE == 0 || address >> 16 & 0xfff != 0 {
            return None;
        }
        let slot = Slot { device: (address >> 11 & 0x1f) as u8, function: (address >> 8 & 7) as u8 };
        Some((self.functions.get_mut(&slot)?, (address & 0xfc) as usize + usize::from(byte)))
    }

    /// Reads the data register from byte 0 to 3 on; the access does not leave the register. An empty slot gives ones.
    pub(crate) fn read(&mut self, byte: u16, size: u8) -> u32 {
        match self.selected(byte) {
            Some((function, at)) => function.read(at, size.into()),
            None => u32::MAX,
        }
    }

    /// Writes the data register from byte 0 to 3 on; the access does not leave the register.
    pub(crate) fn write(&mut self, byte: u16, size: u8, value: u32) {
        if let Some((function, at)) = self.selected(byte) {
            function.write(at, size.into(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_bridge_is_there_and_nothing_else() {
        let mut pci = Pci::new();
        assert_eq!(pci.read(0, 4), u32::MAX, "not enabled");
        pci.set_address(ENABLE);
        assert_eq!((pci.read(0, 4), pci.read(2, 2)), (0x1480_1022, 0x1480));
        pci.set_address(ENABLE | 8);
        assert_eq!(pci.read(0, 4) >> 8, 0x06_0000);
        pci.set_address(ENABLE | 1 << 11);
        assert_eq!(pci.read(0, 2), u32::MAX);
        pci.set_address(ENABLE | 1 << 16);
        assert_eq!(pci.read(0, 2), u32::MAX);
    }

    #[test]
    fn only_writable_bits_change() {
        let mut pci = Pci::new();
        pci.set_address(ENABLE);
        pci.write(0, 4, 0);
        assert_eq!(pci.read(0, 4), 0x1480_1022);
        pci.set_address(ENABLE | 4);
        pci.write(0, 4, u32::MAX);
        assert_eq!(pci.read(0, 4), 0x0407);
    }
}
