//! The module's own life: TDH.SYS.* (TDX module ABI).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Tdx;
use super::cpuid;
use super::field::Field;
use super::pamt::{PAGE, Pamt};
use super::status::{Code, Operand, Status};
use super::surroundings::{Registers, Surroundings};
use super::tdmr::{self, MAX_RESERVED, MAX_TDMRS, PAMT_ENTRY, TdmrInfo};
use super::{ATTRIBUTES, FEATURES, MAX_VCPUS, TDCS_PAGES, TDVPS_PAGES, XFAM_FIXED1, xfam_fixed0};
use crate::encryption::Key;

/// How far the module has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum System {
    /// TDH.SYS.INIT is next.
    Loaded,
    /// Processors call TDH.SYS.LP.INIT, then one calls TDH.SYS.CONFIG.
    Initialised { processors: BTreeSet<usize> },
    /// These packages have called TDH.SYS.KEY.CONFIG.
    Configured { packages: BTreeSet<usize>, key: Key },
    /// TDs can be.
    Ready { key: Key },
    /// For ever.
    Disabled,
}

impl Tdx {
    /// Leaves that are for a module that is ready.
    pub(super) fn require_ready(&self) -> Result<(), Status> {
        match self.system {
            System::Ready { .. } => Ok(()),
            System::Disabled => Err(Code::SysShutdown.into()),
            _ => Err(Code::SysNotReady.into()),
        }
    }

    /// The key of the module's own memory and of TDRs.
    pub(super) fn own_key(&self) -> Option<Key> {
        match self.system {
            System::Configured { key, .. } | System::Ready { key } => Some(key),
            _ => None,
        }
    }

    /// TDH.SYS.INIT.
    pub(super) fn sys_init(&mut self, registers: &Registers) -> Result<(), Status> {
        match self.system {
            System::Loaded if registers.rcx != 0 => Err(Code::OperandInvalid.on(Operand::Rcx)),
            System::Loaded => {
                self.system = System::Initialised { processors: BTreeSet::new() };
                Ok(())
            }
            System::Disabled => Err(Code::SysShutdown.into()),
            _ => Err(Code::SysInitNotPending.into()),
        }
    }

    /// TDH.SYS.LP.INIT.
    pub(super) fn sys_lp_init(&mut self, around: &Surroundings<'_>) -> Result<(), Status> {
        match &mut self.system {
            System::Initialised { processors } => match processors.insert(around.processor) {
                true => Ok(()),
                false => Err(Code::SysLpInitDone.into()),
            },
            System::Loaded => Err(Code::SysStateIncorrect.into()),
            System::Disabled => Err(Code::SysShutdown.into()),
            System::Configured { .. } | System::Ready { .. } => Err(Code::SysLpInitDone.into()),
        }
    }

    /// TDH.SYS.RD.
    pub(super) fn sys_rd(&self, around: &Surroundings<'_>, registers: &mut Registers) -> Result<(), Status> {
        match self.system {
            System::Loaded => return Err(Code::SysNotReady.into()),
            System::Disabled => return Err(Code::SysShutdown.into()),
            _ => {}
        }
        registers.r8 = 0;
        registers.r8 = self.platform_field(around, Field::of(registers.rdx))?;
        Ok(())
    }

    /// A field of the platform ("Global Metadata Fields").
    fn platform_field(&self, around: &Surroundings<'_>, field: Field) -> Result<u64, Status> {
        let configurable = cpuid::configurable(around.cpuid);
        let value = match (field.class, field.code) {
            // Version 1.5.06.
            (0x08, 3) => 5,
            (0x08, 4) => 1,
            (0x08, 5) => 6,
            (0x0A, 8) => FEATURES,
            (0x11, 0x08) => MAX_TDMRS,
            (0x11, 0x09) => MAX_RESERVED,
            (0x11, 0x10..=0x12) => PAMT_ENTRY,
            (0x18, 0) => PAGE,
            (0x18, 0x100) => TDCS_PAGES as u64 * PAGE,
            (0x18, 0x200) => TDVPS_PAGES as u64 * PAGE,
            (0x19, 0) => ATTRIBUTES,
            // No attribute has to be set.
            (0x19, 1) => 0,
            (0x19, 2) => xfam_fixed0(&self.chip),
            (0x19, 3) => XFAM_FIXED1,
            (0x19, 4) => configurable.len() as u64,
            (0x19, 8) => u64::from(MAX_VCPUS),
            (0x19, code @ 0x400..0x500) => {
                let leaf = configurable.get(code as usize - 0x400).ok_or(Code::MetadataFieldIdIncorrect)?;
                leaf.id.encode()
            }
            (0x19, code @ 0x500..0x600) => {
                let index = code as usize - 0x500;
                let leaf = configurable.get(index / 2).ok_or(Code::MetadataFieldIdIncorrect)?;
                leaf.bits.halves()[index % 2]
            }
            _ => return Err(Code::MetadataFieldIdIncorrect.on(Operand::Rdx)),
        };
        Ok(value)
    }

    /// TDH.SYS.CONFIG.
    pub(super) fn sys_config(&mut self, around: &mut Surroundings<'_>, registers: &Registers) -> Result<(), Status> {
        match &self.system {
            System::Initialised { processors } if processors.len() == self.chip.packages.len() => {}
            System::Initialised { .. } => return Err(Code::SysLpInitNotDone.into()),
            System::Disabled => return Err(Code::SysShutdown.into()),
            _ => return Err(Code::SysStateIncorrect.into()),
        }
        let Registers { rcx: array, rdx: count, r8: hkid, .. } = *registers;
        self.chip.check_page(array, 512, Operand::Rcx)?;
        if !(1..=MAX_TDMRS).contains(&count) {
            return Err(Code::OperandInvalid.on(Operand::Rdx));
        }
        let mut tdmrs = Vec::new();
        for index in 0..count {
            let pa = crate::read_u64(around.memory, array + index * 8);
            self.chip.check_page(pa, 512, Operand::TdmrInfoPa)?;
            tdmrs.push(TdmrInfo::read(around.memory, pa)?);
        }
        tdmr::check(&tdmrs, &self.chip.convertible)?;
        // Bit 16 asks for PAMTs that grow, which this module has not: it is no HKID either.
        self.own_hkid = self.hkids.reserve(hkid, Operand::R8)?;
        self.pamt = Pamt::new(tdmrs);
        self.system = System::Configured { packages: BTreeSet::new(), key: self.new_key() };
        Ok(())
    }

    /// TDH.SYS.KEY.CONFIG.
    pub(super) fn sys_key_config(&mut self, around: &Surroundings<'_>) -> Result<(), Status> {
        let (package, count) = (self.package(around), self.chip.package_count());
        match &mut self.system {
            System::Configured { packages, key } => {
                if !packages.insert(package) {
                    return Err(Code::KeyConfigured.into());
                }
                if packages.len() == count {
                    self.system = System::Ready { key: *key };
                }
                Ok(())
            }
            System::Disabled => Err(Code::SysShutdown.into()),
            _ => Err(Code::SysKeyConfigNotPending.into()),
        }
    }

    /// TDH.SYS.TDMR.INIT.
    pub(super) fn sys_tdmr_init(
        &mut self,
        around: &mut Surroundings<'_>,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        self.require_ready()?;
        let key = self.own_key().unwrap_or(Key::PLAIN);
        registers.rdx = self.pamt.initialise(around.memory, key, registers.rcx)?;
        Ok(())
    }

    /// TDH.SYS.DISABLE: nothing works any more.
    pub(super) fn sys_disable(&mut self) -> Result<(), Status> {
        self.system = System::Disabled;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::Key;
    use crate::tdx::HostLeaf;
    use crate::tdx::test_machine::{GLOBAL_HKID, TDMR_ARRAY, TestMachine};

    #[test]
    fn the_module_comes_up_in_the_order_of_linux() {
        let mut machine = TestMachine::powered_on();
        assert_eq!(machine.call(HostLeaf::SysInit, [0; 4]), 0);
        for processor in 0..2 {
            machine.processor = processor;
            assert_eq!(machine.call(HostLeaf::SysLpInit, [0; 4]), 0);
        }
        machine.describe_memory();
        assert_eq!(machine.call(HostLeaf::SysConfig, [TDMR_ARRAY, 1, GLOBAL_HKID, 0]), 0);
        for processor in 0..2 {
            machine.processor = processor;
            assert_eq!(
                machine.call(HostLeaf::MngCreate, [0x60_0000, 33, 0, 0]),
                Status::from(Code::SysNotReady).bits()
            );
            assert_eq!(machine.call(HostLeaf::SysKeyConfig, [0; 4]), 0);
        }
        assert_eq!(machine.call(HostLeaf::SysTdmrInit, [0; 4]), 0);
        assert_eq!(machine.registers.rdx, 1 << 30);
        assert_eq!(machine.call(HostLeaf::MngCreate, [0x60_0000, 33, 0, 0]), 0);
    }

    #[test]
    fn each_step_comes_once_and_in_its_order() {
        let mut machine = TestMachine::powered_on();
        let config = [TDMR_ARRAY, 1, GLOBAL_HKID, 0];
        machine.refuses(HostLeaf::SysLpInit, [0; 4], Code::SysStateIncorrect);
        machine.refuses(HostLeaf::SysRd, [0; 4], Code::SysNotReady);
        machine.refuses(HostLeaf::SysConfig, config, Code::SysStateIncorrect);
        machine.refuses(HostLeaf::SysInit, [1, 0, 0, 0], Code::OperandInvalid.on(Operand::Rcx));
        machine.call(HostLeaf::SysInit, [0; 4]);
        machine.refuses(HostLeaf::SysInit, [0; 4], Code::SysInitNotPending);
        machine.call(HostLeaf::SysLpInit, [0; 4]);
        machine.refuses(HostLeaf::SysLpInit, [0; 4], Code::SysLpInitDone);
        machine.refuses(HostLeaf::SysConfig, config, Code::SysLpInitNotDone);
        machine.processor = 1;
        machine.call(HostLeaf::SysLpInit, [0; 4]);
        machine.refuses(HostLeaf::SysKeyConfig, [0; 4], Code::SysKeyConfigNotPending);
        machine.describe_memory();
        assert_eq!(machine.call(HostLeaf::SysConfig, config), 0);
        machine.refuses(HostLeaf::SysConfig, config, Code::SysStateIncorrect);
        machine.refuses(HostLeaf::SysTdmrInit, [0; 4], Code::SysNotReady);
        assert_eq!(machine.call(HostLeaf::SysKeyConfig, [0; 4]), 0);
        machine.refuses(HostLeaf::SysKeyConfig, [0; 4], Code::KeyConfigured);
    }

    #[test]
    fn operands_of_the_configuration_are_checked() {
        let mut machine = TestMachine::with_processors();
        machine.describe_memory();
        machine.refuses(HostLeaf::SysConfig, [8, 1, GLOBAL_HKID, 0], Code::OperandInvalid.on(Operand::Rcx));
        machine.refuses(HostLeaf::SysConfig, [TDMR_ARRAY, 0, GLOBAL_HKID, 0], Code::OperandInvalid.on(Operand::Rdx));
        machine.refuses(HostLeaf::SysConfig, [TDMR_ARRAY, 65, GLOBAL_HKID, 0], Code::OperandInvalid.on(Operand::Rdx));
        machine.refuses(HostLeaf::SysConfig, [TDMR_ARRAY, 1, 31, 0], Code::OperandInvalid.on(Operand::R8));
        let dynamic = GLOBAL_HKID | 1 << 16;
        machine.refuses(HostLeaf::SysConfig, [TDMR_ARRAY, 1, dynamic, 0], Code::OperandInvalid.on(Operand::R8));
        crate::write_u64(&mut machine.memory, TDMR_ARRAY, 0x123);
        machine.refuses(
            HostLeaf::SysConfig,
            [TDMR_ARRAY, 1, GLOBAL_HKID, 0],
            Code::OperandInvalid.on(Operand::TdmrInfoPa),
        );
    }

    /// arch/x86/virt/vmx/tdx/tdx_global_metadata.c, and what check_features() and __tdx_hardware_setup() demand.
    #[test]
    fn linux_finds_the_fields_that_it_needs() {
        let mut machine = TestMachine::with_processors();
        let mut field = |id: u64| {
            assert_eq!(machine.call(HostLeaf::SysRd, [0, id, 0, 0]), 0, "{id:#x}");
            machine.registers.r8
        };
        assert_eq!([0x0800_0001_0000_0004, 0x0800_0001_0000_0003, 0x0800_0001_0000_0005].map(&mut field), [1, 5, 6]);
        assert_eq!(field(0x0A00_0003_0000_0008) & (1 << 18 | 1 << 20), 1 << 18 | 1 << 20);
        assert_eq!(field(0x9800_0001_0000_0100) / 4096, 6);
        assert_eq!(field(0x9800_0001_0000_0200) / 4096, 6);
        assert_ne!(field(0x1900_0003_0000_0000) & 1 << 28, 0, "SEPT_VE_DISABLE");
        assert_eq!(field(0x1900_0003_0000_0003) & !field(0x1900_0003_0000_0002), 0);
        let leaves = field(0x9900_0001_0000_0004);
        assert!((1..=128).contains(&leaves));
        let ids: Vec<u64> = (0..leaves).map(|index| field(0x9900_0003_0000_0400 + index)).collect();
        assert!(ids.contains(&0xFFFF_FFFF_8000_0008), "{ids:x?}");
        for half in 0..2 * leaves {
            field(0x9900_0003_0000_0500 + half);
        }
        let unknown = 0x9900_0003_0000_0500 + 2 * leaves;
        machine.refuses(HostLeaf::SysRd, [0, unknown, 0, 0], Code::MetadataFieldIdIncorrect);
        machine.refuses(HostLeaf::SysRd, [0, 0, 0, 0], Code::MetadataFieldIdIncorrect.on(Operand::Rdx));
    }

    #[test]
    fn a_disabled_module_does_nothing() {
        let mut machine = TestMachine::ready();
        assert_eq!(machine.call(HostLeaf::SysDisable, [0; 4]), 0);
        for leaf in [HostLeaf::SysInit, HostLeaf::SysLpInit, HostLeaf::MngCreate, HostLeaf::SysKeyConfig] {
            machine.refuses(leaf, [0; 4], Code::SysShutdown);
        }
        assert_eq!(machine.tdx.own_key(), None::<Key>);
    }
}
