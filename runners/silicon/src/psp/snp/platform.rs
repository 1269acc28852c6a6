//! Commands about the platform of SNP (56860, chapter 8: SNP_INIT to SNP_FEATURE_INFO).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::context::Context;
use super::tcb::{TcbLayout, TcbVersion};
use crate::Rule;
use crate::psp::{API_MAJOR, API_MINOR, BUILD, Psp, Status, Surroundings};
use crate::rmp::{PageState, Rmp};

/// What SNP_CONFIG and SNP_COMMIT set. It outlives SNP_SHUTDOWN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::psp) struct SnpSettings {
    pub(super) committed: TcbVersion,
    pub(super) reported: TcbVersion,
    pub(super) mask_chip_id: bool,
    pub(super) mask_chip_key: bool,
}

impl SnpSettings {
    /// After power-on.
    pub(in crate::psp) fn new(layout: TcbLayout) -> SnpSettings {
        let current = TcbVersion::current(layout);
        SnpSettings { committed: current, reported: current, mask_chip_id: false, mask_chip_key: false }
    }

    /// Of the firmware that runs.
    pub(super) fn current(&self) -> TcbVersion {
        TcbVersion::current(self.committed.layout)
    }
}

/// The initialised platform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::psp) struct Snp {
    /// Guests by the address of their context page.
    pub(super) guests: BTreeMap<u64, Context>,
    /// Pages that the IOMMU writes and that were taken from the host for it.
    iommu_pages: Vec<u64>,
}

#[cfg(test)]
impl Snp {
    /// Whether this is the context page of a guest.
    pub(in crate::psp) fn has_guest(&self, page: u64) -> bool {
        self.guests.contains_key(&page)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct InitExParameters {
    flags: U32,
    reserved: U32,
    list_address: U64,
    max_snp_asid: U16,
    reserved_2: [u8; 46],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RangeListHeader {
    elements: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Range {
    base: U64,
    pages: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ShutdownExParameters {
    length: U32,
    flags: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct PlatformStatus {
    api_major: u8,
    api_minor: u8,
    state: u8,
    rmp_initialised: u8,
    build: U32,
    flags: U32,
    guest_count: U32,
    current_tcb: [u8; 8],
    reported_tcb: [u8; 8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ConfigParameters {
    reported_tcb: [u8; 8],
    flags: U32,
    reserved: [u8; 52],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct FeatureInfoParameters {
    length: U32,
    leaf: U32,
    address: U64,
}

const INIT_RMP: u32 = 1 << 0;
const LIST_VALID: u32 = 1 << 1;
const IOMMU_SHUTDOWN: u32 = 1 << 0;
const MASK_CHIP_ID: u32 = 1 << 0;
const MASK_CHIP_KEY: u32 = 1 << 1;
/// SNP_PLATFORM_STATUS: SNP_FEATURE_INFO is there.
const HAS_FEATURE_INFO: u32 = 1 << 3;
/// Ranges that fit the page of the list.
const MAX_RANGES: u32 = (4096 - 8) / 16;

impl Psp {
    /// The platform, which has to be initialised.
    pub(super) fn snp(&mut self) -> Result<&mut Snp, Status> {
        self.snp.as_mut().ok_or(Status::InvalidPlatformState)
    }

    /// SNP_INIT (56860, 8.1): builds the RMP without a list of pages that stay the host's.
    pub(in crate::psp) fn snp_init(&mut self, around: &mut Surroundings<'_>) -> Result<(), Status> {
        self.snp_initialise(around, &[])
    }

    /// SNP_INIT_EX (56860, 8.2).
    pub(in crate::psp) fn snp_init_ex(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: InitExParameters = around.parameters(at)?;
        let flags = parameters.flags.get();
        let reserved = parameters.reserved.get() != 0
            || parameters.reserved_2 != [0; 46]
            // Ciphertext hiding and the limit that goes with it are not offered, nor are RAPL off and TIO.
            || parameters.max_snp_asid.get() != 0;
        if reserved || flags & !(INIT_RMP | LIST_VALID) != 0 {
            return Err(Status::InvalidParameter);
        }
        if flags & INIT_RMP == 0 {
            // It would take over the table as a former SNP_INIT left it, which this firmware has forgotten.
            return Err(Status::RmpInitRequired);
        }
        let ranges = match flags & LIST_VALID {
            0 => Vec::new(),
            _ => range_list(around, parameters.list_address.get())?,
        };
        self.snp_initialise(around, &ranges)
    }

    fn snp_initialise(&mut self, around: &mut Surroundings<'_>, fixed: &[Range]) -> Result<(), Status> {
        if self.snp.is_some() || self.sev.is_some() {
            return Err(Status::InvalidPlatformState);
        }
        let rmp = around.setup.rmp.ok_or(Status::InvalidConfig)?;
        if self.rules.hold(Rule::InitSetup) {
            check_setup(around, &rmp)?;
        }
        rmp.clear(around.memory);
        for range in fixed {
            let pages = (0..u64::from(range.pages.get())).map(|page| range.base.get().saturating_add(page << 12));
            pages.for_each(|pa| around.set_state(pa, PageState::HvFixed));
        }
        if self.rules.hold(Rule::RmpProtected) {
            for (first, last) in rmp.parts(around.memory) {
                (first..=last).step_by(4096).for_each(|pa| around.set_state(pa, PageState::Firmware));
            }
        }
        let iommu_pages = around.setup.iommu_pages.clone();
        iommu_pages.iter().for_each(|&pa| around.set_state(pa, PageState::Firmware));
        self.snp = Some(Snp { guests: BTreeMap::new(), iommu_pages });
        self.asids.dirty_all();
        Ok(())
    }

    /// SNP_SHUTDOWN (56860, 8.3).
    pub(in crate::psp) fn snp_shutdown(&mut self, around: &mut Surroundings<'_>) -> Result<(), Status> {
        self.snp_shut_down(around, false)
    }

    /// SNP_SHUTDOWN_EX (56860, 8.4).
    pub(in crate::psp) fn snp_shutdown_ex(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: ShutdownExParameters = around.parameters(at)?;
        if parameters.length.get() < size_of::<ShutdownExParameters>() as u32 {
            return Err(Status::InvalidLength);
        }
        // Turning SNP off in the processors is not offered (SNP_FEATURE_INFO).
        if parameters.flags.get() & !IOMMU_SHUTDOWN != 0 {
            return Err(Status::InvalidParameter);
        }
        self.snp_shut_down(around, parameters.flags.get() & IOMMU_SHUTDOWN != 0)
    }

    fn snp_shut_down(&mut self, around: &mut Surroundings<'_>, release_iommu: bool) -> Result<(), Status> {
        if self.sev.is_some() {
            return Err(Status::InvalidPlatformState);
        }
        let Some(snp) = &self.snp else { return Ok(()) };
        let idle = snp.guests.values().all(|guest| guest.asid().is_none()) && !self.asids.any_dirty();
        self.demand(Rule::ShutdownIdle, idle, Status::DfFlushRequired)?;
        let Some(snp) = self.snp.take() else { return Ok(()) };
        for context in snp.guests.into_keys() {
            around.set_state(context, PageState::Firmware);
        }
        if release_iommu {
            snp.iommu_pages.into_iter().for_each(|pa| around.set_state(pa, PageState::Reclaim));
        }
        Ok(())
    }

    /// SNP_PLATFORM_STATUS (56860, 8.5).
    pub(in crate::psp) fn snp_platform_status(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let to = around.parameters::<U64>(at)?.get();
        if to % 4096 + size_of::<PlatformStatus>() as u64 > 4096 {
            return Err(Status::InvalidAddress);
        }
        self.check_output(around, to, size_of::<PlatformStatus>() as u64)?;
        let settings = &self.snp_settings;
        let initialised = u8::from(self.snp.is_some());
        let flags = [(settings.mask_chip_id, MASK_CHIP_ID), (settings.mask_chip_key, MASK_CHIP_KEY)];
        let status = PlatformStatus {
            api_major: API_MAJOR,
            api_minor: API_MINOR,
            state: initialised,
            rmp_initialised: initialised,
            build: U32::new(BUILD.into()),
            flags: U32::new(flags.iter().filter(|(set, _)| *set).fold(HAS_FEATURE_INFO, |all, (_, bit)| all | bit)),
            guest_count: U32::new(self.snp.as_ref().map_or(0, |snp| snp.guests.len() as u32)),
            current_tcb: settings.current().bytes(),
            reported_tcb: settings.reported.bytes(),
        };
        around.store(to, &status);
        Ok(())
    }

    /// SNP_CONFIG (56860, 8.6). A reported TCB of zero asks for the committed one.
    pub(in crate::psp) fn snp_config(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: ConfigParameters = around.parameters(at)?;
        self.snp()?;
        let flags = parameters.flags.get();
        if flags & !(MASK_CHIP_ID | MASK_CHIP_KEY) != 0 || parameters.reserved != [0; 52] {
            return Err(Status::InvalidParameter);
        }
        let layout = self.snp_settings.committed.layout;
        let reported = TcbVersion::decode(parameters.reported_tcb, layout).ok_or(Status::InvalidParameter)?;
        let committed = reported.within(self.snp_settings.committed);
        self.demand(Rule::TcbCommitted, committed, Status::InvalidParameter)?;
        let settings = &mut self.snp_settings;
        settings.reported = if reported.bytes() == [0; 8] { settings.committed } else { reported };
        settings.mask_chip_id = flags & MASK_CHIP_ID != 0;
        settings.mask_chip_key = flags & MASK_CHIP_KEY != 0;
        Ok(())
    }

    /// SNP_COMMIT (56860, 8.7).
    pub(in crate::psp) fn snp_commit(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let length: U32 = around.parameters(at)?;
        if length.get() < size_of::<U32>() as u32 {
            return Err(Status::InvalidLength);
        }
        self.snp_settings.committed = self.snp_settings.current();
        Ok(())
    }

    /// SNP_FEATURE_INFO (56860, 8.10): the firmware offers none of the features that leaves 0 and 1 can name.
    pub(in crate::psp) fn snp_feature_info(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: FeatureInfoParameters = around.parameters(at)?;
        let to = parameters.address.get();
        if parameters.length.get() < size_of::<FeatureInfoParameters>() as u32 {
            return Err(Status::InvalidLength);
        }
        if parameters.leaf.get() > 1 {
            return Err(Status::InvalidParameter);
        }
        if to % 4096 + 16 > 4096 {
            return Err(Status::InvalidAddress);
        }
        self.check_output(around, to, 16)?;
        around.store(to, &[0_u8; 16]);
        Ok(())
    }
}

/// What SNP_INIT demands of processors and IOMMU (56860, 8.1).
fn check_setup(around: &mut Surroundings<'_>, rmp: &Rmp) -> Result<(), Status> {
    let (setup, end) = (around.setup, around.memory.size());
    let is_table_placed = rmp.is_placed(around.memory) && rmp.parts(around.memory).iter().all(|(_, last)| *last < end);
    if !setup.snp_enabled || !setup.memory_encryption || !is_table_placed {
        return Err(Status::InvalidConfig);
    }
    if !setup.iommu {
        return Err(Status::HardwarePlatform);
    }
    Ok(())
}

fn range_list(around: &mut Surroundings<'_>, at: u64) -> Result<Vec<Range>, Status> {
    if !at.is_multiple_of(4096) {
        return Err(Status::InvalidAddress);
    }
    let header: RangeListHeader = around.load(at)?;
    if header.reserved.get() != 0 || header.elements.get() > MAX_RANGES {
        return Err(Status::InvalidParameter);
    }
    let mut ranges = Vec::new();
    for index in 0..u64::from(header.elements.get()) {
        let range: Range = around.load(at + 8 + index * 16)?;
        if !range.base.get().is_multiple_of(4096) {
            return Err(Status::InvalidAddress);
        }
        ranges.push(range);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalMemory;
    use crate::psp::Command;
    use crate::psp::test_machine::{BUFFER, TestMachine};
    use crate::rmp::Entry;

    fn init_ex(flags: u8, list: u64) -> [u8; 64] {
        let mut parameters = [0; 64];
        parameters[0] = flags;
        parameters[8..16].copy_from_slice(&list.to_le_bytes());
        parameters
    }

    #[test]
    fn snp_init_ex_builds_the_rmp() {
        let mut machine = TestMachine::new();
        machine.setup.snp_enabled = true;
        let mut list = [0; 40];
        list[0] = 2;
        list[8..16].copy_from_slice(&0x5000_u64.to_le_bytes());
        list[16] = 2;
        list[24..32].copy_from_slice(&0x60_0000_u64.to_le_bytes());
        list[32] = 1;
        machine.memory.write(0x3000, &list);
        assert_eq!(machine.execute(Command::SnpInitEx, &init_ex(3, 0x3000)), Status::Success);
        assert!(machine.psp.snp_initialised());
        let state = |machine: &mut TestMachine, pa| machine.entry(pa).unwrap().state;
        assert_eq!(state(&mut machine, 0x4000), PageState::Hypervisor);
        assert_eq!(state(&mut machine, 0x5000), PageState::HvFixed);
        assert_eq!(state(&mut machine, 0x6000), PageState::HvFixed);
        assert_eq!(state(&mut machine, 0x60_0000), PageState::Firmware, "the RMP's own page, although it is listed");
        assert_eq!(state(&mut machine, 0x9000), PageState::Firmware, "the IOMMU's");
        machine.set_state(BUFFER, PageState::Firmware);
        assert_eq!(machine.execute(Command::SnpInitEx, &init_ex(1, 0)), Status::InvalidPlatformState);
    }

    #[test]
    fn snp_init_minds_parameters_and_setup() {
        let mut machine = TestMachine::new();
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::InvalidConfig, "SNP is off in the processors");
        machine.setup.snp_enabled = true;
        assert_eq!(machine.execute(Command::SnpInitEx, &init_ex(8, 0)), Status::InvalidParameter);
        assert_eq!(machine.execute(Command::SnpInitEx, &init_ex(0, 0)), Status::RmpInitRequired);
        assert_eq!(machine.execute(Command::SnpInitEx, &init_ex(3, 0x123)), Status::InvalidAddress);
        machine.setup.iommu = false;
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::HardwarePlatform);
        machine.setup.iommu = true;
        machine.setup.rmp = Rmp::new(0x60_2000, 0x6F_FFFF);
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::InvalidConfig, "not aligned to 1 MiB");
    }

    #[test]
    fn sev_comes_after_snp_and_goes_before_it() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.setup.snp_enabled = true;
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::InvalidPlatformState);
        let mut machine = TestMachine::with_snp();
        assert_eq!(machine.execute(Command::Init, &[0; 20]), Status::Success);
        assert_eq!(machine.execute(Command::SnpShutdown, &[]), Status::InvalidPlatformState);
        assert_eq!(machine.execute(Command::Shutdown, &[]), Status::Success);
        assert_eq!(machine.execute(Command::SnpShutdownEx, &[8, 0, 0, 0, 1, 0, 0, 0]), Status::Success);
        assert_eq!(machine.entry(0x9000).unwrap().state, PageState::Reclaim);
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::Success, "again");
    }

    #[test]
    fn asids_are_dirty_after_snp_init() {
        let mut machine = TestMachine::new();
        machine.setup.snp_enabled = true;
        machine.psp.written_back(0);
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::Success);
        assert_eq!(machine.execute(Command::SnpShutdown, &[]), Status::DfFlushRequired);
        assert_eq!(machine.execute(Command::SnpDfFlush, &[]), Status::WbinvdRequired);
        machine.psp.written_back(0);
        assert_eq!(machine.execute(Command::SnpDfFlush, &[]), Status::Success);
        assert_eq!(machine.execute(Command::SnpShutdown, &[]), Status::Success);
    }

    /// include/uapi/linux/psp-sev.h: struct sev_user_data_snp_status.
    #[test]
    fn the_status_is_laid_out_as_linux_reads_it() {
        let mut machine = TestMachine::with_snp();
        machine.set_state(0x3000, PageState::Firmware);
        assert_eq!(machine.execute_words(Command::SnpPlatformStatus, &[0x3000]), Status::Success);
        let expected = [1, 55, 1, 1, 25, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0x17, 0x54];
        assert_eq!(machine.output::<24>(0x3000), expected);
        assert_eq!(machine.execute_words(Command::SnpPlatformStatus, &[0x4000]), Status::InvalidPageState);
        assert_eq!(machine.entry(0x3000), Some(Entry::of(PageState::Firmware)), "it stays the firmware's");
    }

    #[test]
    fn the_reported_tcb_is_at_most_the_committed_one() {
        let mut machine = TestMachine::with_snp();
        let mut config = |tcb: [u8; 8], flags: u8| {
            let mut parameters = [0; 64];
            parameters[..8].copy_from_slice(&tcb);
            parameters[8] = flags;
            machine.execute(Command::SnpConfig, &parameters)
        };
        assert_eq!(config([10, 0, 0, 0, 0, 0, 0x16, 0x54], 1), Status::Success);
        assert_eq!(config([10, 0, 0, 0, 0, 0, 0x18, 0x54], 0), Status::InvalidParameter);
        assert_eq!(config([10, 0, 1, 0, 0, 0, 0x16, 0x54], 0), Status::InvalidParameter);
        assert_eq!(config([0; 8], 4), Status::InvalidParameter);
        assert_eq!(machine.psp.snp_settings.reported.snp, 0x16);
        assert!(machine.psp.snp_settings.mask_chip_id);
    }
}
