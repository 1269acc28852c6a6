//! Addresses, and what the TLB has for them.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::emitter::Emitter;
use super::layout::{ENTRY_PAGE, ENTRY_READ, ENTRY_WRITE, TLB_NUMBER, segment_base};
use crate::op::{FLAT, Mem, Width};
use crate::segment::Seg;
use crate::tlb::{ENTRIES, Entry};

/// The bits of an address that choose its entry, where they lie after a shift right by [`ENTRY_SHIFT`].
const ENTRY_MASK: i32 = ((ENTRIES - 1) * size_of::<Entry>()) as i32;
const ENTRY_SHIFT: i8 = 12 - size_of::<Entry>().trailing_zeros() as i8;

/// What a memory operand is accessed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Read,
    Write,
}

impl Emitter<'_> {
    /// Whether the address of a memory operand is one that is computed in place.
    pub(super) fn knows_address(mem: &Mem) -> bool {
        let full = |width: Width| matches!(width, Width::Nothing | Width::Bits64);
        full(mem.base_width) && full(mem.index_width) && mem.address_width == Width::Bits64
    }

    /// The offset that a memory operand names, in rdi.
    pub(super) fn offset(&mut self, mem: &Mem) {
        let mut disp = mem.disp;
        if mem.base_width == Width::Nothing {
            self.immediate(7, disp);
            disp = 0;
        } else {
            let base = 8 * (mem.base & 15) as i8;
            dynasm!(self.asm; mov rdi, [BYTE rbx + base]);
        }
        if mem.index_width != Width::Nothing {
            let index = 8 * (mem.index & 15) as i8;
            dynasm!(self.asm; mov rsi, [BYTE rbx + index]);
            match mem.scale {
                0 => dynasm!(self.asm; add rdi, rsi),
                1 => dynasm!(self.asm; lea rdi, [rdi + rsi * 2]),
                2 => dynasm!(self.asm; lea rdi, [rdi + rsi * 4]),
                _ => dynasm!(self.asm; lea rdi, [rdi + rsi * 8]),
            }
        }
        if disp != 0 {
            if let Ok(disp) = i32::try_from(disp as i64) {
                dynasm!(self.asm; add rdi, disp);
            } else {
                self.immediate(6, disp);
                dynasm!(self.asm; add rdi, rsi);
            }
        }
    }

    /// Where a memory operand is in the host's memory, in rdi; rax and rcx stay.
    pub(super) fn find(&mut self, mem: &Mem, size: usize, purpose: For) {
        self.offset(mem);
        // Only FS and GS have bases in 64-bit code.
        if mem.seg != FLAT && mem.seg >= Seg::Fs as u8 {
            let base = segment_base(mem.seg);
            dynasm!(self.asm; add rdi, [rbx + base]);
        }
        self.find_linear(size, purpose);
    }

    /// Where `size` bytes at the linear address in rdi are in the host's memory, in rdi; rax and rcx stay.
    pub(super) fn find_linear(&mut self, size: usize, purpose: For) {
        let slow = self.slow();
        let tag = if purpose == For::Read { ENTRY_READ } else { ENTRY_WRITE };
        let last = size as i32 - 1;
        // The tag is that of the last byte: on another page it is not that of the entry.
        dynasm!(self.asm
            ; mov esi, edi
            ; shr esi, ENTRY_SHIFT
            ; and esi, ENTRY_MASK
            ; lea rdx, [rdi + last]
            ; and rdx, -4096
            ; or rdx, [r12 + TLB_NUMBER]
            ; cmp rdx, [r13 + rsi + tag]
            ; jne =>slow
            ; and edi, 0xfff
            ; add rdi, [r13 + rsi + ENTRY_PAGE]
        );
    }
}
