//! Guest memory as instructions see it: linear addresses in, values or aborts out.
//!
//! A host address is used at once and never kept across a call to the bus; where two are needed at the
//! same time, `Tlbs::generation` tells whether the first outlived finding the second.
#![expect(unsafe_code, reason = "this is where host addresses out of the TLB are used")]

use std::sync::{Mutex, PoisonError};

use crate::bus::AccessKind;
use crate::core::{Abort, Core};
use crate::exit::{CpuExit, Datum};
use crate::host::{self, Cell};
use crate::paging::View;
use crate::place::{MAX_ATTEMPTS, Place};
use crate::state::cr4;
use crate::tlb::within_page;
use crate::word::Word;

/// The places of one write, with their sizes.
type Places = Vec<(Place, usize)>;

/// Locked accesses that cross a page, or that go to MMIO, are atomic among each other.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

impl Core<'_> {
    /// Reads a value of `T`'s width at a linear address.
    #[inline(always)]
    pub(crate) fn read<T: Cell + Word>(&mut self, linear: u64) -> Result<u64, Abort> {
        self.read_as::<T>(linear, self.view)
    }

    /// Reads on behalf of the processor itself (descriptor tables, TSS).
    pub(crate) fn read_system<T: Cell + Word>(&mut self, linear: u64) -> Result<u64, Abort> {
        self.read_as::<T>(linear, View::Supervisor)
    }

    #[inline(always)]
    fn read_as<T: Cell + Word>(&mut self, linear: u64, view: View) -> Result<u64, Abort> {
        if let Some(at) = self.tlbs.read(view, linear, T::BYTES) {
            // SAFETY: an address out of the TLB, not used later than now: the bus promised the page
            // until the CPU acknowledges a flush, which it does at block boundaries and in bus calls.
            return Ok(unsafe { T::load(at) }.wide());
        }
        self.read_slowly(linear, T::BYTES, view)
    }

    #[cold]
    #[inline(never)]
    fn read_slowly(&mut self, linear: u64, size: usize, view: View) -> Result<u64, Abort> {
        let mut bytes = [0; 8];
        self.read_bytes_as(linear, &mut bytes[..size], view)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a value of `T`'s width at a linear address.
    #[inline(always)]
    pub(crate) fn write<T: Cell + Word>(&mut self, linear: u64, value: u64) -> Result<(), Abort> {
        if let Some(at) = self.tlbs.write(self.view, linear, T::BYTES) {
            // SAFETY: as in `read_as`, and the TLB gives writable pages to writes only.
            unsafe { T::store(at, T::cut(value)) };
            return Ok(());
        }
        self.write_bytes_as(linear, &value.to_le_bytes()[..T::BYTES], self.view)
    }

    /// Writes on behalf of the processor itself.
    pub(crate) fn write_system<T: Word>(&mut self, linear: u64, value: u64) -> Result<(), Abort> {
        self.write_bytes_as(linear, &value.to_le_bytes()[..T::BYTES], View::Supervisor)
    }

    /// Reads 16 bytes.
    #[inline(always)]
    pub(crate) fn read_wide(&mut self, linear: u64) -> Result<u128, Abort> {
        if let Some(at) = self.tlbs.read(self.view, linear, 16) {
            // SAFETY: as in `read_as`.
            return Ok(unsafe { u128::load(at) });
        }
        let mut bytes = [0; 16];
        self.read_bytes(linear, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Writes 16 bytes.
    #[inline(always)]
    pub(crate) fn write_wide(&mut self, linear: u64, value: u128) -> Result<(), Abort> {
        if let Some(at) = self.tlbs.write(self.view, linear, 16) {
            // SAFETY: as in `write`.
            unsafe { u128::store(at, value) };
            return Ok(());
        }
        self.write_bytes(linear, &value.to_le_bytes())
    }

    /// Replaces the value at `linear` by `change` of it and returns the old one. With `lock`,
    /// atomically; `change` may then be called several times.
    #[inline(always)]
    pub(crate) fn modify<T: Cell + Word>(
        &mut self,
        linear: u64,
        lock: bool,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Abort> {
        let old = self.replace::<T>(linear, lock, change)?;
        if lock && self.debug.tells_locked {
            self.tell_locked();
        }
        Ok(old)
    }

    /// Tells the bus of a locked instruction, after which the loop looks whether the turn is over.
    #[cold]
    pub(crate) fn tell_locked(&mut self) {
        self.with_bus(|core| core.bus.locked(core.s));
        self.attention = true;
    }

    #[inline(always)]
    fn replace<T: Cell + Word>(&mut self, linear: u64, lock: bool, change: impl Fn(u64) -> u64) -> Result<u64, Abort> {
        if let Some(at) = self.tlbs.write(self.view, linear, T::BYTES) {
            // SAFETY: as in `write`.
            return Ok(unsafe { exchange::<T>(at, lock, change) });
        }
        if !within_page(linear, T::BYTES) {
            self.prepare_write(linear, T::BYTES)?;
        } else if let Some(at) = self.place_to_replace(linear, T::BYTES)? {
            // SAFETY: `place_to_replace` just found the page writable, and the value does not leave it.
            let old = unsafe { exchange::<T>(at, lock, change) };
            self.wrote_code(at, T::BYTES);
            return Ok(old);
        }
        // Across pages, or MMIO, which has no atomic access on hardware either.
        let _guard = lock.then(|| SPLIT_LOCK.lock().unwrap_or_else(PoisonError::into_inner));
        let old = self.read_slowly(linear, T::BYTES, self.view)?;
        self.write_bytes(linear, &change(old).to_le_bytes()[..T::BYTES])?;
        Ok(old)
    }

    /// CMPXCHG16B with LOCK: stores `new` if 16 aligned bytes hold `old`; returns what they held.
    pub(crate) fn compare_exchange_wide(&mut self, linear: u64, old: u128, new: u128) -> Result<u128, Abort> {
        if let Some(at) = self.tlbs.write(self.view, linear, 16) {
            // SAFETY: as in `write`; the caller has checked the alignment.
            return Ok(unsafe { u128::compare_exchange(at, old, new) });
        }
        if let Some(at) = self.place_to_replace(linear, 16)? {
            // SAFETY: `place_to_replace` just found the page writable; the caller has checked the alignment.
            let found = unsafe { u128::compare_exchange(at, old, new) };
            self.wrote_code(at, 16);
            return Ok(found);
        }
        let found = self.read_wide(linear)?;
        self.write_wide(linear, if found == old { new } else { found })?;
        Ok(found)
    }

    /// Where a value that does not leave its page is read and written; `None` if that is no memory. Both have to happen
    /// where one look has found it: if the page led elsewhere meanwhile, what was read here would overwrite what is there.
    #[cold]
    #[inline(never)]
    fn place_to_replace(&mut self, linear: u64, size: usize) -> Result<Option<*mut u8>, Abort> {
        if self.watches_memory {
            self.watch(linear, size, true);
        }
        match self.place(linear, AccessKind::Write, self.view)? {
            Place::Host(at) | Place::Code(at) => Ok(Some(at)),
            Place::Mmio(_) | Place::Device(_) => Ok(None),
        }
    }

    /// Raises what a write of `size` bytes would raise, without writing.
    pub(crate) fn prepare_write(&mut self, linear: u64, size: usize) -> Result<(), Abort> {
        for (linear, _) in pieces(linear, size) {
            self.place(linear, AccessKind::Write, self.view)?;
        }
        Ok(())
    }

    /// Raises what a read of `size` bytes would raise, without reading.
    pub(crate) fn prepare_read(&mut self, linear: u64, size: usize) -> Result<(), Abort> {
        for (linear, _) in pieces(linear, size) {
            self.place(linear, AccessKind::Read, self.view)?;
        }
        Ok(())
    }

    /// Reads any number of bytes.
    pub(crate) fn read_bytes(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Abort> {
        self.read_bytes_as(linear, into, self.view)
    }

    #[cold]
    #[inline(never)]
    fn read_bytes_as(&mut self, linear: u64, into: &mut [u8], view: View) -> Result<(), Abort> {
        if self.watches_memory {
            self.watch(linear, into.len(), false);
        }
        let mut done = 0;
        for (linear, size) in pieces(linear, into.len()) {
            let piece = &mut into[done..done + size];
            done += size;
            match self.place(linear, AccessKind::Read, view)? {
                // One access of a width that exists is one instruction, so that it is not torn.
                Place::Host(at) | Place::Code(at) => match size {
                    // SAFETY: `place` just found the page; the piece does not leave it.
                    2 => piece.copy_from_slice(&unsafe { u16::load(at) }.to_le_bytes()),
                    // SAFETY: as above.
                    4 => piece.copy_from_slice(&unsafe { u32::load(at) }.to_le_bytes()),
                    // SAFETY: as above.
                    8 => piece.copy_from_slice(&unsafe { u64::load(at) }.to_le_bytes()),
                    // SAFETY: as above.
                    16 => piece.copy_from_slice(&unsafe { u128::load(at) }.to_le_bytes()),
                    // SAFETY: as above.
                    _ => unsafe { host::copy_out(at, piece) },
                },
                Place::Device(address) => self.with_bus(|core| core.bus.device_read(core.s, address, piece)),
                Place::Mmio(gpa) => {
                    for (index, fragment) in piece.chunks_mut(8).enumerate() {
                        let data = self.mmio_read(gpa + index as u64 * 8, fragment.len())?;
                        fragment.copy_from_slice(data.as_slice());
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes any number of bytes: all of them, or none if the write faults.
    pub(crate) fn write_bytes(&mut self, linear: u64, from: &[u8]) -> Result<(), Abort> {
        self.write_bytes_as(linear, from, self.view)
    }

    #[cold]
    #[inline(never)]
    fn write_bytes_as(&mut self, linear: u64, from: &[u8], view: View) -> Result<(), Abort> {
        if self.watches_memory {
            self.watch(linear, from.len(), true);
        }
        for _ in 0..MAX_ATTEMPTS {
            let Some(places) = self.places(linear, from.len(), view)? else { continue };
            self.store(&places, from);
            return Ok(());
        }
        // Finding one page has flushed the other each time.
        let mut done = 0;
        for (linear, size) in pieces(linear, from.len()) {
            self.write_bytes_as(linear, &from[done..done + size], view)?;
            done += size;
        }
        Ok(())
    }

    /// Where a write goes, and how many bytes of it; `None` if a place may be outdated because a later one was looked
    /// up. One place on its own never is.
    fn places(&mut self, linear: u64, size: usize, view: View) -> Result<Option<Places>, Abort> {
        let mut places = Places::new();
        let mut generation = None;
        for (linear, size) in pieces(linear, size) {
            places.push((self.place(linear, AccessKind::Write, view)?, size));
            if *generation.get_or_insert(self.tlbs.generation) != self.tlbs.generation {
                return Ok(None);
            }
        }
        Ok(Some(places))
    }

    /// Writes to places that were just found, all of them.
    fn store(&mut self, places: &Places, from: &[u8]) {
        let mut rest = from;
        for &(place, size) in places {
            let (piece, after) = rest.split_at(size);
            rest = after;
            match place {
                Place::Host(at) | Place::Code(at) => match *piece {
                    // SAFETY: no flush came since `place` found the page writable, and no bus call
                    // is made in this loop; the piece does not leave the page.
                    [a, b] => unsafe { u16::store(at, u16::from_le_bytes([a, b])) },
                    // SAFETY: as above.
                    [a, b, c, d] => unsafe { u32::store(at, u32::from_le_bytes([a, b, c, d])) },
                    // SAFETY: as above.
                    [a, b, c, d, e, f, g, h] => unsafe {
                        u64::store(at, u64::from_le_bytes([a, b, c, d, e, f, g, h]));
                    },
                    // SAFETY: as above.
                    _ => unsafe { host::copy_in(at, piece) },
                },
                Place::Mmio(gpa) => {
                    for (index, fragment) in piece.chunks(8).enumerate() {
                        self.mmio_write(gpa + index as u64 * 8, Datum::from_slice(fragment));
                    }
                }
                Place::Device(_) => {}
            }
        }
        // Only now: a device may do anything.
        let mut rest = from;
        for &(place, size) in places {
            let (piece, after) = rest.split_at(size);
            rest = after;
            match place {
                Place::Device(address) => {
                    self.with_bus(|core| core.bus.device_write(core.s, address, piece));
                    // What follows from it may come before the next instruction.
                    self.attention = true;
                }
                Place::Code(at) => self.wrote_code(at, size),
                Place::Host(_) | Place::Mmio(_) => {}
            }
        }
    }

    /// As many of `count` elements as REP MOVS can move without leaving a page or touching MMIO; 0 if
    /// the first one needs more care than that.
    pub(crate) fn bulk_move(&mut self, to: u64, from: u64, count: u64, size: u64) -> u64 {
        let count = count.min((4096 - (to & 0xfff)) / size).min((4096 - (from & 0xfff)) / size);
        let (Some(source), Some(target)) = (self.tlbs.read(self.view, from, 1), self.tlbs.write(self.view, to, 1))
        else {
            return 0;
        };
        // SAFETY: both addresses just came out of the TLB, and `count` elements stay in their pages.
        unsafe { host::rep_movs(target, source, count, size) };
        count
    }

    /// As [`Core::bulk_move`], for REP STOS.
    pub(crate) fn bulk_store(&mut self, to: u64, value: u64, count: u64, size: u64) -> u64 {
        let count = count.min((4096 - (to & 0xfff)) / size);
        let Some(target) = self.tlbs.write(self.view, to, 1) else {
            return 0;
        };
        // SAFETY: the address just came out of the TLB, and `count` elements stay in its page.
        unsafe { host::rep_stos(target, value, count, size) };
        count
    }

    /// As [`Core::bulk_move`], for REPE SCAS or REPNE SCAS; also returns RFLAGS after the last comparison.
    pub(crate) fn bulk_scan(&mut self, at: u64, accumulator: u64, count: u64, size: u64, equal: bool) -> (u64, u64) {
        let count = count.min((4096 - (at & 0xfff)) / size);
        match self.tlbs.read(self.view, at, 1) {
            // SAFETY: the address just came out of the TLB, and `count` elements stay in its page.
            Some(source) if count > 0 => unsafe { host::rep_scas(source, accumulator, count, size, equal) },
            _ => (0, 0),
        }
    }

    /// Whether the code at `linear` (which does not cross a page) still is `expected`.
    #[inline(always)]
    pub(crate) fn code_equals(&mut self, linear: u64, expected: &[u8]) -> Result<bool, Abort> {
        let at = self.code_address(linear)?;
        // SAFETY: the address just came out of the TLB; blocks do not cross pages.
        Ok(unsafe { host::equals(at, expected) })
    }

    /// The code from `linear` to the end of its page, at most as much as `into` takes; returns how much.
    pub(crate) fn fetch_code(&mut self, linear: u64, into: &mut [u8]) -> Result<usize, Abort> {
        let size = into.len().min(4096 - (linear & 0xfff) as usize);
        let at = self.code_address(linear)?;
        // SAFETY: the address just came out of the TLB; `size` does not leave the page.
        unsafe { host::copy_out(at, &mut into[..size]) };
        Ok(size)
    }

    /// Host address of the code at `linear`.
    #[inline(always)]
    pub(crate) fn code_address(&mut self, linear: u64) -> Result<*mut u8, Abort> {
        if let Some(at) = self.tlbs.fetch(self.view, linear) {
            return Ok(at);
        }
        match self.place(linear, AccessKind::Fetch, self.view)? {
            Place::Host(at) | Place::Code(at) => Ok(at),
            Place::Mmio(at) | Place::Device(at) => self.exit(CpuExit::NoMemory { gpa: at & !0xfff }),
        }
    }
}

/// Replaces the value at a host address by `change` of it and returns the old one. With `lock`, atomically; `change` may
/// then be called several times.
///
/// # Safety
/// `at` points to as many writable bytes.
#[inline(always)]
unsafe fn exchange<T: Cell + Word>(at: *mut u8, lock: bool, change: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: the caller says that the bytes are there.
    let mut old = unsafe { T::load(at) };
    if !lock {
        // SAFETY: the caller says that the bytes are writable.
        unsafe { T::store(at, T::cut(change(old.wide()))) };
        return old.wide();
    }
    loop {
        // SAFETY: as above.
        let found = unsafe { T::compare_exchange(at, old, T::cut(change(old.wide()))) };
        if found == old {
            return old.wide();
        }
        old = found;
    }
}

/// An access cut at page boundaries: linear address and size of each part.
fn pieces(linear: u64, size: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < size).then(|| {
            let at = linear.wrapping_add(done as u64);
            let piece = (size - done).min(4096 - (at & 0xfff) as usize);
            done += piece;
            (at, piece)
        })
    })
}

/// Whether all bits above the width of linear addresses equal the highest one inside.
#[inline]
pub(crate) fn is_canonical(linear: u64, cr4: u64) -> bool {
    let unused = if cr4 & cr4::LA57 != 0 { 7 } else { 16 };
    ((linear << unused) as i64 >> unused) as u64 == linear
}
