//! Firmware images that the tools take for OVMF: any content, with the tables at the end that tell them the rest of the
//! plan (OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm, X64/OvmfSevMetadata.asm).

use privet_harness::sev::PageType;
use privet_harness::units::PAGE_SIZE;

/// A section of the metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) page_type: PageType,
    /// Where it begins, in pages; below 4 GiB.
    pub(crate) page: u32,
    /// How long it is, in pages; 1 of all but zeroes.
    pub(crate) pages: u32,
}

/// GUIDs as they lie in the image.
const FOOTER: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
const RESET_BLOCK: [u8; 16] =
    [0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb, 0x4f, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e];
const METADATA: [u8; 16] =
    [0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc];

/// `content`, whole pages that end at 4 GiB, whose last one becomes the tables: where vCPUs but the first begin, and
/// these sections.
pub(crate) fn image(mut content: Vec<u8>, reset: u32, sections: &[Section]) -> Vec<u8> {
    let mut metadata = b"ASEV".to_vec();
    let length = 16 + 12 * sections.len() as u32;
    metadata.extend([length, 1, sections.len() as u32].into_iter().flat_map(u32::to_le_bytes));
    for Section { page_type, page, pages } in sections {
        let number = match page_type {
            PageType::Zero => 1,
            PageType::Secrets => 2,
            PageType::Cpuid => 3,
            other => panic!("no section is {other}"),
        };
        let bytes = PAGE_SIZE as u32;
        metadata.extend([page * bytes, pages * bytes, number].into_iter().flat_map(u32::to_le_bytes));
    }
    let place = content.len() - PAGE_SIZE as usize;
    content[place..place + metadata.len()].copy_from_slice(&metadata);

    // Entries end with their length and GUID: the tools read them from the end.
    let mut table = Vec::new();
    for (guid, value) in [(METADATA, PAGE_SIZE as u32), (RESET_BLOCK, reset)] {
        table.extend(value.to_le_bytes());
        table.extend(22_u16.to_le_bytes());
        table.extend(guid);
    }
    table.extend((table.len() as u16 + 18).to_le_bytes());
    table.extend(FOOTER);
    let end = content.len() - 32;
    content[end - table.len()..end].copy_from_slice(&table);
    content
}
