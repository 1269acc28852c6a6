//! From the reset vector to the payload: what a vCPU executes whose registers the host cannot set.
//!
//! It begins at 0xffff_fff0 in 32-bit protected mode with flat segments, paging off, EFER.LME set and its index in ESI
//! (TDX module base architecture, "Initial State of a TD VCPU").

use super::plan::MAILBOXES;
use crate::units::{Gpa, PAGE_SIZE};

/// The page with the reset vector.
pub const RESET_PAGE: Gpa = Gpa(0xffff_f000);
/// Slot id of that page.
pub(crate) const RESET_SLOT: u32 = 1;

/// Offset of the reset vector in its page.
const VECTOR: usize = 0xff0;
/// Offsets of the code in 64-bit mode, of the descriptor table and of its pointer.
const LONG_MODE: usize = 0x80;
const GDT: usize = 0x100;
const GDT_POINTER: usize = 0x180;

/// Null, a code segment of ring 0 in 64-bit mode, a flat data segment: the selectors are the payload's.
const DESCRIPTORS: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The page, which leads to `entry` under the page tables at `root`, both below 4 GiB, with the arguments of the payload's
/// entry point: the mailbox of the vCPU in RDI, its index in RSI.
pub fn reset_page(entry: u64, root: Gpa) -> Vec<u8> {
    let mut page = vec![0xf4; PAGE_SIZE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let address = |offset: usize| ((RESET_PAGE.0 as usize + offset) as u32).to_le_bytes();
    let low = |value: u64| (value as u32).to_le_bytes();

    // jmp to the beginning of the page: 5 bytes long.
    put(VECTOR, &[&[0xe9][..], &(-(VECTOR as i32) - 5).to_le_bytes()].concat());
    let protected_mode = [
        // lgdt [GDT_POINTER]
        &[0x0f, 0x01, 0x15][..],
        &address(GDT_POINTER),
        // CR4 |= PAE, OSFXSR, OSXMMEXCPT
        &[0x0f, 0x20, 0xe0, 0x0d, 0x20, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0],
        // CR3 = root
        &[0xb8],
        &low(root.0),
        &[0x0f, 0x22, 0xd8],
        // CR0 |= PG, WP, MP
        &[0x0f, 0x20, 0xc0, 0x0d, 0x02, 0x00, 0x01, 0x80, 0x0f, 0x22, 0xc0],
        // jmp 8:LONG_MODE
        &[0xea],
        &address(LONG_MODE),
        &[0x08, 0x00],
    ];
    put(0, &protected_mode.concat());
    let long_mode = [
        // mov ax, 0x10; mov ds, es, ss, fs, gs, ax
        &[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x8e, 0xe0, 0x8e, 0xe8][..],
        // mov edi, esi; shl edi, 12; add edi, MAILBOXES
        &[0x89, 0xf7, 0xc1, 0xe7, 0x0c, 0x81, 0xc7],
        &low(MAILBOXES.0),
        // mov eax, entry; jmp rax
        &[0xb8],
        &low(entry),
        &[0xff, 0xe0],
    ];
    put(LONG_MODE, &long_mode.concat());
    put(GDT, &DESCRIPTORS.map(u64::to_le_bytes).concat());
    put(GDT_POINTER, &[&(size_of_val(&DESCRIPTORS) as u16 - 1).to_le_bytes()[..], &address(GDT)].concat());
    page
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    use super::*;

    /// The instructions from an offset of the page on.
    fn listing(bits: u32, offset: usize, count: usize) -> Vec<String> {
        let page = reset_page(0x10_0040, Gpa(0x40_0000));
        let mut decoder = Decoder::with_ip(bits, &page[offset..], RESET_PAGE.0 + offset as u64, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        let line = |_| {
            let mut text = String::new();
            formatter.format(&decoder.decode(), &mut text);
            text
        };
        (0..count).map(line).collect()
    }

    #[test]
    fn the_vector_leads_to_the_beginning_of_its_page() {
        assert_eq!(listing(32, VECTOR, 1), ["jmp 0FFFFF000h"]);
    }

    #[test]
    fn long_mode_is_entered_under_the_guests_page_tables() {
        let code = listing(32, 0, 10);
        assert_eq!(code[0], "lgdt [0FFFFF180h]");
        assert_eq!(code[2], "or eax,620h");
        assert_eq!(code[4..6], ["mov eax,400000h", "mov cr3,eax"]);
        assert_eq!(code[7], "or eax,80010002h");
        assert!(code[9].starts_with("jmp") && code[9].contains("FFFFF080"), "{}", code[9]);
    }

    #[test]
    fn the_payload_gets_mailbox_and_index() {
        let code = listing(64, LONG_MODE, 11);
        assert_eq!(code[6..], ["mov edi,esi", "shl edi,0Ch", "add edi,200000h", "mov eax,100040h", "jmp rax"]);
    }
}
