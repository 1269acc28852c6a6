//! Where linear addresses lead: translation, the bus' answer, and what the TLB remembers of both.
#![expect(unsafe_code, reason = "entries of paging structures are read and updated where the bus says they are")]

use crate::bus::{Access, AccessKind, HostPage, Resolve};
use crate::core::Why;
use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::exit::CpuExit;
use crate::host::Cell;
use crate::memory::is_canonical;
use crate::paging::{self, Tables, View, Walk, WalkRegisters};
use crate::state::{cr0, cr4};

/// Where bytes of one page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Host(*mut u8),
    /// Likewise, for a write to a page with code in it, which has to be told.
    Code(*mut u8),
    /// No memory: guest-physical address.
    Mmio(u64),
    /// Registers of a device: system-physical address.
    Device(u64),
}

/// What the bus has said of a page.
enum Page {
    Host(HostPage),
    Mmio,
    Device(u64),
}

/// A page is translated at most so often because its translation was flushed meanwhile.
pub(crate) const MAX_ATTEMPTS: u32 = 4;

impl Core<'_> {
    /// Finds where one linear address leads, from the TLB or by walking, and remembers it.
    pub(crate) fn place(&mut self, linear: u64, kind: AccessKind, view: View) -> Result<Place, Abort> {
        let found = match kind {
            AccessKind::Read => self.tlbs.read(view, linear, 1),
            AccessKind::Write => self.tlbs.write(view, linear, 1),
            AccessKind::Fetch => self.tlbs.fetch(view, linear),
        };
        if let Some(at) = found {
            return Ok(Place::Host(at));
        }
        let mut attempts = 0;
        loop {
            let generation = self.tlbs.generation;
            let (gpa, private, size) = self.translate(linear, kind, view)?;
            let offset = (linear & 0xfff) as u16;
            let user = view == View::User;
            let next_rip = if kind == AccessKind::Fetch || self.s.vectoring.is_some() { 0 } else { self.next_rip };
            let access =
                Access { linear, kind, offset, size, user, walk: false, private, emulated: self.emulating, next_rip };
            let resolved = self.resolve(gpa, access)?;
            // A flush between the walk and here may have been for the page tables that were walked. But if each
            // walk has one, the page is the table (which has to be, say, encrypted anew for each of both).
            attempts += 1;
            if generation != self.tlbs.generation && attempts < MAX_ATTEMPTS {
                continue;
            }
            let offset = linear & 0xfff;
            return Ok(match resolved {
                Page::Host(page) if kind == AccessKind::Write && page.writable() && self.is_code(page.start()) => {
                    Place::Code(page.start().wrapping_add(offset as usize))
                }
                Page::Host(page) if kind != AccessKind::Write || page.writable() => {
                    if !self.watches_memory && generation == self.tlbs.generation {
                        match kind {
                            AccessKind::Read => self.tlbs.fill(view, linear, size, page, false),
                            AccessKind::Write => self.tlbs.fill(view, linear, size, page, true),
                            AccessKind::Fetch => self.tlbs.fill_fetch(view, linear, size, page),
                        }
                    }
                    Place::Host(page.start().wrapping_add(offset as usize))
                }
                Page::Device(page) if kind != AccessKind::Fetch => Place::Device(page | offset),
                _ if self.emulating || kind == AccessKind::Fetch => Place::Mmio(gpa | offset),
                _ => {
                    self.why = Why::Emulate(gpa | offset);
                    return Err(Abort);
                }
            });
        }
    }

    pub(crate) fn is_code(&self, page: *const u8) -> bool {
        self.code.is_some_and(|code| code.is_code(page))
    }

    pub(crate) fn wrote_code(&self, at: *const u8, size: usize) {
        if let Some(code) = self.code {
            code.wrote(at, size);
        }
    }

    /// The guest-physical page of a linear address, whether the access is private, and the size of the page that the
    /// guest has mapped.
    fn translate(&mut self, linear: u64, kind: AccessKind, view: View) -> Result<(u64, bool, u64), Abort> {
        if self.s.cr0 & cr0::PG == 0 {
            return Ok((linear & 0xffff_f000, self.s.encryption.walks_are_private(), 4096));
        }
        if self.s.long_mode() && !is_canonical(linear, self.s.cr4) {
            self.why = Why::NonCanonical;
            return Err(Abort);
        }
        let linear = self.linear_width(linear);
        let registers = WalkRegisters::of(self.s, &self.config);
        match paging::walk(&mut Walker { core: self, linear }, &registers, linear, kind, view, true)? {
            Walk::Page { gpa, private, level } => Ok((gpa, private, registers.page_size(level))),
            Walk::Fault(code) => self.raise(Exception::pf(linear, code)),
        }
    }

    /// A linear address as wide as the mode has them.
    fn linear_width(&self, linear: u64) -> u64 {
        if self.s.long_mode() { linear } else { linear & 0xffff_ffff }
    }

    /// Raises #GP unless the root of PAE paging, if this state has it, can be loaded.
    pub(crate) fn load_root(&mut self) -> Result<(), Abort> {
        if self.s.cr0 & cr0::PG == 0 || self.s.cr4 & cr4::PAE == 0 || self.s.long_mode() {
            return Ok(());
        }
        let registers = WalkRegisters::of(self.s, &self.config);
        let linear = registers.root;
        let valid = paging::root_is_valid(&mut Walker { core: self, linear }, &registers)?;
        if valid { Ok(()) } else { self.raise(Exception::gp(0)) }
    }

    /// The guest-physical address of a linear one for a supervisor read, leaving no trace.
    pub(crate) fn probe(&mut self, linear: u64) -> Option<u64> {
        if self.s.cr0 & cr0::PG == 0 {
            return Some(linear & 0xffff_ffff);
        }
        let registers = WalkRegisters { smap: false, ..WalkRegisters::of(self.s, &self.config) };
        if self.s.long_mode() && !is_canonical(linear, self.s.cr4) {
            return None;
        }
        let linear = self.linear_width(linear);
        match paging::walk(
            &mut Walker { core: self, linear },
            &registers,
            linear,
            AccessKind::Read,
            View::Supervisor,
            false,
        ) {
            Ok(Walk::Page { gpa, .. }) => Some(gpa | linear & 0xfff),
            Ok(Walk::Fault(_)) | Err(Abort) => None,
        }
    }

    /// Asks the bus for a page. No host address survives this.
    fn resolve(&mut self, gpa: u64, access: Access) -> Result<Page, Abort> {
        loop {
            self.kick.leave();
            let resolved = self.bus.resolve(self.s, gpa, access);
            self.kick.enter();
            // In another world there is nothing to ask again.
            if self.flush_as_asked() && resolved != Resolve::Switched {
                continue;
            }
            return match resolved {
                Resolve::Page(page) => Ok(Page::Host(page)),
                Resolve::Mmio => Ok(Page::Mmio),
                Resolve::Device(page) => Ok(Page::Device(page)),
                Resolve::Switched => self.switch(),
                Resolve::Exit => self.exit(CpuExit::Bus),
                Resolve::Skip if self.s.vectoring.is_some() => self.exit(CpuExit::NoMemory { gpa: gpa & !0xfff }),
                Resolve::Skip => {
                    self.s.rip = self.next_rip;
                    self.exit(CpuExit::Bus)
                }
                Resolve::Reflect(exception) => self.raise(exception),
            };
        }
    }

    /// The host address of a paging-structure entry for the walk of `linear`.
    fn table_entry(&mut self, linear: u64, gpa: u64, write: bool) -> Result<*mut u8, Abort> {
        if let Some(at) = self.tlbs.table(gpa, write) {
            return Ok(at);
        }
        let access = Access {
            linear,
            kind: if write { AccessKind::Write } else { AccessKind::Read },
            offset: (gpa & 0xfff) as u16,
            size: 0x1000,
            user: false,
            walk: true,
            private: self.s.encryption.walks_are_private(),
            emulated: self.emulating,
            next_rip: 0,
        };
        match self.resolve(gpa & !0xfff, access)? {
            Page::Host(page) if !write || page.writable() => {
                let at = page.start().wrapping_add((gpa & 0xfff) as usize);
                if write && self.is_code(at) {
                    self.wrote_code(at, 8);
                } else {
                    self.tlbs.fill_table(gpa, page, write);
                }
                Ok(at)
            }
            _ => self.exit(CpuExit::NoMemory { gpa: gpa & !0xfff }),
        }
    }
}

/// The paging structures as the walk of one linear address sees them.
struct Walker<'a, 'b> {
    core: &'a mut Core<'b>,
    linear: u64,
}

impl Tables for Walker<'_, '_> {
    type Error = Abort;

    fn read(&mut self, gpa: u64) -> Result<u64, Abort> {
        let at = self.core.table_entry(self.linear, gpa, false)?;
        // SAFETY: `table_entry` just found the page; entries are aligned and do not leave it.
        Ok(unsafe { u64::load(at) })
    }

    fn update(&mut self, gpa: u64, old: u64, new: u64) -> Result<bool, Abort> {
        let at = self.core.table_entry(self.linear, gpa, true)?;
        // SAFETY: `table_entry` just found the page writable.
        Ok(unsafe { u64::compare_exchange(at, old, new) } == old)
    }
}
