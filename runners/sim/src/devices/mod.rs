//! The chips of the board. Each is a plain state machine: it is told what time it is, and what it wants of others is
//! its answer.

pub(crate) mod acpi_pm;
mod apic_timer;
pub(crate) mod cmos;
pub(crate) mod interrupt_message;
pub(crate) mod ioapic;
pub(crate) mod iommu;
pub(crate) mod lapic;
pub(crate) mod pci;
pub(crate) mod pic;
pub(crate) mod pit;
pub(crate) mod uart;
mod vectors;
