//! A bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst), and what it has to be told as an SNP guest
//! (struct cc_blob_sev_info, arch/x86/include/asm/sev.h). A TD asks its module.

use std::ops::Range;

use privet_harness::outcome::{Outcome, Stop};
use privet_harness::units::PAGE_SIZE;
use privet_harness::vm_type::VmType;

use super::acpi::{self, Hardware};

/// Memory of the guest, bytes.
pub(crate) const MEMORY: u64 = 64 << 20;

/// Where everything lies. What firmware provides is in one place, which the memory map reserves.
pub(crate) const CPUID_PAGE: u64 = 0x1_0000;
pub(crate) const SECRETS_PAGE: u64 = 0x1_1000;
const RESERVED: Range<u64> = CPUID_PAGE..0x1_2000;
const ACPI_TABLES: Range<u64> = RESERVED.end..0x1_3000;
/// What stays of a TD's loader while Linux runs: where its processors wait for their start.
pub(crate) const TD_FIRMWARE: Range<u64> = ACPI_TABLES.end..0x1_9000;
pub(crate) const MAILBOX: u64 = TD_FIRMWARE.start;
pub(crate) const BOOT_PARAMS: u64 = 0x2_0000;
const COMMAND_LINE: u64 = 0x2_1000;
const SETUP_DATA: u64 = 0x2_2000;
const CC_BLOB: u64 = 0x2_2800;
const LOW_END: u64 = 0x9_f000;
const HIGH: u64 = 0x10_0000;
const KERNEL: u64 = 0x100_0000;
const INITRAMFS: u64 = 0x3f0_0000;

/// Offsets in `struct boot_params`, and from SETUP_SECTS on in a bzImage, too.
const RSDP_AT: usize = 0x070;
const SETUP_SECTS: usize = 0x1f1;
const JUMP_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const LOADER: usize = 0x210;
const INITRD: usize = 0x218;
const COMMAND_LINE_AT: usize = 0x228;
const SETUP_DATA_AT: usize = 0x250;
const INIT_SIZE: usize = 0x260;
const E820_ENTRIES: usize = 0x1e8;
const E820: usize = 0x2d0;
const ENTRY_64: u64 = 0x200;

const USABLE: u32 = 1;
const RESERVED_TYPE: u32 = 2;
const ACPI_TYPE: u32 = 3;
const ACPI_STORAGE: u32 = 4;
const SETUP_CC_BLOB: u32 = 7;
const CC_BLOB_MAGIC: u32 = 0x4544_4d41;
const CC_BLOB_VERSION: u16 = 1;

/// Whole pages of the guest's memory with their content.
pub(crate) struct Piece {
    pub(crate) gpa: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Piece {
    pub(crate) fn new(gpa: u64, mut bytes: Vec<u8>) -> Piece {
        bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
        Piece { gpa, bytes }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.gpa..self.gpa + self.bytes.len() as u64
    }
}

/// A kernel that can be started.
pub(crate) struct Boot {
    pub(crate) pieces: Vec<Piece>,
    /// Where it is entered, with the address of the boot parameters in RSI.
    pub(crate) entry: u64,
}

impl Boot {
    /// `image` with its root file system and command line, for a machine of so many processors; an SNP guest is told
    /// where the firmware's pages are, and a TD where its processors wait.
    ///
    /// # Errors
    /// `Stop::Error` if it is no bzImage, or has no room.
    pub(crate) fn new(
        image: &[u8],
        initramfs: Vec<u8>,
        command_line: &str,
        processors: u8,
        vm_type: VmType,
    ) -> Outcome<Boot> {
        if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
            return Err(Stop::Error("the kernel is no bzImage".into()));
        }
        let setup_bytes = (usize::from(image[SETUP_SECTS]) + 1) * 512;
        let init_size = u32::from_le_bytes(image[INIT_SIZE..INIT_SIZE + 4].try_into().expect("4 bytes"));
        if KERNEL + u64::from(init_size) > INITRAMFS || INITRAMFS + initramfs.len() as u64 > MEMORY {
            return Err(Stop::Error(format!("a kernel of {init_size:#x} bytes has no room")));
        }
        let mut params = vec![0; PAGE_SIZE as usize];
        let header = SETUP_SECTS..MAGIC + usize::from(image[JUMP_LENGTH]);
        params[header.clone()].copy_from_slice(&image[header]);
        let mut put = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
        let hardware = match vm_type {
            VmType::Tdx => Hardware::Reduced { mailbox: MAILBOX },
            _ => Hardware::Pc,
        };
        let (tables, rsdp) = acpi::tables(ACPI_TABLES.start, processors, hardware);
        put(RSDP_AT, &rsdp.to_le_bytes());
        // A loader without a number of its own.
        put(LOADER, &[0xff]);
        put(INITRD, &(INITRAMFS as u32).to_le_bytes());
        put(INITRD + 4, &(initramfs.len() as u32).to_le_bytes());
        put(COMMAND_LINE_AT, &(COMMAND_LINE as u32).to_le_bytes());
        if vm_type == VmType::Snp {
            put(SETUP_DATA_AT, &SETUP_DATA.to_le_bytes());
        }
        let map = [
            (0..RESERVED.start, USABLE),
            (RESERVED, RESERVED_TYPE),
            // Linux reads them encrypted because they have a type of their own.
            (ACPI_TABLES, ACPI_TYPE),
            // The same.
            (TD_FIRMWARE, ACPI_STORAGE),
            (TD_FIRMWARE.end..LOW_END, USABLE),
            (HIGH..MEMORY, USABLE),
        ];
        put(E820_ENTRIES, &[map.len() as u8]);
        for (index, (range, kind)) in map.into_iter().enumerate() {
            let at = E820 + index * 20;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &(range.end - range.start).to_le_bytes());
            put(at + 16, &kind.to_le_bytes());
        }
        let mut line = command_line.as_bytes().to_vec();
        line.push(0);
        let pieces = vec![
            Piece::new(BOOT_PARAMS, params),
            Piece::new(COMMAND_LINE, line),
            Piece::new(SETUP_DATA, setup_data()),
            Piece::new(ACPI_TABLES.start, tables),
            Piece::new(KERNEL, image[setup_bytes..].to_vec()),
            Piece::new(INITRAMFS, initramfs),
        ];
        Ok(Boot { pieces, entry: KERNEL + ENTRY_64 })
    }
}

/// A list of one, which leads to the blob, which says where the firmware's pages are.
fn setup_data() -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = (at - SETUP_DATA) as usize;
        page[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(SETUP_DATA + 8, &SETUP_CC_BLOB.to_le_bytes());
    put(SETUP_DATA + 12, &4_u32.to_le_bytes());
    put(SETUP_DATA + 16, &(CC_BLOB as u32).to_le_bytes());
    put(CC_BLOB, &CC_BLOB_MAGIC.to_le_bytes());
    put(CC_BLOB + 4, &CC_BLOB_VERSION.to_le_bytes());
    for (at, gpa) in [(8, SECRETS_PAGE), (24, CPUID_PAGE)] {
        put(CC_BLOB + at, &gpa.to_le_bytes());
        put(CC_BLOB + at + 8, &(PAGE_SIZE as u32).to_le_bytes());
    }
    page
}
