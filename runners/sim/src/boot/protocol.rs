//! The 64-bit boot protocol (kernel: `Documentation/arch/x86/boot.rst`): where everything lies when the kernel
//! starts, and what the first processor's registers say.

use privet_cpu::segment::{CODE_EXEC_READ_ACCESSED, DATA_READ_WRITE_ACCESSED, Table};
use privet_cpu::state::{cr0, cr4, efer, gpr};
use privet_cpu::{CpuState, PAGE_SIZE, Seg, Segment};

use super::acpi;
use super::kernel_image::{HEADER, KernelImage};
use crate::error::SimError;
use crate::ram::Ram;

/// What firmware occupies, and where: below 640 KiB, and above.
const GDT: u64 = 0x1000;
const BOOT_PARAMS: u64 = 0x1_0000;
const COMMAND_LINE: u64 = 0x2_0000;
const PAGE_TABLES: u64 = 0x3_0000;
const STACK: u64 = 0x8_0000;
const EBDA: u64 = 0x9_fc00;
const UPPER: u64 = 0x10_0000;

/// Bytes that a command line may have, its end included (kernel: `COMMAND_LINE_SIZE`).
const COMMAND_LINE_MAX: usize = 2048;

/// Offsets in `struct boot_params`.
mod param {
    pub(super) const ACPI_RSDP: u64 = 0x70;
    pub(super) const E820_ENTRIES: u64 = 0x1e8;
    pub(super) const LOADER: u64 = 0x210;
    pub(super) const LOAD_FLAGS: u64 = 0x211;
    pub(super) const INITRD: u64 = 0x218;
    pub(super) const INITRD_SIZE: u64 = 0x21c;
    pub(super) const COMMAND_LINE: u64 = 0x228;
    pub(super) const E820: u64 = 0x2d0;
}

/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const LOADED_HIGH: u8 = 1;

/// Types of memory in the E820 map.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
const ACPI_TABLES: u32 = 3;

/// What a machine boots.
pub(crate) struct Images<'a> {
    /// A bzImage.
    pub(crate) kernel: &'a [u8],
    /// What the kernel unpacks as its root file system; may be empty.
    pub(crate) initramfs: &'a [u8],
    /// What the kernel is told.
    pub(crate) command_line: &'a str,
}

/// What firmware has found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hardware {
    /// Processors.
    pub(crate) cpus: usize,
    /// First and last byte of the memory for the reverse map table. A machine that has one has an IOMMU, too.
    pub(crate) rmp: Option<(u64, u64)>,
}

/// Puts everything in its place.
///
/// # Errors
/// If the kernel is none, or something has no room.
pub(crate) fn load(
    ram: &mut Ram,
    images: &Images<'_>,
    hardware: Hardware,
    state: &mut CpuState,
) -> Result<(), SimError> {
    let kernel = KernelImage::new(images.kernel)?;
    let low_end = ram.ranges().next().map_or(0, |range| range.end);
    let low_end = hardware.rmp.map_or(low_end, |(first, _)| first);
    if kernel.end > low_end {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let what = format!("the machine has {} MiB of memory and its kernel wants {}", mib(low_end), mib(kernel.end));
        return Err(SimError::Description(what));
    }
    for piece in &kernel.pieces {
        ram.write(piece.address, &piece.bytes);
    }
    let rsdp = acpi::load(ram, hardware.cpus, hardware.rmp.is_some());

    ram.write(BOOT_PARAMS + HEADER as u64, &kernel.header);
    ram.write(BOOT_PARAMS + param::ACPI_RSDP, &rsdp.to_le_bytes());
    ram.write(BOOT_PARAMS + param::LOADER, &[UNDEFINED_LOADER]);
    let mut load_flags = [0];
    ram.read(BOOT_PARAMS + param::LOAD_FLAGS, &mut load_flags);
    ram.write(BOOT_PARAMS + param::LOAD_FLAGS, &[load_flags[0] | LOADED_HIGH]);
    load_command_line(ram, images.command_line)?;
    load_initramfs(ram, images.initramfs, &kernel, low_end)?;
    load_memory_map(ram, hardware.rmp);
    load_page_tables(ram);
    load_gdt(ram);
    enter(state, kernel.entry);
    Ok(())
}

fn load_command_line(ram: &mut Ram, command_line: &str) -> Result<(), SimError> {
    if command_line.len() >= COMMAND_LINE_MAX || command_line.contains('\0') {
        let what = format!("the kernel's command line has {} bytes, of {COMMAND_LINE_MAX}", command_line.len());
        return Err(SimError::Description(what));
    }
    ram.write(COMMAND_LINE, command_line.as_bytes());
    ram.write(BOOT_PARAMS + param::COMMAND_LINE, &(COMMAND_LINE as u32).to_le_bytes());
    Ok(())
}

/// As high as the kernel allows and memory below 4 GiB has room.
fn load_initramfs(ram: &mut Ram, initramfs: &[u8], kernel: &KernelImage, low_end: u64) -> Result<(), SimError> {
    let size = initramfs.len() as u64;
    let top = low_end.min(kernel.initrd_max + 1);
    let at = top.checked_sub(size).map(|at| at & !(PAGE_SIZE - 1)).filter(|at| *at >= kernel.end);
    let at = at.ok_or_else(|| {
        SimError::Description(format!(
            "an initramfs of {size} bytes has no room behind the kernel: give the machine more memory"
        ))
    })?;
    ram.write(at, initramfs);
    ram.write(BOOT_PARAMS + param::INITRD, &(at as u32).to_le_bytes());
    ram.write(BOOT_PARAMS + param::INITRD_SIZE, &(size as u32).to_le_bytes());
    Ok(())
}

fn load_memory_map(ram: &mut Ram, rmp: Option<(u64, u64)>) {
    let mut map = vec![(0..EBDA, USABLE), (EBDA..0xa_0000, RESERVED), (acpi::TABLES, ACPI_TABLES)];
    for range in ram.ranges() {
        let reserved = rmp.filter(|(first, _)| range.contains(first));
        let end = reserved.map_or(range.end, |(first, _)| first);
        map.push((range.start.max(UPPER)..end, USABLE));
        map.extend(reserved.map(|(first, last)| (first..last + 1, RESERVED)));
    }
    ram.write(BOOT_PARAMS + param::E820_ENTRIES, &[map.len() as u8]);
    let mut at = BOOT_PARAMS + param::E820;
    for (range, kind) in map {
        ram.write(at, &range.start.to_le_bytes());
        ram.write(at + 8, &(range.end - range.start).to_le_bytes());
        ram.write(at + 16, &kind.to_le_bytes());
        at += 20;
    }
}

/// The first 4 GiB one to one, in pages of 2 MiB.
fn load_page_tables(ram: &mut Ram) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let entry = |table: u64, index: u64| PAGE_TABLES + table * PAGE_SIZE + index * 8;
    let (root, second, third) = (0, 1, 2);
    ram.write(entry(root, 0), &(entry(second, 0) | PRESENT_WRITABLE).to_le_bytes());
    for gib in 0..4 {
        ram.write(entry(second, gib), &(entry(third + gib, 0) | PRESENT_WRITABLE).to_le_bytes());
        for index in 0..512 {
            let page = gib << 30 | index << 21 | LARGE | PRESENT_WRITABLE;
            ram.write(entry(third + gib, index), &page.to_le_bytes());
        }
    }
}

/// Flat segments, as `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18).
fn load_gdt(ram: &mut Ram) {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    for (index, descriptor) in [0, 0, CODE, DATA].into_iter().enumerate() {
        ram.write(GDT + index as u64 * 8, &u64::to_le_bytes(descriptor));
    }
}

/// 64-bit mode at the kernel's entry, interrupts off, RSI at the boot parameters.
fn enter(state: &mut CpuState, entry: u64) {
    let flat = |selector: u16, kind: u8, long: bool| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        kind,
        present: true,
        db: !long,
        code_or_data: true,
        long,
        granularity: true,
        ..Segment::default()
    };
    state.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.cr3 = PAGE_TABLES;
    state.gdtr = Table { base: GDT, limit: 31 };
    state.segments = [flat(0x18, DATA_READ_WRITE_ACCESSED, false); 6];
    state.segments[Seg::Cs as usize] = flat(0x10, CODE_EXEC_READ_ACCESSED, true);
    state.rip = entry;
    state.gpr[gpr::RSI] = BOOT_PARAMS;
    state.gpr[gpr::RSP] = STACK;
}
