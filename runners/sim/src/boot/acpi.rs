//! The ACPI tables, as firmware leaves them (specification 6.5).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Name, Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::devices::acpi_pm::SLEEP_TYPE_S5;
use crate::devices::iommu;
use crate::encryption::{IOMMU, IOMMU_CAPABILITY, IOMMU_REGISTERS};
use crate::mmio::{IOAPIC, LAPIC};
use crate::ports::{ACPI_PM, RESET_CONTROL, RESET_NOW};
use crate::ram::{LOW_END, Ram};

const OEM: [u8; 6] = *b"PRIVET";
const MACHINE: [u8; 8] = *b"SIM     ";
const REVISION: u32 = 1;
/// Interrupt of the power-management registers.
const SCI: u8 = 9;

/// Where the tables lie, and how long all of them may be.
pub(super) const TABLES: std::ops::Range<u64> = 0xe_0000..0x10_0000;

/// Tables one behind the other.
struct Tables<'a> {
    ram: &'a mut Ram,
    next: u64,
}

impl Tables<'_> {
    /// Adds a table; its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.add_bytes(&bytes)
    }

    fn add_bytes(&mut self, bytes: &[u8]) -> u64 {
        // The FACS wants 64 bytes.
        const ALIGN: u64 = 64;
        let at = self.next.next_multiple_of(ALIGN);
        self.ram.write(at, bytes);
        self.next = at + bytes.len() as u64;
        at
    }
}

/// Puts the tables into memory; the address of the RSDP.
pub(super) fn load(ram: &mut Ram, cpus: usize, with_iommu: bool) -> u64 {
    let mut tables = Tables { ram, next: TABLES.start };
    let facs = tables.add(&FACS::new());
    let dsdt = tables.add_bytes(dsdt().as_slice());
    let fadt = tables.add(&fadt(facs, dsdt));
    let madt = tables.add_bytes(madt(cpus).as_slice());
    let mut xsdt = XSDT::new(OEM, MACHINE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if with_iommu {
        xsdt.add_entry(tables.add_bytes(ivrs().as_slice()));
    }
    let xsdt = tables.add(&xsdt);
    tables.add(&Rsdp::new(OEM, xsdt))
}

fn port(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(Space::SystemIo, bytes * 8, 0, access, port.into())
}

/// The fixed hardware: no SMI, since the machine is in ACPI mode from the beginning.
fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const NO_VGA: u16 = 1 << 2;
    // No C2 and no C3 state (section 5.2.9: above 100 us and 1000 us).
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let mut fadt = FADTBuilder::new(OEM, MACHINE, REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(ACPI_PM).into();
    fadt.pm1a_cnt_blk = u32::from(ACPI_PM + 4).into();
    fadt.pm_tmr_blk = u32::from(ACPI_PM + 8).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = port(ACPI_PM, 4, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(ACPI_PM + 4, 2, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(ACPI_PM + 8, 4, AccessSize::DwordAccess);
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    fadt.century = 0x32;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    fadt.reset_reg = port(RESET_CONTROL, 1, AccessSize::ByteAccess);
    fadt.reset_value = 1 << 1 | RESET_NOW;
    fadt.finalize()
}

/// Processors, the I/O APIC, and what is not wired one to one (section 5.2.12).
fn madt(cpus: usize) -> Sdt {
    const WITH_8259: u32 = 1;
    const HEADER: u32 = 36;
    let mut madt = Sdt::new(*b"APIC", HEADER, 4, OEM, MACHINE, REVISION);
    madt.append_slice(&(LAPIC as u32).to_le_bytes());
    madt.append_slice(&WITH_8259.to_le_bytes());
    for id in 0..cpus as u8 {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut madt);
    }
    IoApic::new(0, IOAPIC as u32, 0).to_aml_bytes(&mut madt);
    // Interrupt source overrides: the timer is at line 2, and the SCI is active high and level triggered.
    let source_override = |irq: u8, line: u8, flags: u8| [2, 10, 0, irq, line, 0, 0, 0, flags, 0];
    madt.append_slice(&source_override(0, 2, 0));
    madt.append_slice(&source_override(SCI, SCI, 0b1101));
    // NMIs come in at LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

/// The IOMMU (48882, chapter 5). It has all of bus 0.
fn ivrs() -> Sdt {
    const HEADER: u32 = 36;
    const EXTENDED_FEATURES: u32 = 1 << 0;
    const HARDWARE_DEFINITION: u8 = 0x11;
    const FIRST_OF_RANGE: u8 = 3;
    const LAST_OF_RANGE: u8 = 4;
    let device = |kind: u8, requester: u16| [kind, requester.to_le_bytes()[0], requester.to_le_bytes()[1], 0];
    let mut block = vec![HARDWARE_DEFINITION, 0, 0, 0];
    block.extend(IOMMU.requester().to_le_bytes());
    block.extend(u16::from(IOMMU_CAPABILITY).to_le_bytes());
    block.extend(IOMMU_REGISTERS.to_le_bytes());
    // Segment, information, attributes.
    block.extend([0; 8]);
    block.extend(iommu::FEATURES.to_le_bytes());
    block.extend(iommu::FEATURES_2.to_le_bytes());
    block.extend(device(FIRST_OF_RANGE, 0));
    block.extend(device(LAST_OF_RANGE, 0xff));
    let length = (block.len() as u16).to_le_bytes();
    block[2..4].copy_from_slice(&length);
    let mut ivrs = Sdt::new(*b"IVRS", HEADER, 2, OEM, MACHINE, REVISION);
    ivrs.append_slice(&EXTENDED_FEATURES.to_le_bytes());
    ivrs.append_slice(&[0; 8]);
    ivrs.append_slice(&block);
    ivrs
}

/// S5, and the host bridge of PCI with the windows that it passes on.
fn dsdt() -> Sdt {
    const HEADER: u32 = 36;
    let s5 = SLEEP_TYPE_S5 as u8;
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, MACHINE, REVISION);
    Name::new(Path::new("_S5_"), &Package::new(vec![&s5, &s5, &ZERO, &ZERO])).to_aml_bytes(&mut dsdt);
    let buses = AddressSpace::new_bus_number(0u16, 0xff);
    let ports = [AddressSpace::new_io(0u16, 0xcf7, None), AddressSpace::new_io(0xd00u16, 0xffff, None)];
    let memory =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, LOW_END as u32, IOAPIC as u32 - 1, None);
    let windows = ResourceTemplate::new(vec![&buses, &ports[0], &ports[1], &memory]);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0A03"));
    let first_bus = Name::new(Path::new("_BBN"), &ZERO);
    let resources = Name::new(Path::new("_CRS"), &windows);
    Device::new(Path::new("_SB_.PCI0"), vec![&id, &first_bus, &resources]).to_aml_bytes(&mut dsdt);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ram: &mut Ram, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        ram.read(at, &mut bytes);
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    fn table(ram: &mut Ram, at: u64) -> Vec<u8> {
        let header = read(ram, at, 8);
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        read(ram, at, length as usize)
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_adds_up() {
        let mut ram = Ram::new(2 << 20).unwrap();
        let rsdp = load(&mut ram, 8, true);
        assert!(TABLES.contains(&rsdp));
        let rsdp = read(&mut ram, rsdp, 36);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(&mut ram, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        assert_eq!(sum(&xsdt), 0);
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let table = table(&mut ram, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&table), 0);
            if &table[..4] == b"FACP" {
                let dsdt = u64::from_le_bytes(table[140..148].try_into().unwrap());
                let facs = u32::from_le_bytes(table[36..40].try_into().unwrap());
                assert_eq!(&read(&mut ram, dsdt, 4), b"DSDT");
                assert_eq!((&read(&mut ram, facs.into(), 4)[..], facs % 64), (&b"FACS"[..], 0));
            }
            names.push(table[..4].to_vec());
        }
        assert_eq!(names, [b"FACP", b"APIC", b"IVRS"]);
    }
}
