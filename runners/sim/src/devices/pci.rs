//! PCI: configuration mechanism #1 (PCI local bus specification 3.0, section 3.2.2.3.2) and the functions on bus 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::interrupt_message::{Delivery, Destination, InterruptMessage};

/// Bytes of a function's configuration space.
const CONFIG: usize = 256;
const ENABLE: u32 = 1 << 31;

mod offset {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const CLASS: usize = 0x09;
    pub(super) const BARS: usize = 0x10;
    pub(super) const CAPABILITIES: usize = 0x34;
}

/// Bits of the command and status registers.
const MEMORY_ENABLE: u8 = 1 << 1;
const HAS_CAPABILITIES: u8 = 1 << 4;

/// Message signalled interrupts (section 6.8), with an address of 64 bits.
mod msi {
    pub(super) const ID: u8 = 5;
    pub(super) const CONTROL: usize = 2;
    pub(super) const ADDRESS: usize = 4;
    pub(super) const DATA: usize = 12;
    pub(super) const ENABLE: u32 = 1 << 0;
    pub(super) const WIDE: u8 = 1 << 7;
}

/// Where a function is on its bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Slot {
    device: u8,
    function: u8,
}

impl Slot {
    /// The first function of a device.
    pub(crate) const fn device(device: u8) -> Slot {
        Slot { device, function: 0 }
    }

    /// Its number as requester of transactions.
    pub(crate) const fn requester(self) -> u16 {
        (self.device as u16) << 3 | self.function as u16
    }
}

/// The configuration space of one function: bytes, and which of their bits software can change. The size of a BAR is
/// said by its fixed bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Function {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    /// Registers in memory: which BAR, and their size.
    memory: Option<(usize, u32)>,
    /// Where the capability for message signalled interrupts is.
    msi: Option<usize>,
}

impl Function {
    /// A function without BARs and capabilities; `class` is class, subclass and programming interface.
    pub(crate) fn new(vendor: u16, device: u16, class: u32) -> Function {
        let mut function = Function { bytes: vec![0; CONFIG], writable: vec![0; CONFIG], memory: None, msi: None };
        function.set(offset::VENDOR, &vendor.to_le_bytes());
        function.set(offset::DEVICE, &device.to_le_bytes());
        function.set(offset::CLASS, &class.to_le_bytes()[..3]);
        // I/O, memory, bus master, and interrupt disable.
        function.allow(offset::COMMAND, &[0x07, 0x04]);
        function
    }

    /// With registers of `size` bytes in memory, which firmware has put at `base`.
    pub(crate) fn with_memory(mut self, bar: usize, base: u32, size: u32) -> Function {
        let at = offset::BARS + 4 * bar;
        self.set(at, &base.to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self.memory = Some((at, size));
        self
    }

    /// With a capability at `at`: its number and what follows the pointer to the next one.
    pub(crate) fn with_capability(mut self, at: u8, id: u8, body: &[u8]) -> Function {
        let next = self.bytes[offset::CAPABILITIES];
        self.set(offset::CAPABILITIES, &[at]);
        self.bytes[offset::STATUS] |= HAS_CAPABILITIES;
        self.set(at.into(), &[id, next]);
        self.set(usize::from(at) + 2, body);
        self
    }

    /// With one message signalled interrupt, its capability at `at`.
    pub(crate) fn with_msi(mut self, at: u8) -> Function {
        self = self.with_capability(at, msi::ID, &[msi::WIDE, 0]);
        let at = usize::from(at);
        self.allow(at + msi::CONTROL, &[msi::ENABLE as u8]);
        self.allow(at + msi::ADDRESS, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        self.allow(at + msi::DATA, &[0xff, 0xff]);
        self.msi = Some(at);
        self
    }

    /// Where in its registers this system-physical address is.
    fn memory_offset(&self, address: u64) -> Option<u64> {
        let (bar, size) = self.memory?;
        let base = u64::from(self.read(bar, 4));
        let decodes = self.bytes[offset::COMMAND] & MEMORY_ENABLE != 0;
        address.checked_sub(base).filter(|offset| decodes && *offset < size.into())
    }

    /// The interrupt as software has set it up, if it is enabled.
    fn message(&self) -> Option<InterruptMessage> {
        let at = self.msi.filter(|at| self.read(at + msi::CONTROL, 2) & msi::ENABLE != 0)?;
        Some(message(self.read(at + msi::ADDRESS, 4), self.read(at + msi::DATA, 2)))
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

/// What a write of `data` to `address` says to local APICs (AMD APM volume 2, section 16.11.1).
fn message(address: u32, data: u32) -> InterruptMessage {
    const LOGICAL: u32 = 1 << 2;
    let id = address >> 12 & 0xff;
    InterruptMessage {
        destination: if address & LOGICAL == 0 { Destination::Physical(id) } else { Destination::Logical(id) },
        delivery: Delivery::of(data),
        vector: data as u8,
        level: data >> 15 & 1 != 0,
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

    /// Plugs in a function.
    pub(crate) fn plug(&mut self, slot: Slot, function: Function) {
        self.functions.insert(slot, function);
    }

    /// The function whose registers are at this system-physical address, and where in them it is.
    pub(crate) fn memory(&self, address: u64) -> Option<(Slot, u64)> {
        self.functions.iter().find_map(|(slot, function)| Some((*slot, function.memory_offset(address)?)))
    }

    /// The interrupt of a function, if it is enabled.
    pub(crate) fn message(&self, slot: Slot) -> Option<InterruptMessage> {
        self.functions.get(&slot)?.message()
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

    fn with_device() -> Pci {
        let mut pci = Pci::new();
        let function = Function::new(0x1022, 0x14ca, 0x10_8000);
        pci.plug(Slot::device(2), function.with_memory(2, 0xfe00_0000, 0x10_0000).with_msi(0x40));
        pci
    }

    /// A configuration register of that device.
    fn configure(pci: &mut Pci, at: u32, value: u32) -> u32 {
        pci.set_address(ENABLE | 2 << 11 | at);
        pci.write(0, 4, value);
        pci.read(0, 4)
    }

    #[test]
    fn a_bar_says_its_size_and_moves_registers() {
        let mut pci = with_device();
        assert_eq!(pci.memory(0xfe00_0010), None, "not enabled");
        configure(&mut pci, 0x04, 2);
        assert_eq!(pci.memory(0xfe00_0010), Some((Slot::device(2), 0x10)));
        assert_eq!(pci.memory(0xfe10_0000), None);
        assert_eq!(configure(&mut pci, 0x18, u32::MAX), 0xfff0_0000);
        configure(&mut pci, 0x18, 0xe000_0000);
        assert_eq!(pci.memory(0xe00f_ffff), Some((Slot::device(2), 0xf_ffff)));
    }

    #[test]
    fn an_interrupt_is_what_software_has_written() {
        let mut pci = with_device();
        pci.set_address(ENABLE | 2 << 11 | 0x34);
        assert_eq!(pci.read(0, 1), 0x40);
        assert_eq!(configure(&mut pci, 0x40, 0), 0x0080_0005);
        configure(&mut pci, 0x44, 0xfee0_3000);
        configure(&mut pci, 0x4c, 0x4031);
        assert_eq!(pci.message(Slot::device(2)), None, "not enabled");
        configure(&mut pci, 0x40, 1 << 16);
        let expected = InterruptMessage {
            destination: Destination::Physical(3),
            delivery: Delivery::Fixed,
            vector: 0x31,
            level: false,
        };
        assert_eq!(pci.message(Slot::device(2)), Some(expected));
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
