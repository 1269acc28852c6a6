//! A TD's life: TDH.MNG.* and TDH.MR.FINALIZE (TDX module ABI).

use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use super::Tdx;
use super::cpuid::{LeafId, TdCpuid};
use super::field::Field;
use super::pamt::{PAGE, PageType};
use super::status::{Code, Operand, Status};
use super::surroundings::{Registers, Surroundings};
use super::td::{Control, Lifecycle, Td};
use super::td_params::TdParams;
use super::{TDCS_PAGES, xfam_fixed0};
use crate::Rule;

impl Tdx {
    /// The TD whose TDR an operand names.
    pub(super) fn td(&mut self, tdr: u64, operand: Operand) -> Result<&mut Td, Status> {
        self.pamt.check(&self.chip, tdr, PageType::Tdr, operand)?;
        self.tds.get_mut(&tdr).ok_or(Code::PageMetadataIncorrect.on(operand))
    }

    /// TDH.MNG.CREATE.
    pub(super) fn mng_create(&mut self, around: &mut Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let tdr = registers.rcx;
        self.check_new_page(tdr, Operand::Rcx)?;
        let hkid = self.hkids.assign(registers.rdx, Operand::Rdx)?;
        let key = self.new_key();
        // The TDR itself is under the module's own key: it outlives that of its TD.
        let own = self.own_key().unwrap_or(key);
        around.memory.write_as(own, tdr, &[0; PAGE as usize]);
        self.pamt.take(tdr, PageType::Tdr, 0);
        self.tds.insert(tdr, Td::new(hkid, key));
        Ok(())
    }

    /// TDH.MNG.KEY.CONFIG.
    pub(super) fn mng_key_config(&mut self, around: &Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let (package, count) = (self.package(around), self.chip.package_count());
        let td = self.td(registers.rcx, Operand::Rcx)?;
        match &mut td.lifecycle {
            Lifecycle::HkidAssigned { packages } => {
                if !packages.insert(package) {
                    return Err(Code::KeyConfigured.into());
                }
                if packages.len() == count {
                    td.lifecycle = Lifecycle::KeysConfigured;
                }
                Ok(())
            }
            Lifecycle::KeysConfigured => Err(Code::KeyConfigured.into()),
            Lifecycle::Blocked | Lifecycle::Teardown => Err(Code::LifecycleStateIncorrect.on(Operand::Tdr)),
        }
    }

    /// TDH.MNG.ADDCX.
    pub(super) fn mng_addcx(&mut self, around: &mut Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        let Registers { rcx: page, rdx: tdr, .. } = *registers;
        let td = self.td(tdr, Operand::Rdx)?;
        td.require_keys()?;
        if usize::from(td.tdcx) >= TDCS_PAGES {
            return Err(Code::TdcxNumIncorrect.on(Operand::Tdcx));
        }
        self.take_page(around, page, PageType::Tdcx, tdr, Operand::Rcx)?;
        self.td(tdr, Operand::Rdx)?.tdcx += 1;
        Ok(())
    }

    /// TDH.MNG.INIT.
    pub(super) fn mng_init(&mut self, around: &mut Surroundings<'_>, registers: &mut Registers) -> Result<(), Status> {
        let (tdr, at) = (registers.rcx, registers.rdx);
        // The extended error.
        registers.rcx = 0;
        let chip = self.chip.clone();
        let td = self.td(tdr, Operand::Rcx)?;
        td.require_tdcs()?;
        if td.control.is_some() {
            return Err(Code::OpStateIncorrect.on(Operand::OpState));
        }
        chip.check_page(at, size_of::<TdParams>() as u64, Operand::Rdx)?;
        let mut params = TdParams::new_zeroed();
        around.memory.read(at, params.as_mut_bytes());
        let checked = params.check(&chip)?;
        let cpuid = TdCpuid::new(around.cpuid, &params.cpuid(), checked.xfam & xfam_fixed0(&chip)).map_err(|leaf| {
            registers.rcx = leaf.encode();
            Code::OperandInvalid.on(Operand::CpuidConfig)
        })?;
        td.control = Some(Box::new(Control::new(&params, &checked, cpuid, chip.tsc_khz, around.tsc)));
        Ok(())
    }

    /// TDH.MNG.RD.
    pub(super) fn mng_rd(&mut self, registers: &mut Registers) -> Result<(), Status> {
        registers.r8 = 0;
        let control = self.td(registers.rcx, Operand::Rcx)?.control()?;
        let field = Field::of(registers.rdx);
        registers.r8 = match (field.class, field.code) {
            (17, 10) => control.tsc_offset,
            (17, 11) => control.tsc_multiplier,
            (17, 0x16) => control.config_flags,
            (17, 0x17) => control.td_ctls,
            (20, code) => {
                let leaf = LeafId::of_field(code).and_then(|id| control.cpuid.field(id));
                leaf.ok_or(Code::MetadataFieldIdIncorrect.on(Operand::Rdx))?.halves()[(code & 1) as usize]
            }
            _ => return Err(Code::MetadataFieldNotReadable.on(Operand::Rdx)),
        };
        Ok(())
    }

    /// TDH.MR.FINALIZE.
    pub(super) fn mr_finalize(&mut self, registers: &Registers) -> Result<(), Status> {
        let control = self.td(registers.rcx, Operand::Rcx)?.control()?;
        control.require_building()?;
        if control.vcpus.is_empty() {
            return Err(Code::NoVcpus.into());
        }
        control.mrtd.close()
    }

    /// TDH.MNG.VPFLUSHDONE.
    pub(super) fn mng_vpflushdone(&mut self, registers: &Registers) -> Result<(), Status> {
        let packages = self.chip.packages.iter().copied().collect();
        let td = self.td(registers.rcx, Operand::Rcx)?;
        if matches!(td.lifecycle, Lifecycle::Blocked | Lifecycle::Teardown) {
            return Err(Code::LifecycleStateIncorrect.on(Operand::Tdr));
        }
        if td.control.as_ref().is_some_and(|control| control.associated > 0) {
            return Err(Code::FlushvpNotDone.into());
        }
        td.lifecycle = Lifecycle::Blocked;
        let hkid = td.hkid;
        self.hkids.retire(hkid, packages);
        Ok(())
    }

    /// TDH.MNG.KEY.FREEID.
    pub(super) fn mng_key_freeid(&mut self, registers: &Registers) -> Result<(), Status> {
        let td = self.td(registers.rcx, Operand::Rcx)?;
        if td.lifecycle != Lifecycle::Blocked {
            return Err(Code::LifecycleStateIncorrect.on(Operand::Tdr));
        }
        let hkid = td.hkid;
        match self.hkids.free(hkid) {
            Err(status) if self.holds(Rule::FlushedHkid) => return Err(status),
            _ => {}
        }
        self.td(registers.rcx, Operand::Rcx)?.lifecycle = Lifecycle::Teardown;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::HostLeaf;
    use crate::tdx::test_machine::{HKID, PARAMS, TDR, TestMachine, page, td_params};

    #[test]
    fn a_td_is_made_in_the_order_of_linux() {
        let mut machine = TestMachine::ready();
        assert_eq!(machine.call(HostLeaf::MngCreate, [TDR, HKID, 0, 0]), 0);
        machine.refuses(HostLeaf::MngAddcx, [page(0), TDR, 0, 0], Code::TdKeysNotConfigured.on(Operand::Tdr));
        for processor in 0..2 {
            machine.processor = processor;
            assert_eq!(machine.call(HostLeaf::MngKeyConfig, [TDR, 0, 0, 0]), 0);
        }
        machine.refuses(HostLeaf::MngKeyConfig, [TDR, 0, 0, 0], Code::KeyConfigured);
        machine.memory_write(PARAMS, &td_params());
        for index in 0..6 {
            machine.refuses(HostLeaf::MngInit, [TDR, PARAMS, 0, 0], Code::TdcsNotAllocated.on(Operand::Tdr));
            assert_eq!(machine.call(HostLeaf::MngAddcx, [page(index), TDR, 0, 0]), 0);
        }
        machine.refuses(HostLeaf::MngAddcx, [page(6), TDR, 0, 0], Code::TdcxNumIncorrect.on(Operand::Tdcx));
        machine.refuses(
            HostLeaf::MngRd,
            [TDR, 0x1100_0000_0000_000A, 0, 0],
            Code::OpStateIncorrect.on(Operand::OpState),
        );
        assert_eq!(machine.call(HostLeaf::MngInit, [TDR, PARAMS, 0, 0]), 0);
        machine.refuses(HostLeaf::MngInit, [TDR, PARAMS, 0, 0], Code::OpStateIncorrect.on(Operand::OpState));
    }

    #[test]
    fn a_new_page_is_nobodys() {
        let mut machine = TestMachine::with_td();
        machine.refuses(HostLeaf::MngCreate, [TDR, HKID + 1, 0, 0], Code::PageMetadataIncorrect.on(Operand::Rcx));
        machine.refuses(HostLeaf::MngCreate, [page(50) + 1, HKID + 1, 0, 0], Code::OperandInvalid.on(Operand::Rcx));
        machine.refuses(HostLeaf::MngCreate, [1 << 40, HKID + 1, 0, 0], Code::OperandAddrRangeError.on(Operand::Rcx));
        machine.refuses(HostLeaf::MngCreate, [page(50), HKID, 0, 0], Code::HkidNotFree.on(Operand::Rdx));
    }

    #[test]
    fn the_host_cannot_read_control_pages() {
        let mut machine = TestMachine::with_td();
        for page in [TDR, page(0)] {
            assert_ne!(crate::read_array::<64>(&mut machine.memory, page), [0; 64]);
        }
    }

    #[test]
    fn a_bit_that_is_not_configurable_is_named() {
        let mut machine = TestMachine::with_keys();
        let mut params = td_params();
        params[256] = 1;
        machine.memory_write(PARAMS, &params);
        machine.refuses(HostLeaf::MngInit, [TDR, PARAMS, 0, 0], Code::OperandInvalid.on(Operand::CpuidConfig));
        assert_eq!(machine.registers.rcx, 0xFFFF_FFFF_0000_0001);
        machine.refuses(HostLeaf::MngInit, [TDR, PARAMS + 512, 0, 0], Code::OperandInvalid.on(Operand::Rdx));
    }

    /// arch/x86/kvm/vmx/tdx.c: tdx_vcpu_get_cpuid().
    #[test]
    fn linux_reads_time_and_cpuid_of_a_td() {
        let mut machine = TestMachine::with_td();
        let mut read = |field: u64| {
            let status = machine.call(HostLeaf::MngRd, [TDR, field, 0, 0]);
            (status == 0).then_some(machine.registers.r8)
        };
        assert_eq!(read(0x1100_0000_0000_000B), Some(1 << 48));
        assert!(read(0x1100_0000_0000_000A).is_some());
        let cpuid = 0x9410_0003_0000_0000;
        assert_eq!(read(cpuid | 0x1FE).map(|half| half as u32), Some(0x21));
        assert!(read(cpuid | 1 << 16 | 0x1FE).is_some() && read(cpuid | 1 << 16 | 0x1FF).is_some());
        assert_eq!(read(cpuid | 7 << 9 | 0x1FE), None, "it has subleaves");
        assert!(read(cpuid | 7 << 9).is_some());
        assert_eq!(read(0x1100_0000_0000_0001), None);
    }

    #[test]
    fn a_td_without_vcpus_is_never_finished() {
        let mut machine = TestMachine::with_td();
        machine.refuses(HostLeaf::MrFinalize, [TDR, 0, 0, 0], Code::NoVcpus);
        machine.add_vcpu(0);
        assert_eq!(machine.call(HostLeaf::MrFinalize, [TDR, 0, 0, 0]), 0);
        machine.refuses(HostLeaf::MrFinalize, [TDR, 0, 0, 0], Code::OpStateIncorrect.on(Operand::OpState));
    }

    #[test]
    fn an_hkid_is_free_again_when_all_packages_have_flushed() {
        let mut machine = TestMachine::with_td();
        machine.refuses(HostLeaf::MngKeyFreeid, [TDR, 0, 0, 0], Code::LifecycleStateIncorrect.on(Operand::Tdr));
        assert_eq!(machine.call(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0]), 0);
        machine.refuses(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0], Code::LifecycleStateIncorrect.on(Operand::Tdr));
        machine.refuses(HostLeaf::MngKeyFreeid, [TDR, 0, 0, 0], Code::WbcacheNotComplete.on(Operand::Wbcache));
        for processor in 0..2 {
            machine.processor = processor;
            assert_eq!(machine.call(HostLeaf::PhymemCacheWb, [0; 4]), 0);
        }
        assert_eq!(machine.call(HostLeaf::MngKeyFreeid, [TDR, 0, 0, 0]), 0);
        assert_eq!(machine.call(HostLeaf::MngCreate, [page(50), HKID, 0, 0]), 0);
    }

    /// arch/x86/kvm/vmx/tdx.c: __tdx_td_init() tears down what is half made.
    #[test]
    fn a_td_without_keys_is_torn_down_too() {
        let mut machine = TestMachine::ready();
        machine.call(HostLeaf::MngCreate, [TDR, HKID, 0, 0]);
        assert_eq!(machine.call(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0]), 0);
    }

    #[test]
    fn a_vcpu_of_some_processor_holds_the_td() {
        let mut machine = TestMachine::with_vcpu();
        machine.refuses(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0], Code::FlushvpNotDone);
        assert_eq!(machine.call(HostLeaf::VpFlush, [crate::tdx::test_machine::tdvpr(0), 0, 0, 0]), 0);
        assert_eq!(machine.call(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0]), 0);
    }
}
