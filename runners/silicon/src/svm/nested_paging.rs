//! Nested paging (APM volume 2, 15.25): guest-physical to system-physical addresses.
//!
//! Nested tables have the format of the host's at VMRUN: 4 levels, or 5 with CR4.LA57, and no-execute with EFER.NXE.
//! Memory types (MTRRs, PATs, 15.25.8) are not simulated: there are no caches that they could matter to.

use privet_cpu::paging::{self, Tables, View, Walk, WalkRegisters};
use privet_cpu::state::{cr4, efer};
use privet_cpu::{Access, AccessKind, CpuState, Encryption};
use serde::{Deserialize, Serialize};

use super::features::Features;
use crate::memory::{PhysicalMemory, read_u64, write_u64};
use crate::rmp::PageSize;

/// Bits of EXITINFO1 that a page fault's error code has not (15.25.6).
const GUEST_FINAL: u64 = 1 << 32;
const GUEST_PAGE: u64 = 1 << 33;

/// The nested tables of a guest, and how they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NestedTables {
    root: u64,
    five_levels: bool,
    no_execute: bool,
    physical_bits: u8,
}

impl NestedTables {
    /// The tables at `nested_cr3`, in the format that the host's registers say.
    pub(crate) fn new(nested_cr3: u64, host: &CpuState, features: &Features) -> NestedTables {
        NestedTables {
            root: nested_cr3,
            five_levels: host.cr4 & cr4::LA57 != 0,
            no_execute: host.efer & efer::NXE != 0,
            physical_bits: features.physical_bits,
        }
    }

    /// The system-physical page of the page at `gpa` and what it is mapped with, or EXITINFO1 of the nested page fault.
    ///
    /// Every access is a user's (15.25.5), so that CR0.WP, SMEP and SMAP of the host have no say, and the guest's own
    /// page tables are always written: the processor may have to set their accessed and dirty bits.
    pub(crate) fn translate(
        &self,
        memory: &mut (impl PhysicalMemory + ?Sized),
        gpa: u64,
        access: Access,
    ) -> Result<(u64, PageSize), u64> {
        let kind = if access.walk { AccessKind::Write } else { access.kind };
        match self.walk(memory, gpa, kind, true) {
            Walk::Page { gpa: page, level, .. } => Ok((page, PageSize::of_bit(level > 1))),
            Walk::Fault(code) => Err(u64::from(code) | place(access)),
        }
    }

    /// The system-physical page of the page at `gpa`, without a trace in the tables; `None` if reading it would fault.
    pub(crate) fn peek(&self, memory: &mut (impl PhysicalMemory + ?Sized), gpa: u64) -> Option<u64> {
        match self.walk(memory, gpa, AccessKind::Read, false) {
            Walk::Page { gpa: page, .. } => Some(page),
            Walk::Fault(_) => None,
        }
    }

    fn walk(&self, memory: &mut (impl PhysicalMemory + ?Sized), gpa: u64, kind: AccessKind, update: bool) -> Walk {
        let registers = WalkRegisters {
            root: self.root & paging::PTE_ADDRESS,
            levels: if self.five_levels { 5 } else { 4 },
            page_size_extensions: false,
            write_protect: true,
            smep: false,
            smap: false,
            no_execute: self.no_execute,
            physical_bits: self.physical_bits,
            gigabyte_pages: true,
            encryption: Encryption::None,
        };
        match paging::walk(&mut Entries(memory), &registers, gpa, kind, View::User, update) {
            Ok(walk) => walk,
            Err(never) => match never {},
        }
    }
}

/// Whether a nested page fault is about the guest's tables or about what they lead to.
pub(super) fn place(access: Access) -> u64 {
    if access.walk { GUEST_PAGE } else { GUEST_FINAL }
}

/// Page tables in system-physical memory.
struct Entries<'a, M: ?Sized>(&'a mut M);

impl<M: PhysicalMemory + ?Sized> Tables for Entries<'_, M> {
    type Error = std::convert::Infallible;

    fn read(&mut self, at: u64) -> Result<u64, Self::Error> {
        Ok(read_u64(self.0, at))
    }

    fn update(&mut self, at: u64, _old: u64, new: u64) -> Result<bool, Self::Error> {
        write_u64(self.0, at, new);
        Ok(true)
    }
}
