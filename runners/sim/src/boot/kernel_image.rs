//! A bzImage, taken apart (kernel: `Documentation/arch/x86/boot.rst`).

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;

use super::payload;
use crate::error::SimError;

/// Offsets of the setup header in the file.
mod offset {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const JUMP: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}

/// The first protocol whose kernels can be entered in 64-bit mode.
const MIN_VERSION: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
const SECTOR: usize = 512;

/// Bytes that belong at an address.
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

/// A kernel that can be put into memory.
pub(super) struct KernelImage {
    /// The setup header, which belongs at 0x1F1 of the boot parameters.
    pub(super) header: Vec<u8>,
    /// What to load.
    pub(super) pieces: Vec<Piece>,
    /// Physical address of the 64-bit entry.
    pub(super) entry: u64,
    /// Where the kernel ends, with everything that it wants before it knows its memory.
    pub(super) end: u64,
    /// The initramfs may reach up to here.
    pub(super) initrd_max: u64,
}

/// Where the setup header starts in the file and in the boot parameters.
pub(super) const HEADER: usize = offset::SETUP_SECTS;

fn wrong(what: &str) -> SimError {
    SimError::Kernel(format!("the kernel is no bzImage that can be started: {what}"))
}

/// A little-endian word in the file.
fn word<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], SimError> {
    image.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| wrong("it ends in its header"))
}

impl KernelImage {
    /// Takes an image apart. The kernel proper is unpacked here, if its format is known; otherwise the machine will
    /// run the decompressor.
    ///
    /// # Errors
    /// If it is no bzImage with a 64-bit entry, or its payload is damaged.
    pub(super) fn new(image: &[u8]) -> Result<KernelImage, SimError> {
        if word(image, offset::MAGIC)? != *b"HdrS" {
            return Err(wrong("it has no setup header"));
        }
        let version = u16::from_le_bytes(word(image, offset::VERSION)?);
        if version < MIN_VERSION || u16::from_le_bytes(word(image, offset::XLOADFLAGS)?) & XLF_KERNEL_64 == 0 {
            return Err(wrong("it has no 64-bit entry"));
        }
        let header_end = offset::MAGIC + usize::from(word::<1>(image, offset::JUMP)?[0]);
        let header = image.get(HEADER..header_end).ok_or_else(|| wrong("it ends in its header"))?.to_vec();
        let setup_sectors = match word(image, offset::SETUP_SECTS)? {
            [0] => 4,
            [sectors] => usize::from(sectors),
        };
        let protected = image.get((setup_sectors + 1) * SECTOR..).ok_or_else(|| wrong("it ends in its setup code"))?;
        let load = u64::from_le_bytes(word(image, offset::PREF_ADDRESS)?);
        let init_size = u64::from(u32::from_le_bytes(word(image, offset::INIT_SIZE)?));
        let initrd_max = u64::from(u32::from_le_bytes(word(image, offset::INITRD_ADDR_MAX)?));
        let end = load.checked_add(init_size).ok_or_else(|| wrong("it wants more memory than there can be"))?;

        let at = u32::from_le_bytes(word(image, offset::PAYLOAD_OFFSET)?) as usize;
        let length = u32::from_le_bytes(word(image, offset::PAYLOAD_LENGTH)?) as usize;
        let payload = at.checked_add(length).and_then(|end| protected.get(at..end));
        let payload = payload.ok_or_else(|| wrong("it ends in its payload"))?;
        let unpacked = payload::unpack(payload).map_err(|error| wrong(&format!("its payload is damaged: {error}")))?;
        let (pieces, entry) = match unpacked {
            Some(vmlinux) => segments(&vmlinux)?,
            None => (vec![Piece { address: load, bytes: protected.to_vec() }], load + ENTRY_64),
        };
        Ok(KernelImage { header, pieces, entry, end, initrd_max })
    }
}

/// What of an ELF image belongs into memory, by physical address, and its entry, which vmlinux gives as a physical
/// address, too.
fn segments(vmlinux: &[u8]) -> Result<(Vec<Piece>, u64), SimError> {
    let elf = Elf::parse(vmlinux).map_err(|error| wrong(&format!("what it contains is no vmlinux: {error}")))?;
    let mut pieces = Vec::new();
    for header in elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD) {
        let bytes = vmlinux.get(header.file_range()).ok_or_else(|| wrong("its vmlinux ends in a segment"))?;
        pieces.push(Piece { address: header.p_paddr, bytes: bytes.to_vec() });
    }
    Ok((pieces, elf.entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_kernel_is_refused_with_a_reason() {
        for image in [vec![], vec![0; 0x300]] {
            let error = KernelImage::new(&image).err().unwrap().to_string();
            assert!(error.contains("no bzImage"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_damage_to_a_header_panics(changes in prop::collection::vec((0usize..0x300, any::<u8>()), 0..20)) {
            let mut image = vec![0; 0x2000];
            image[offset::MAGIC..offset::MAGIC + 4].copy_from_slice(b"HdrS");
            image[offset::VERSION + 1] = 2;
            image[offset::VERSION] = 0xf;
            image[offset::XLOADFLAGS] = 1;
            for (at, value) in changes {
                image[at] = value;
            }
            let _ = KernelImage::new(&image);
        }
    }
}
