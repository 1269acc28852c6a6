//! The IOMMU (AMD I/O Virtualization Technology specification, 48882): registers, and the command buffer.
//!
//! No device of this board reaches memory by itself, so there is nothing to translate: commands that invalidate
//! translations are done at once. What it is there for is SNP, which Linux has on hosts with an IOMMU only.

use std::collections::BTreeMap;

use privet_silicon::{PhysicalMemory, read_array, read_u64, write_u64};
use serde::{Deserialize, Serialize};

/// Bytes of its registers in memory.
pub(crate) const SIZE: u64 = 0x4000;

mod register {
    pub(super) const COMMAND_BASE: u64 = 0x0008;
    pub(super) const EVENT_BASE: u64 = 0x0010;
    pub(super) const CONTROL: u64 = 0x0018;
    /// Exclusion range, and with SNP the range that completion waits may store to.
    pub(super) const WAIT_BASE: u64 = 0x0020;
    pub(super) const WAIT_LIMIT: u64 = 0x0028;
    pub(super) const FEATURES: u64 = 0x0030;
    pub(super) const FEATURES_2: u64 = 0x01a0;
    pub(super) const COMMAND_HEAD: u64 = 0x2000;
    pub(super) const COMMAND_TAIL: u64 = 0x2008;
    pub(super) const STATUS: u64 = 0x2020;
}

/// INVALIDATE_ALL; GASUP, without which Linux does not look at the rest; SNP (register 0030).
pub(crate) const FEATURES: u64 = 1 << 6 | 1 << 7 | 1 << 63;
/// SNP with device table entries of mode 0, so that Linux may pass devices through (register 01A0).
pub(crate) const FEATURES_2: u64 = 1 << 13;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Head and tail of the command buffer.
const POINTER: u64 = 0x7_fff0;
const COMMAND_BYTES: u64 = 16;

mod control {
    pub(super) const ENABLE: u64 = 1 << 0;
    pub(super) const EVENT_LOG: u64 = 1 << 2;
    pub(super) const COMMAND_BUFFER: u64 = 1 << 12;
}

mod status {
    pub(super) const EVENT_LOG_RUNS: u64 = 1 << 3;
    pub(super) const COMMAND_BUFFER_RUNS: u64 = 1 << 4;
}

/// Commands by the number in bits 63:60.
mod command {
    pub(super) const COMPLETION_WAIT: u64 = 1;
    /// INVALIDATE_DEVTAB_ENTRY to INVALIDATE_INTERRUPT_TABLE, and INVALIDATE_ALL.
    pub(super) const INVALIDATIONS: [u64; 5] = [2, 3, 4, 5, 8];
}

/// A command that this IOMMU has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnknownCommand(pub(crate) u8);

/// The registers; what was never written is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Iommu(BTreeMap<u64, u64>);

impl Iommu {
    fn get(&self, register: u64) -> u64 {
        self.0.get(&register).copied().unwrap_or(0)
    }

    /// Reads 4 or 8 bytes, aligned.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & !7 {
            register::FEATURES => FEATURES,
            register::FEATURES_2 => FEATURES_2,
            register::STATUS => self.status(),
            register => self.get(register),
        };
        let bytes = value.to_le_bytes();
        let from = (offset & 7) as usize;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(from + index).copied().unwrap_or(0);
        }
    }

    /// Writes 4 or 8 bytes, aligned. A new tail of the command buffer has it processed.
    ///
    /// # Errors
    /// The first command that is none of those above; it is skipped.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        memory: &mut impl PhysicalMemory,
    ) -> Result<(), UnknownCommand> {
        let register = offset & !7;
        let mut bytes = self.get(register).to_le_bytes();
        let from = (offset & 7) as usize;
        for (slot, byte) in bytes.iter_mut().skip(from).zip(data) {
            *slot = *byte;
        }
        match register {
            register::FEATURES | register::FEATURES_2 | register::STATUS => {}
            _ => {
                self.0.insert(register, u64::from_le_bytes(bytes));
            }
        }
        match register {
            register::COMMAND_TAIL | register::CONTROL => self.process(memory),
            _ => Ok(()),
        }
    }

    fn status(&self) -> u64 {
        let control = self.get(register::CONTROL);
        let runs = |enabled: u64, bit: u64| if control & enabled != 0 { bit } else { 0 };
        runs(control::EVENT_LOG, status::EVENT_LOG_RUNS) | runs(control::COMMAND_BUFFER, status::COMMAND_BUFFER_RUNS)
    }

    fn process(&mut self, memory: &mut impl PhysicalMemory) -> Result<(), UnknownCommand> {
        if self.get(register::CONTROL) & control::COMMAND_BUFFER == 0 {
            return Ok(());
        }
        let base = self.get(register::COMMAND_BASE);
        let entries = 1 << (base >> 56 & 0xf);
        let tail = self.get(register::COMMAND_TAIL) & POINTER;
        let mut head = self.get(register::COMMAND_HEAD) & POINTER;
        let mut unknown = Ok(());
        // No more than the buffer holds: a tail beyond its end is never reached.
        for _ in 0..entries {
            if head == tail {
                break;
            }
            if let Err(command) = execute(memory, (base & ADDRESS) + head) {
                unknown = Err(command);
            }
            head = (head + COMMAND_BYTES) % (entries * COMMAND_BYTES);
            self.0.insert(register::COMMAND_HEAD, head);
        }
        unknown
    }

    /// Whether it is enabled at all.
    pub(crate) fn is_enabled(&self) -> bool {
        self.get(register::CONTROL) & control::ENABLE != 0
    }

    /// The pages that it writes by itself: the event log, and what completion waits store to.
    pub(crate) fn own_pages(&self) -> Vec<u64> {
        let log = self.get(register::EVENT_BASE);
        let log_bytes = if log & ADDRESS == 0 { 0 } else { 16 << (log >> 56 & 0xf) };
        let wait = [register::WAIT_BASE, register::WAIT_LIMIT].map(|register| self.get(register) & ADDRESS);
        let waits = if wait[0] == 0 { 0..0 } else { wait[0]..wait[1].max(wait[0]) + 1 };
        let log = (log & ADDRESS..(log & ADDRESS) + log_bytes).step_by(4096);
        log.chain(waits.step_by(4096)).collect()
    }
}

fn execute(memory: &mut impl PhysicalMemory, at: u64) -> Result<(), UnknownCommand> {
    const STORE: u64 = 1 << 0;
    const STORE_ADDRESS: u64 = 0x000f_ffff_ffff_fff8;
    let words: [u8; 8] = read_array(memory, at);
    let word = u64::from_le_bytes(words);
    match word >> 60 {
        command::COMPLETION_WAIT => {
            if word & STORE != 0 {
                let data = read_u64(memory, at + 8);
                write_u64(memory, word & STORE_ADDRESS, data);
            }
            Ok(())
        }
        other if command::INVALIDATIONS.contains(&other) => Ok(()),
        other => Err(UnknownCommand(other as u8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl PhysicalMemory for Memory {
        fn read(&mut self, pa: u64, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0[pa as usize..][..bytes.len()]);
        }

        fn write(&mut self, pa: u64, bytes: &[u8]) {
            self.0[pa as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    fn word(iommu: &Iommu, register: u64) -> u64 {
        let mut data = [0; 8];
        iommu.read(register, &mut data);
        u64::from_le_bytes(data)
    }

    fn set(iommu: &mut Iommu, memory: &mut Memory, register: u64, value: u64) -> Result<(), UnknownCommand> {
        iommu.write(register, &value.to_le_bytes(), memory)
    }

    /// drivers/iommu/amd/iommu.c: build_completion_wait, wait_on_sem.
    #[test]
    fn a_completion_wait_stores_before_the_head_moves() {
        let (mut iommu, mut memory) = (Iommu::default(), Memory(vec![0; 0x4000]));
        set(&mut iommu, &mut memory, register::COMMAND_BASE, 9 << 56 | 0x1000).unwrap();
        set(&mut iommu, &mut memory, register::CONTROL, control::COMMAND_BUFFER).unwrap();
        write_u64(&mut memory, 0x1000, 8 << 60);
        write_u64(&mut memory, 0x1010, 1 << 60 | 0x2008 | 1);
        write_u64(&mut memory, 0x1018, 77);
        set(&mut iommu, &mut memory, register::COMMAND_TAIL, 0x20).unwrap();
        assert_eq!(read_u64(&mut memory, 0x2008), 77);
        assert_eq!(word(&iommu, register::COMMAND_HEAD), 0x20);
    }

    #[test]
    fn an_unknown_command_is_told_and_skipped() {
        let (mut iommu, mut memory) = (Iommu::default(), Memory(vec![0; 0x4000]));
        set(&mut iommu, &mut memory, register::COMMAND_BASE, 8 << 56 | 0x1000).unwrap();
        set(&mut iommu, &mut memory, register::CONTROL, control::COMMAND_BUFFER).unwrap();
        write_u64(&mut memory, 0x1000, 6 << 60);
        assert_eq!(set(&mut iommu, &mut memory, register::COMMAND_TAIL, 0x10), Err(UnknownCommand(6)));
        assert_eq!(word(&iommu, register::COMMAND_HEAD), 0x10);
    }

    #[test]
    fn what_it_can_do_is_fixed_and_what_runs_follows_control() {
        let (mut iommu, mut memory) = (Iommu::default(), Memory(vec![]));
        set(&mut iommu, &mut memory, register::FEATURES, 0).unwrap();
        assert_eq!((word(&iommu, register::FEATURES), word(&iommu, register::FEATURES_2)), (FEATURES, FEATURES_2));
        assert_eq!(word(&iommu, register::STATUS), 0);
        set(&mut iommu, &mut memory, register::CONTROL, control::ENABLE | control::EVENT_LOG).unwrap();
        assert_eq!((word(&iommu, register::STATUS), iommu.is_enabled()), (status::EVENT_LOG_RUNS, true));
        let mut high = [0; 4];
        iommu.read(register::FEATURES + 4, &mut high);
        assert_eq!(u32::from_le_bytes(high), 1 << 31);
    }

    #[test]
    fn its_own_pages_are_the_log_and_where_completions_are_stored() {
        let (mut iommu, mut memory) = (Iommu::default(), Memory(vec![]));
        assert!(iommu.own_pages().is_empty());
        set(&mut iommu, &mut memory, register::EVENT_BASE, 9 << 56 | 0x5000).unwrap();
        set(&mut iommu, &mut memory, register::WAIT_BASE, 0x9000).unwrap();
        set(&mut iommu, &mut memory, register::WAIT_LIMIT, 0x9000).unwrap();
        assert_eq!(iommu.own_pages(), [0x5000, 0x6000, 0x9000]);
    }
}
