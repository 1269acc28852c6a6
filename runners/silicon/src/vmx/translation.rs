//! Where an access to memory goes.

use privet_cpu::{Access, AccessKind, CpuState};

use super::Vmx;
use super::ept::{Fault, Found};
use super::exit::{Exit, Reason};
use crate::board::Board;
use crate::encryption::Key;
use crate::interface::Translation;
use crate::memory::{PhysicalMemory, write_u64};

/// Entries of a log of modified pages.
const LOG_ENTRIES: u16 = 512;

/// Kinds of an access to the APIC-access page (table 28-6).
mod kind {
    pub(super) const READ: u64 = 0;
    pub(super) const WRITE: u64 = 1;
    pub(super) const FETCH: u64 = 2;
    pub(super) const DELIVERY: u64 = 3;
    pub(super) const PHYSICAL_DELIVERY: u64 = 10;
    pub(super) const PHYSICAL: u64 = 15;
}

impl Vmx {
    /// Where the page at `gpa` (page aligned) is, which is a physical address in the host. What EPT has against it ends
    /// the guest's access.
    pub fn translate(&mut self, board: &mut impl Board, state: &mut CpuState, gpa: u64, access: Access) -> Translation {
        let page = match self.page(board, gpa, access) {
            Ok(page) => page,
            Err(fault) => {
                self.vmexit(board, state, exit_of(fault, state, gpa, access));
                return Translation::Switched;
            }
        };
        let Some(guest) = self.guest().filter(|guest| guest.apic.access_page == Some(page)) else {
            return Translation::Page { page, key: Key::PLAIN };
        };
        match apic_kind(state, access) {
            kind::READ if guest.apic.reads(access.offset.into()) => Translation::Device(page),
            kind::WRITE if guest.apic.writes(access.offset.into()) => Translation::Device(page),
            kind => {
                let qualification = u64::from(access.offset) | kind << 12;
                let length = length(state, access);
                let exit =
                    Exit { linear: access.linear, ..Exit::instruction(Reason::ApicAccess, qualification, length) };
                self.vmexit(board, state, exit);
                Translation::Switched
            }
        }
    }

    /// The page by the EPT, which becomes dirty in the log.
    fn page(&mut self, board: &mut impl Board, gpa: u64, access: Access) -> Result<u64, Fault> {
        let Some(guest) = self.guest_mut() else { return Ok(gpa) };
        let Some(ept) = guest.ept else { return Ok(gpa) };
        let may_dirty = guest.log.is_none_or(|log| log.index < LOG_ENTRIES);
        let Found { page, made_dirty } = ept.walk(board, gpa, access, may_dirty)?;
        if let Some(log) = guest.log.as_mut().filter(|_| made_dirty) {
            write_u64(board, log.address + u64::from(log.index) * 8, gpa);
            log.index = log.index.wrapping_sub(1);
        }
        Ok(page)
    }

    /// Reads registers of the virtual APIC; false if there are none at this address.
    pub fn device_read(&mut self, board: &mut impl PhysicalMemory, address: u64, data: &mut [u8]) -> bool {
        let Some(page) = self.virtual_page(address) else { return false };
        board.read(page + (address & 0xfff), data);
        true
    }

    /// Writes registers of the virtual APIC; false if there are none at this address.
    pub fn device_write(&mut self, board: &mut impl Board, address: u64, data: &[u8]) -> bool {
        let Some(page) = self.virtual_page(address) else { return false };
        board.write(page + (address & 0xfff), data);
        if let Some(guest) = self.guest_mut() {
            guest.apic.written(board, address & 0xfff);
        }
        board.raise_event();
        true
    }

    /// The virtual-APIC page, if the address is in the APIC-access page.
    fn virtual_page(&self, address: u64) -> Option<u64> {
        let apic = &self.guest()?.apic;
        apic.page.filter(|_| apic.access_page == Some(address & !0xfff))
    }
}

fn apic_kind(state: &CpuState, access: Access) -> u64 {
    let delivers = state.vectoring.is_some();
    match access.kind {
        _ if access.walk && delivers => kind::PHYSICAL_DELIVERY,
        _ if access.walk => kind::PHYSICAL,
        AccessKind::Fetch => kind::FETCH,
        _ if delivers => kind::DELIVERY,
        AccessKind::Read => kind::READ,
        AccessKind::Write => kind::WRITE,
    }
}

/// Bytes of the instruction whose data is accessed. The manual promises it for few exits; KVM relies on it for
/// misconfigurations, and skips the store.
fn length(state: &CpuState, access: Access) -> u8 {
    if access.next_rip == 0 { 0 } else { access.next_rip.wrapping_sub(state.rip) as u8 & 0xf }
}

fn exit_of(fault: Fault, state: &CpuState, gpa: u64, access: Access) -> Exit {
    let (reason, qualification) = match fault {
        Fault::Violation(qualification) => (Reason::EptViolation, qualification),
        Fault::Misconfiguration => (Reason::EptMisconfiguration, 0),
        // Bit 12 would be that an IRET has unblocked NMIs, which this CPU does last.
        Fault::LogFull => (Reason::PmlFull, 0),
    };
    let exit = Exit::instruction(reason, qualification, length(state, access));
    Exit { linear: access.linear, gpa: gpa | u64::from(access.offset), ..exit }
}
