//! Memory for code that is written while code beside it executes.
#![expect(unsafe_code, reason = "executable memory is mapped, written and named here")]

use std::ptr::NonNull;

use super::chain::{self, TARGETS, Target, Way};
use super::{Enter, Translated};

/// Translated blocks, behind the code that enters them.
#[derive(Debug)]
pub(crate) struct CodeBuffer {
    start: NonNull<u8>,
    size: usize,
    used: usize,
    targets: Box<[Target]>,
}

// SAFETY: the mapping belongs to the buffer alone, is written through `&mut` of it, and no thread is special to it.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Room for `size` bytes; `None` where the host maps no memory that is both written and executed.
    pub(crate) fn new(size: usize) -> Option<CodeBuffer> {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // What is never used takes no memory, and need not be there.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the host's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let mut buffer = CodeBuffer { start: NonNull::new(start.cast())?, size, used: 0, targets: [].into() };
        buffer.clear();
        Some(buffer)
    }

    /// Forgets all blocks.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.targets = vec![Target::NONE; TARGETS].into();
        self.add(&chain::enter());
    }

    /// Puts code behind what is there already; returns its offset, or `None` if there is no room.
    pub(crate) fn add(&mut self, code: &[u8]) -> Option<u32> {
        let offset = self.used;
        if code.len() > self.size - offset {
            return None;
        }
        // SAFETY: the bytes are inside the mapping, and nobody executes them: no offset behind `used` was given out.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.start.as_ptr().add(offset), code.len()) };
        self.used += code.len();
        Some(offset as u32)
    }

    /// Who comes by this way to `rip`, where this block begins, comes to its translation from here on.
    pub(crate) fn shorten(&mut self, way: Way, rip: u64, block: Translated) {
        let Some(checked) = block.checked else { return };
        match way {
            Way::Any => {}
            Way::Target => {
                let code = self.address(checked).expose_provenance() as u64;
                self.targets[Target::index(rip)] = Target { rip, code };
            }
            Way::Link(link) => {
                let distance = checked.wrapping_sub(link + 4).to_le_bytes();
                // SAFETY: a link is told by the code that has it, as an offset in the mapping at which its jump has these
                // bytes. The jump is not being executed: the code has ended to tell of it.
                unsafe { std::ptr::copy_nonoverlapping(distance.as_ptr(), self.start.as_ptr().add(link as usize), 4) };
            }
        }
    }

    /// The offset that the next code gets.
    pub(super) fn next_offset(&self) -> u32 {
        self.used as u32
    }

    /// The address of the first target.
    pub(super) fn targets(&self) -> u64 {
        self.targets.as_ptr().expose_provenance() as u64
    }

    /// Where the code of an offset is.
    #[inline(always)]
    pub(super) fn address(&self, offset: u32) -> *const u8 {
        self.start.as_ptr().wrapping_add(offset as usize)
    }

    /// The code that enters a block.
    #[inline(always)]
    pub(super) fn enter(&self) -> Enter {
        // SAFETY: `clear` has put it at the beginning, as a function of this type.
        unsafe { std::mem::transmute::<*mut u8, Enter>(self.start.as_ptr()) }
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nobody executes in it, for that takes a reference.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}
