//! Pages and caches of the machine: TDH.PHYMEM.* (TDX module ABI).

use super::Tdx;
use super::pamt::PageType;
use super::status::{Code, Operand, Status};
use super::surroundings::{Registers, Surroundings};
use super::td::Lifecycle;
use crate::Rule;

impl Tdx {
    /// RCX, RDX, R8 and R9 of leaves that tell what a page is: type, owner, size, epoch.
    fn tell_page(&self, page: u64, kind: PageType, registers: &mut Registers) {
        let entry = self.pamt.entry(page);
        registers.rcx = kind as u64;
        registers.rdx = entry.map_or(0, |entry| entry.owner);
        registers.r8 = 0;
        registers.r9 = entry.map_or(0, |entry| entry.blocked);
    }

    /// TDH.PHYMEM.PAGE.RDMD.
    pub(super) fn phymem_page_rdmd(&mut self, registers: &mut Registers) -> Result<(), Status> {
        let page = registers.rcx;
        self.chip.check_page(page, 4096, Operand::Rcx)?;
        let kind = self.pamt.kind(page).ok_or(Code::OperandAddrRangeError.on(Operand::Rcx))?;
        self.tell_page(page, kind, registers);
        Ok(())
    }

    /// TDH.PHYMEM.PAGE.RECLAIM.
    pub(super) fn phymem_page_reclaim(
        &mut self,
        around: &mut Surroundings<'_>,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        let page = registers.rcx;
        self.chip.check_page(page, 4096, Operand::Rcx)?;
        let kind = self.pamt.kind(page).ok_or(Code::OperandAddrRangeError.on(Operand::Rcx))?;
        self.tell_page(page, kind, registers);
        let tdr = match kind {
            PageType::Free => return Err(Code::PageAlreadyFree.on(Operand::Rcx)),
            PageType::Reserved => return Err(Code::PageMetadataIncorrect.on(Operand::Rcx)),
            PageType::Tdr => page,
            _ => registers.rdx,
        };
        let is_last = self.holds(Rule::LastPage);
        let td = self.td(tdr, Operand::Tdr)?;
        if td.lifecycle != Lifecycle::Teardown {
            return Err(Code::LifecycleStateIncorrect.on(Operand::Tdr));
        }
        if kind == PageType::Tdr {
            if td.children > 0 && is_last {
                return Err(Code::TdAssociatedPagesExist.on(Operand::Tdr));
            }
            self.tds.remove(&page);
        }
        self.vcpus.remove(&page);
        self.release_page(around, page, tdr);
        Ok(())
    }

    /// TDH.PHYMEM.PAGE.WBINVD. Caches are not simulated, so there is nothing to write back.
    pub(super) fn phymem_page_wbinvd(&mut self, registers: &Registers) -> Result<(), Status> {
        let (page, hkid) =
            (registers.rcx & ((1 << self.chip.address_bits) - 1), registers.rcx >> self.chip.address_bits);
        let hkids = u64::from(self.chip.first_hkid)..u64::from(self.chip.first_hkid) + u64::from(self.chip.hkids);
        if !page.is_multiple_of(4096) || !hkids.contains(&hkid) {
            return Err(Code::OperandInvalid.on(Operand::Rcx));
        }
        self.pamt.check(&self.chip, page, PageType::Free, Operand::Rcx)
    }

    /// TDH.PHYMEM.CACHE.WB. Only the injector interrupts it; then it is resumed, or begun again.
    pub(super) fn phymem_cache_wb(&mut self, around: &Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let interrupted = std::mem::take(&mut self.write_back_interrupted);
        match registers.rcx {
            0 => self.hkids.written_back(self.package(around)),
            1 if interrupted => self.hkids.written_back(self.package(around)),
            1 => Err(Code::WbcacheResumeError.into()),
            _ => Err(Code::OperandInvalid.on(Operand::Rcx)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::HostLeaf;
    use crate::tdx::test_machine::{GLOBAL_HKID, HKID, TDR, TestMachine, page, tdvpr, vcpu_page};

    #[test]
    fn what_a_page_is_can_be_asked() {
        let mut machine = TestMachine::with_td();
        let mut told = |page: u64| {
            assert_eq!(machine.call(HostLeaf::PhymemPageRdmd, [page, 0, 0, 0]), 0);
            (machine.registers.rcx, machine.registers.rdx)
        };
        assert_eq!(told(TDR), (4, 0));
        assert_eq!(told(page(0)), (5, TDR));
        assert_eq!(told(page(50)), (0, 0));
        assert_eq!(told(0), (1, 0), "the first MiB is reserved");
        machine.refuses(HostLeaf::PhymemPageRdmd, [1 << 40, 0, 0, 0], Code::OperandAddrRangeError.on(Operand::Rcx));
    }

    #[test]
    fn a_td_is_torn_down_in_the_order_of_linux() {
        let mut machine = TestMachine::with_vcpu();
        let reclaim = |page: u64| [page, 0, 0, 0];
        machine.refuses(HostLeaf::PhymemPageReclaim, reclaim(tdvpr(0)), Code::LifecycleStateIncorrect.on(Operand::Tdr));
        machine.tear_down();
        machine.refuses(HostLeaf::PhymemPageReclaim, reclaim(TDR), Code::TdAssociatedPagesExist.on(Operand::Tdr));
        for child in (0..5).map(|index| vcpu_page(0, index)).chain([tdvpr(0)]).chain((0..6).map(page)) {
            assert_eq!(machine.call(HostLeaf::PhymemPageReclaim, reclaim(child)), 0);
            assert_eq!(machine.registers.rdx, TDR);
        }
        assert_eq!(machine.call(HostLeaf::PhymemPageReclaim, reclaim(TDR)), 0);
        machine.refuses(HostLeaf::PhymemPageReclaim, reclaim(TDR), Code::PageAlreadyFree.on(Operand::Rcx));
        assert!(machine.tdx.tds.is_empty() && machine.tdx.vcpus.is_empty());
        assert_eq!(machine.call(HostLeaf::PhymemPageWbinvd, [TDR | GLOBAL_HKID << 46, 0, 0, 0]), 0);
    }

    #[test]
    fn the_first_mib_is_never_reclaimed() {
        let mut machine = TestMachine::ready();
        machine.refuses(HostLeaf::PhymemPageReclaim, [0; 4], Code::PageMetadataIncorrect.on(Operand::Rcx));
    }

    #[test]
    fn a_page_is_written_back_with_its_hkid_when_it_is_free() {
        let mut machine = TestMachine::with_td();
        let wbinvd = HostLeaf::PhymemPageWbinvd;
        assert_eq!(machine.call(wbinvd, [page(50) | HKID << 46, 0, 0, 0]), 0);
        machine.refuses(wbinvd, [page(50), 0, 0, 0], Code::OperandInvalid.on(Operand::Rcx));
        machine.refuses(wbinvd, [page(0) | HKID << 46, 0, 0, 0], Code::PageMetadataIncorrect.on(Operand::Rcx));
    }

    /// arch/x86/kvm/vmx/tdx.c: smp_func_do_phymem_cache_wb().
    #[test]
    fn an_interrupted_write_back_is_resumed_once() {
        let mut machine = TestMachine::with_td();
        assert_eq!(machine.call(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0]), 0);
        machine.tdx.injector().add("TDH.PHYMEM.CACHE.WB:1:INTERRUPTED_RESUMABLE".parse().unwrap());
        machine.refuses(HostLeaf::PhymemCacheWb, [0; 4], Code::InterruptedResumable);
        assert_eq!(machine.call(HostLeaf::PhymemCacheWb, [1, 0, 0, 0]), 0);
        machine.refuses(HostLeaf::PhymemCacheWb, [1, 0, 0, 0], Code::WbcacheResumeError);
    }

    #[test]
    fn nothing_is_written_back_without_need() {
        let mut machine = TestMachine::with_td();
        machine.refuses(HostLeaf::PhymemCacheWb, [0; 4], Code::NoHkidReadyToWbcache);
        machine.refuses(HostLeaf::PhymemCacheWb, [1, 0, 0, 0], Code::WbcacheResumeError);
        machine.refuses(HostLeaf::PhymemCacheWb, [2, 0, 0, 0], Code::OperandInvalid.on(Operand::Rcx));
    }
}
