//! What a board has whose processors encrypt guests: the secure processor, the IOMMU, and memory for the RMP.

use privet_cpu::CpuidResult;
use privet_silicon::psp::{Chip, Effect, HostSetup, Mailbox, Psp, Surroundings};
use privet_silicon::rmp::Rmp;
use privet_silicon::{KeyedMemory, Rules};
use serde::{Deserialize, Serialize};

use crate::devices::iommu::Iommu;
use crate::devices::pci::{Function, Pci, Slot};
use crate::profile::Processors;

/// Where the functions are, and what their registers are called in memory.
pub(crate) const IOMMU: Slot = Slot::device(1);
pub(crate) const IOMMU_REGISTERS: u64 = 0xfeb8_0000;
/// Offset of the IOMMU's capability, which the IVRS tells too.
pub(crate) const IOMMU_CAPABILITY: u8 = 0x40;
pub(crate) const SECURE_PROCESSOR: Slot = Slot::device(2);
const SECURE_PROCESSOR_REGISTERS: u32 = 0xfe00_0000;
const SECURE_PROCESSOR_BYTES: u32 = 0x10_0000;

/// Bits of SYSCFG.
pub(crate) mod syscfg {
    pub(crate) const MEM_ENCRYPT: u64 = 1 << 23;
    pub(crate) const SNP_EN: u64 = 1 << 24;
    pub(crate) const VMPL_EN: u64 = 1 << 25;
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Encryption {
    pub(crate) psp: Psp,
    pub(crate) mailbox: Mailbox,
    pub(crate) iommu: Iommu,
    /// First and last byte of the memory that firmware has set aside for the RMP; both 0 if it has not.
    pub(crate) rmp: (u64, u64),
    /// Bits of address that a segment of it is for, if it is segmented.
    rmp_segment: Option<u8>,
    /// The processors that enforce the RMP, one bit each.
    enforcing: u64,
    /// Which rules of the RMP hold.
    rules: Rules,
}

impl Encryption {
    /// The chips of these processors after power-on, and their functions on the bus. `rmp` is the memory for the RMP.
    /// None for processors that encrypt nothing.
    pub(crate) fn new(kind: Processors, cpus: usize, rmp: (u64, u64), pci: &mut Pci) -> Option<Encryption> {
        let asids = kind.sev()?.asids;
        pci.plug(IOMMU, iommu_function());
        let function = Function::new(0x1022, 0x14ca, 0x10_8000);
        let function = function.with_memory(2, SECURE_PROCESSOR_REGISTERS, SECURE_PROCESSOR_BYTES);
        pci.plug(SECURE_PROCESSOR, function.with_msi(0x40));
        // The same machine has the same keys: a run can be repeated.
        let seed = *b"the secure processor of this sim";
        let chip = Chip { seed, asids, processors: cpus, snp: kind.has_snp_firmware(), tcb: kind.tcb() };
        Some(Encryption {
            psp: Psp::new(&chip),
            mailbox: Mailbox::default(),
            iommu: Iommu::default(),
            rmp,
            rmp_segment: kind.rmp_segment(),
            enforcing: 0,
            rules: Rules::default(),
        })
    }

    /// From here on only these rules hold.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.psp.set_rules(rules);
    }

    fn table(&self) -> Option<Rmp> {
        let rmp = match self.rmp_segment {
            Some(shift) => Rmp::segmented(self.rmp.0, shift),
            None => Rmp::new(self.rmp.0, self.rmp.1),
        };
        rmp.map(|rmp| rmp.with_rules(self.rules))
    }

    /// How software has set up the processors, whose SYSCFG these are, and the IOMMU.
    fn setup(&self, syscfg: &[u64]) -> HostSetup {
        let all = |bits: u64| syscfg.iter().all(|value| value & bits == bits);
        HostSetup {
            memory_encryption: all(syscfg::MEM_ENCRYPT),
            snp_enabled: all(syscfg::SNP_EN | syscfg::VMPL_EN),
            rmp: self.table(),
            smt: false,
            iommu: self.iommu.is_enabled(),
            iommu_pages: self.iommu.own_pages(),
        }
    }

    /// The table, if this processor enforces it.
    pub(crate) fn enforced_rmp(&self, cpu: usize) -> Option<Rmp> {
        self.table().filter(|_| self.enforcing >> cpu & 1 != 0)
    }

    /// A processor's SYSCFG was written.
    pub(crate) fn set_syscfg(&mut self, cpu: usize, value: u64) {
        let enforces = u64::from(value & syscfg::SNP_EN != 0) << cpu;
        self.enforcing = self.enforcing & !(1 << cpu) | enforces;
    }

    /// A write to a register of the secure processor; what follows from it.
    pub(crate) fn write_mailbox(
        &mut self,
        offset: u64,
        value: u32,
        memory: &mut dyn KeyedMemory,
        syscfg: &[u64],
        cpuid: &dyn Fn(u32, u32) -> CpuidResult,
    ) -> Effect {
        let setup = self.setup(syscfg);
        let mut around = Surroundings { memory, setup: &setup, cpuid };
        self.mailbox.write(offset, value, &mut self.psp, &mut around)
    }
}

/// The IOMMU on the bus: an interrupt that it never raises, and a capability (48882, section 3.2) that Linux wants to
/// see. Its registers are no BAR's: the IVRS tells where they are.
fn iommu_function() -> Function {
    const ID: u8 = 0x0f;
    /// Type 3, revision 1; extended features are there.
    const HEADER: u16 = 1 << 11 | 1 << 3 | 3;
    let mut body = HEADER.to_le_bytes().to_vec();
    body.extend((IOMMU_REGISTERS as u32 | 1).to_le_bytes());
    body.extend([0; 12]);
    Function::new(0x1022, 0x14b5, 0x08_0600).with_capability(IOMMU_CAPABILITY, ID, &body).with_msi(0x60)
}

const LARGE_PAGE: u64 = 2 << 20;

/// Where firmware puts the RMP: at the top of memory below the devices, on pages of 2 MiB, an entry for each page up
/// to `top` (15.36.4), in segments or not. First and last byte.
pub(crate) fn rmp_memory(low_end: u64, top: u64, segment: Option<u8>) -> (u64, u64) {
    const BOOKKEEPING: u64 = 0x4000;
    const ENTRY: u64 = 16;
    let bytes = match segment {
        None => (BOOKKEEPING + (top >> 12) * ENTRY).next_multiple_of(LARGE_PAGE),
        Some(shift) => LARGE_PAGE + top.div_ceil(1 << shift) * Rmp::segment_bytes(shift).1,
    };
    let end = low_end & !(LARGE_PAGE - 1);
    (end.saturating_sub(bytes), end - 1)
}

/// What firmware writes for a segmented RMP in the memory from `first` on: where, and the bytes. The segments follow each
/// other behind the first 2 MiB.
pub(crate) fn segment_table(first: u64, top: u64, segment: u8) -> (u64, Vec<u8>) {
    let (_, each) = Rmp::segment_bytes(segment);
    let segments: Vec<u64> = (0..top.div_ceil(1 << segment)).map(|index| first + LARGE_PAGE + index * each).collect();
    let (offset, bytes) = Rmp::segment_table(segment, &segments);
    (first + offset, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// arch/x86/virt/svm/sev.c: setup_contiguous_rmptable.
    #[test]
    fn the_rmp_has_room_for_all_of_memory() {
        let (first, last) = rmp_memory(2 << 30, 2 << 30, None);
        assert_eq!((first, last), (0x7f60_0000, 0x7fff_ffff));
        // Entries of 16 bytes behind 16 KiB.
        assert!(last + 1 - first >= 0x4000 + ((2 << 30) >> 12) * 16);
        let (first, last) = rmp_memory(3 << 30, 6 << 30, None);
        assert!(last + 1 - first >= 0x4000 + ((6 << 30) >> 12) * 16);
        assert_eq!((first % (2 << 20), last), (0, (3 << 30) - 1));
        let (first, last) = rmp_memory(2 << 30, 2 << 30, Some(30));
        assert_eq!((first, last), (0x7f60_0000, 0x7fff_ffff), "two segments of 4 MiB behind 2 MiB");
        let (at, table) = segment_table(first, 2 << 30, 30);
        assert_eq!((at, table.len()), (0x7f60_4000, 16));
        assert_eq!(table[8..], 0x7fc0_0001_u64.to_le_bytes());
    }
}
