//! The machine around the secure processor, as a command finds it.

use privet_cpu::CpuidResult;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Status;
use crate::KeyedMemory;
use crate::encryption::Key;
use crate::rmp::{Entry, PageSize, PageState, Rmp};

/// How the host has set up the processors and the IOMMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSetup {
    /// SYSCFG.MEM_ENCRYPT of all processors.
    pub memory_encryption: bool,
    /// SYSCFG.SNP_EN and VMPL_EN of all processors.
    pub snp_enabled: bool,
    /// The RMP that the MSRs of all processors name.
    pub rmp: Option<Rmp>,
    /// More than one thread a core.
    pub smt: bool,
    /// An IOMMU is enabled that can enforce SNP.
    pub iommu: bool,
    /// Pages that the IOMMU writes by itself: event log, PPR log, completion-wait buffer.
    pub iommu_pages: Vec<u64>,
}

/// What a command can reach.
pub struct Surroundings<'a> {
    /// Memory.
    pub memory: &'a mut dyn KeyedMemory,
    /// How the host has set up the rest.
    pub setup: &'a HostSetup,
    /// CPUID of the processors: leaf and subleaf.
    pub cpuid: &'a dyn Fn(u32, u32) -> CpuidResult,
}

impl Surroundings<'_> {
    /// Whether there is memory at all of these addresses.
    pub(super) fn check_range(&self, pa: u64, length: u64) -> Result<(), Status> {
        match pa.checked_add(length) {
            Some(end) if end <= self.memory.size() => Ok(()),
            _ => Err(Status::InvalidAddress),
        }
    }

    /// A command's buffer, which does not cross a page.
    pub(super) fn parameters<T: FromBytes + IntoBytes>(&mut self, pa: u64) -> Result<T, Status> {
        if pa % 4096 + size_of::<T>() as u64 > 4096 {
            return Err(Status::InvalidAddress);
        }
        self.load(pa)
    }

    /// A structure in memory.
    pub(super) fn load<T: FromBytes + IntoBytes>(&mut self, pa: u64) -> Result<T, Status> {
        self.check_range(pa, size_of::<T>() as u64)?;
        let mut value = T::new_zeroed();
        self.memory.read(pa, value.as_mut_bytes());
        Ok(value)
    }

    /// Bytes in memory.
    pub(super) fn bytes(&mut self, key: Key, pa: u64, length: u32) -> Result<Vec<u8>, Status> {
        self.check_range(pa, length.into())?;
        let mut bytes = vec![0; length as usize];
        self.memory.read_as(key, pa, &mut bytes);
        Ok(bytes)
    }

    /// Stores a structure. The caller has checked the pages.
    pub(super) fn store<T: IntoBytes + Immutable + KnownLayout>(&mut self, pa: u64, value: &T) {
        self.memory.write(pa, value.as_bytes());
    }

    /// The entry of a page; none of a page in state Default.
    pub(super) fn entry(&mut self, pa: u64) -> Option<Entry> {
        self.setup.rmp.and_then(|rmp| rmp.lookup(self.memory, pa))
    }

    /// Gives a page of 4 KiB another state.
    pub(super) fn set_state(&mut self, pa: u64, state: PageState) {
        self.set_entry(pa, &Entry::of(state));
    }

    /// Gives a page another entry.
    pub(super) fn set_entry(&mut self, pa: u64, entry: &Entry) {
        if let Some(rmp) = self.setup.rmp {
            rmp.store(self.memory, pa, entry);
        }
    }

    /// A page of 4 KiB that has to be in state Firmware.
    pub(super) fn check_firmware_page(&mut self, pa: u64) -> Result<(), Status> {
        if !PageSize::Size4K.aligned(pa) {
            return Err(Status::InvalidAddress);
        }
        self.check_range(pa, 4096)?;
        match self.entry(pa) {
            Some(Entry { state: PageState::Firmware, size: PageSize::Size4K, .. }) => Ok(()),
            Some(Entry { state: PageState::Firmware, .. }) => Err(Status::InvalidPageSize),
            _ => Err(Status::InvalidPageState),
        }
    }
}
