//! The registers of the IOMMU and of the secure processor. A write to one of them may reach all of memory at once: both
//! execute commands that they find there.

use privet_cpu::CpuState;

use crate::board::Board;
use crate::devices::iommu;
use crate::encryption::{IOMMU_REGISTERS, SECURE_PROCESSOR};
use crate::log::Unknown;
use crate::memory::Memory;

/// A register, by its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Iommu(u64),
    Mailbox(u64),
}

impl Board {
    /// The register at a system-physical address.
    fn secure_register(&self, address: u64) -> Option<Register> {
        self.encryption.as_ref()?;
        if let Some(offset) = address.checked_sub(IOMMU_REGISTERS).filter(|offset| *offset < iommu::SIZE) {
            return Some(Register::Iommu(offset));
        }
        let (slot, offset) = self.pci.memory(address)?;
        (slot == SECURE_PROCESSOR).then_some(Register::Mailbox(offset))
    }

    /// Reads a register; false if there is none at this address.
    pub(crate) fn secure_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((register, encryption)) = self.secure_register(address).zip(self.encryption.as_ref()) else {
            return false;
        };
        match register {
            Register::Iommu(offset) => encryption.iommu.read(offset, data),
            Register::Mailbox(offset) if data.len() == 4 => {
                data.copy_from_slice(&encryption.mailbox.read(offset).to_le_bytes());
            }
            Register::Mailbox(_) => return false,
        }
        true
    }

    /// Writes a register, which may execute commands; false if there is none at this address.
    pub(crate) fn secure_write(&mut self, state: &CpuState, address: u64, data: &[u8], memory: &mut Memory) -> bool {
        let Some(register) = self.secure_register(address) else { return false };
        let (processors, cpus) = (self.processors, self.lapics.len());
        let syscfg: Vec<u64> = (0..cpus).map(|cpu| self.syscfg(cpu)).collect();
        let Some(encryption) = &mut self.encryption else { return false };
        match (register, <[u8; 4]>::try_from(data)) {
            (Register::Iommu(offset), _) => {
                if let Err(command) = encryption.iommu.write(offset, data, memory) {
                    self.log.unknown(Unknown::Function(format!("command {} of the IOMMU", command.0)));
                }
            }
            (Register::Mailbox(offset), Ok(word)) => {
                let cpuid = |leaf, subleaf| processors.cpuid(0, cpus, state, leaf, subleaf);
                let effect = encryption.write_mailbox(offset, u32::from_le_bytes(word), memory, &syscfg, &cpuid);
                if let Some(what) = effect.unoffered {
                    self.log.unknown(Unknown::Function(what));
                }
                if let Some(message) = self.pci.message(SECURE_PROCESSOR).filter(|_| effect.interrupt) {
                    self.send(message, None);
                }
            }
            (Register::Mailbox(_), Err(_)) => return false,
        }
        true
    }
}
