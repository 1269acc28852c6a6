//! The ACPI tables of the guest's machine (specification 6.5): how many processors it has, and either that interrupts come
//! by the I/O APIC, or that there is nothing of old hardware and how processors are woken.
//!
//! Without an I/O APIC Linux has, on a machine with old hardware, the timer's interrupts from the 8259, through LINT0. One that comes while LINT0 is masked is as good
//! as lost: KVM tells no processor of it (`pic_unlock`, arch/x86/kvm/i8259.c), looks for it no more when LINT0 is opened, and
//! lets the timer wait for its acknowledgement. A guest with encrypted registers, which KVM does not emulate, hangs there.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"PRIVET";
const MACHINE: [u8; 8] = *b"GUEST   ";
const REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER: u32 = 36;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The ports of the fixed hardware, in which nothing ever happens: PM1 status and enable, then PM1 control.
pub(crate) const FIXED_HARDWARE: std::ops::Range<u16> = 0x600..0x606;
/// Its interrupt.
const SCI: u16 = 9;

/// Tables one behind the other, from `start` on.
struct Tables {
    start: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table; its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        // The FACS wants 64 bytes.
        const ALIGN: usize = 64;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let at = self.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        at
    }
}

/// What of a machine is beside its processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hardware {
    /// A PC: 8259, 8254, I/O APIC.
    Pc,
    /// Nothing. Processors wait for the operating system to write into a mailbox at this address (5.2.12.19).
    Reduced { mailbox: u64 },
}

/// The tables for so many processors, to lie at `start`; and the address of the RSDP.
pub(crate) fn tables(start: u64, processors: u8, hardware: Hardware) -> (Vec<u8>, u64) {
    let mut tables = Tables { start, bytes: Vec::new() };
    let dsdt = tables.add(&Sdt::new(*b"DSDT", HEADER, 2, OEM, MACHINE, REVISION));
    let fadt = match hardware {
        Hardware::Pc => {
            let facs = tables.add(&FACS::new());
            tables.add(&fadt(facs, dsdt))
        }
        Hardware::Reduced { .. } => tables.add(&reduced_fadt(dsdt)),
    };
    let madt = tables.add(&madt(processors, hardware));
    let mut xsdt = XSDT::new(OEM, MACHINE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt);
    let rsdp = tables.add(&Rsdp::new(OEM, xsdt));
    (tables.bytes, rsdp)
}

/// A machine that is in ACPI mode from the beginning, and has no PM timer.
fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, MACHINE, REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let port =
        |port: u16, bytes: u8| GAS::new(AddressSpace::SystemIo, bytes * 8, 0, AccessSize::WordAccess, port.into());
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(FIXED_HARDWARE.start).into();
    fadt.pm1a_cnt_blk = u32::from(FIXED_HARDWARE.start + 4).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len) = (4, 2);
    fadt.x_pm1a_evt_blk = port(FIXED_HARDWARE.start, 4);
    fadt.x_pm1a_cnt_blk = port(FIXED_HARDWARE.start + 4, 2);
    fadt.finalize()
}

/// A machine without any of the fixed hardware.
fn reduced_fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    FADTBuilder::new(OEM, MACHINE, REVISION)
        .dsdt_32(dsdt as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .finalize()
}

/// Processors, and the I/O APIC, whose lines are those of the 8259, or the mailbox (section 5.2.12).
fn madt(processors: u8, hardware: Hardware) -> Sdt {
    const WITH_8259: u32 = 1;
    let mut madt = Sdt::new(*b"APIC", HEADER, 4, OEM, MACHINE, REVISION);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&if hardware == Hardware::Pc { WITH_8259 } else { 0 }.to_le_bytes());
    for id in 0..processors {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut madt);
    }
    match hardware {
        Hardware::Pc => IoApic::new(0, IO_APIC, 0).to_aml_bytes(&mut madt),
        Hardware::Reduced { mailbox } => {
            /// Type, length, version and a reserved word.
            const WAKEUP: [u8; 8] = [16, 16, 0, 0, 0, 0, 0, 0];
            madt.append_slice(&WAKEUP);
            madt.append_slice(&mailbox.to_le_bytes());
        }
    }
    madt
}
