//! Intel's TDX module, which launches and runs TDs (Intel TDX module base architecture and ABI specifications).
//!
//! Here the module is silicon: SEAMCALL is a function of the caller's registers, memory and the module's state, and
//! answers with a [`Status`]. Nothing happens between calls, so nobody ever waits for a lock: a leaf that is busy on
//! hardware because another runs is busy here only if the [`Injector`] says so.
//!
//! Where published modules differ from each other, this one does what Linux 7.3 takes for granted; where that happens
//! is written at the place.

mod cpuid;
mod execution;
mod field;
mod guest;
mod hkid;
mod injector;
mod leaf;
mod management;
mod measurement;
mod memory;
mod pamt;
mod physical;
mod report;
mod sept;
mod shared_ept;
mod status;
mod surroundings;
mod system;
mod td;
mod td_params;
mod tdmr;
#[cfg(test)]
mod test_machine;
mod tracking;
mod vcpu;
mod virtual_apic;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use guest::{Entered, GuestCall, GuestPage};
pub use injector::{Fault, Injector};
pub use leaf::{GuestLeaf, HostLeaf};
pub use pamt::PageType;
pub use status::{Code, Operand, Status};
pub use surroundings::{Chip, Registers, Surroundings};
pub use vcpu::{HostControls, VeInfo};

use crate::encryption::Key;
use crate::{Rule, Rules};
use execution::Running;
use hkid::Hkids;
use pamt::{PAGE, Pamt};
use system::System;
use td::Td;
use vcpu::Vcpu;

/// Attributes that a TD may have: SEPT_VE_DISABLE. Linux allows no other.
const ATTRIBUTES: u64 = SEPT_VE_DISABLE;
/// Attribute: an access to a pending page is no #VE.
const SEPT_VE_DISABLE: u64 = 1 << 28;
/// States that each TD has: x87 and SSE.
const XFAM_FIXED1: u64 = 3;
/// TDX_FEATURES0: NO_RBP_MOD and TOPOLOGY_ENUM, which Linux demands.
const FEATURES: u64 = 1 << 18 | 1 << 20;
/// vCPUs that a TD may have.
const MAX_VCPUS: u16 = 576;
/// Control pages of a TD.
const TDCS_PAGES: usize = 6;
/// Pages of a vCPU, its root included.
const TDVPS_PAGES: usize = 6;

/// States that a TD may have: what the module knows of those that the processors have.
fn xfam_fixed0(chip: &Chip) -> u64 {
    0x0006_DBE7 & chip.xfam
}

/// The module and all that it knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tdx {
    rules: Rules,
    chip: Chip,
    system: System,
    injector: Injector,
    keys: u32,
    own_hkid: u16,
    hkids: Hkids,
    /// TDH.PHYMEM.CACHE.WB was interrupted, and may be resumed.
    write_back_interrupted: bool,
    pamt: Pamt,
    /// By the address of their TDR.
    tds: BTreeMap<u64, Td>,
    /// By the address of their TDVPR.
    vcpus: BTreeMap<u64, Vcpu>,
    /// By processor.
    running: BTreeMap<usize, Running>,
    /// How many vCPUs have a world of the processors' translations.
    worlds: u32,
}

impl Tdx {
    /// The module as firmware has loaded it.
    #[must_use]
    pub fn new(chip: Chip) -> Tdx {
        Tdx {
            rules: Rules::default(),
            system: System::Loaded,
            injector: Injector::default(),
            keys: 0,
            own_hkid: 0,
            hkids: Hkids::new(chip.first_hkid, chip.hkids),
            write_back_interrupted: false,
            pamt: Pamt::default(),
            tds: BTreeMap::new(),
            vcpus: BTreeMap::new(),
            running: BTreeMap::new(),
            worlds: 0,
            chip,
        }
    }

    /// From here on only these rules hold.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Whether this rule holds.
    fn holds(&self, rule: Rule) -> bool {
        self.rules.hold(rule)
    }

    /// Failures to come.
    pub fn injector(&mut self) -> &mut Injector {
        &mut self.injector
    }

    /// How many pages of a kind the module holds.
    #[must_use]
    pub fn pages(&self, kind: PageType) -> usize {
        self.pamt.count(kind)
    }

    /// Executes SEAMCALL with this RAX; results are in `registers`. RAX afterwards.
    ///
    /// TDH.VP.ENTER is not a call of this kind: it switches.
    pub fn seamcall(&mut self, around: &mut Surroundings<'_>, rax: u64, registers: &mut Registers) -> u64 {
        let version = (rax >> 16 & 0xFF) as u8;
        let known = HostLeaf::numbered(rax as u16).filter(|leaf| rax >> 24 == 0 && version <= leaf.newest_version());
        let Some(leaf) = known else { return Code::OperandInvalid.on(Operand::Rax).bits() };
        if let Some(status) = self.injector.called(leaf) {
            self.write_back_interrupted |= leaf == HostLeaf::PhymemCacheWb && status.code == Code::InterruptedResumable;
            return status.bits();
        }
        match self.dispatch(around, leaf, version, registers) {
            Ok(()) => Status::SUCCESS.bits(),
            Err(status) => status.bits(),
        }
    }

    fn dispatch(
        &mut self,
        around: &mut Surroundings<'_>,
        leaf: HostLeaf,
        version: u8,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        match leaf {
            HostLeaf::SysInit => return self.sys_init(registers),
            HostLeaf::SysLpInit => return self.sys_lp_init(around),
            HostLeaf::SysRd => return self.sys_rd(around, registers),
            HostLeaf::SysConfig => return self.sys_config(around, registers),
            HostLeaf::SysKeyConfig => return self.sys_key_config(around),
            HostLeaf::SysTdmrInit => return self.sys_tdmr_init(around, registers),
            HostLeaf::SysDisable => return self.sys_disable(),
            _ => self.require_ready()?,
        }
        match leaf {
            HostLeaf::MngCreate => self.mng_create(around, registers),
            HostLeaf::MngKeyConfig => self.mng_key_config(around, registers),
            HostLeaf::MngAddcx => self.mng_addcx(around, registers),
            HostLeaf::MngInit => self.mng_init(around, registers),
            HostLeaf::MngRd => self.mng_rd(registers),
            HostLeaf::MngVpflushdone => self.mng_vpflushdone(registers),
            HostLeaf::MngKeyFreeid => self.mng_key_freeid(registers),
            HostLeaf::MrExtend => self.mr_extend(around, registers),
            HostLeaf::MrFinalize => self.mr_finalize(registers),
            HostLeaf::VpCreate => self.vp_create(around, registers),
            HostLeaf::VpAddcx => self.vp_addcx(around, registers),
            HostLeaf::VpInit => self.vp_init(around, registers, version),
            HostLeaf::VpFlush => self.vp_flush(around, registers),
            HostLeaf::VpRd => self.vp_rd(around, registers),
            HostLeaf::VpWr => self.vp_wr(around, registers),
            HostLeaf::MemSeptAdd => self.mem_sept_add(around, registers),
            HostLeaf::MemSeptRemove => self.mem_sept_remove(around, registers),
            HostLeaf::MemPageAdd => self.mem_page_add(around, registers),
            HostLeaf::MemPageAug => self.mem_page_aug(registers),
            HostLeaf::MemPageRemove => self.mem_page_remove(around, registers),
            HostLeaf::MemRangeBlock => self.mem_range_block(registers),
            HostLeaf::MemRangeUnblock => self.mem_range_unblock(registers),
            HostLeaf::MemTrack => self.mem_track(registers),
            HostLeaf::PhymemPageRdmd => self.phymem_page_rdmd(registers),
            HostLeaf::PhymemPageReclaim => self.phymem_page_reclaim(around, registers),
            HostLeaf::PhymemPageWbinvd => self.phymem_page_wbinvd(registers),
            HostLeaf::PhymemCacheWb => self.phymem_cache_wb(around, registers),
            _ => Err(Code::OperandInvalid.on(Operand::Rax)),
        }
    }

    /// A key that nothing has been encrypted with.
    fn new_key(&mut self) -> Key {
        self.keys += 1;
        Key::numbered(self.keys)
    }

    /// The package of the processor that calls.
    fn package(&self, around: &Surroundings<'_>) -> usize {
        self.chip.packages.get(around.processor).copied().unwrap_or(0)
    }

    /// A page that the host gives: aligned, without HKID, in a TDMR, nobody's.
    fn check_new_page(&self, page: u64, operand: Operand) -> Result<(), Status> {
        match self.holds(Rule::GivenPages) {
            true => self.pamt.check(&self.chip, page, PageType::Free, operand),
            false => self.chip.check_page(page, PAGE, operand),
        }
    }

    /// A page that the host gives becomes a TD's, cleared under its key.
    fn take_page(
        &mut self,
        around: &mut Surroundings<'_>,
        page: u64,
        kind: PageType,
        tdr: u64,
        operand: Operand,
    ) -> Result<(), Status> {
        self.check_new_page(page, operand)?;
        let td = self.td(tdr, Operand::Tdr)?;
        td.children += 1;
        let key = td.key;
        around.memory.write_as(key, page, &[0; PAGE as usize]);
        self.pamt.take(page, kind, tdr);
        Ok(())
    }

    /// A page is nobody's again. What was in it is gone: the host reads zeros, as it does of any line that a TD has
    /// written.
    fn release_page(&mut self, around: &mut Surroundings<'_>, page: u64, tdr: u64) {
        self.pamt.release(page);
        if self.holds(Rule::RemovedContent) {
            around.memory.write(page, &[0; PAGE as usize]);
        } else if let Some(td) = self.tds.get(&tdr) {
            let mut content = [0; PAGE as usize];
            around.memory.read_as(td.key, page, &mut content);
            around.memory.write(page, &content);
        }
        if let Some(td) = self.tds.get_mut(&tdr) {
            td.children = td.children.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::test_machine::{TDR, TestMachine, page};
    use super::*;

    #[test]
    fn leaves_that_are_not_there_are_named_by_rax() {
        let mut machine = TestMachine::ready();
        let refused = Code::OperandInvalid.on(Operand::Rax).bits();
        for rax in [52, 12, 0xFFFF, 9 | 1 << 16, 22 | 2 << 16, 9 | 1 << 24, 9 | 1 << 63] {
            assert_eq!(machine.call_rax(rax, [0; 4]), refused, "{rax:#x}");
        }
    }

    #[test]
    fn an_injected_failure_changes_nothing() {
        let mut machine = TestMachine::runnable();
        let before = machine.tdx.clone();
        machine.tdx.injector().add("TDH.MEM.RANGE.BLOCK:1:OPERAND_BUSY:TDR".parse().unwrap());
        let block = [test_machine::GPA, TDR, 0, 0];
        machine.refuses(HostLeaf::MemRangeBlock, block, Code::OperandBusy.on(Operand::Tdr));
        assert_eq!(machine.tdx, before);
        assert_eq!(machine.call(HostLeaf::MemRangeBlock, block), 0);
    }

    #[test]
    fn pages_are_counted_by_kind() {
        let machine = TestMachine::runnable();
        assert_eq!(machine.tdx.pages(PageType::Tdr), 1);
        assert_eq!(machine.tdx.pages(PageType::SecureEpt), 3);
        assert_eq!(machine.tdx.pages(PageType::Regular), 1);
        assert_eq!(machine.tdx.pages(PageType::Tdcx), 6 + 5);
        assert_ne!(page(0), TDR);
    }
}
