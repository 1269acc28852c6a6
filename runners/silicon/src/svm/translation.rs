//! Where an access to memory goes, and whether the reverse map table lets it.

use privet_cpu::paging::{PF_PRESENT, PF_USER, PF_WRITE};
use privet_cpu::{Access, AccessKind, CpuState, Exception, PAGE_SIZE};

use super::Svm;
use super::automatic::{Fate, fate};
use super::exit::Exit;
use super::snp_instructions::{not_validated, rmp_fault};
use crate::Rule;
use crate::board::Board;
use crate::encryption::Key;
use crate::interface::Translation;
use crate::rmp::{self, PageSize, PrivateAccess, Refusal, error_code};

impl Svm {
    /// Where the page at `gpa` (page aligned) is, which is a system-physical address in the host. A nested page fault
    /// ends the guest's access, and so does the RMP's refusal; the host gets a page fault for that.
    pub fn translate(&mut self, board: &mut impl Board, state: &mut CpuState, gpa: u64, access: Access) -> Translation {
        let (page, mapping) = match self.nested_page(board, gpa, access) {
            Ok(found) => found,
            Err(error) => {
                let exit = Exit::nested_page_fault(error, gpa | u64::from(access.offset), access.next_rip);
                return self.end_access(board, state, exit);
            }
        };
        let protection = self.protection().filter(|_| self.is_private(access));
        if let Some(rmp) = board.rmp() {
            let snp = protection.and_then(|protection| Some((protection.asid, protection.vmpl()?)));
            let refusal = match snp {
                Some((asid, vmpl)) => {
                    let private = PrivateAccess { asid, vmpl, gpa, mapping, kind: access.kind, user: access.user };
                    rmp::check_private(&rmp, board, page, &private).err()
                }
                None if access.kind == AccessKind::Write => {
                    let allowed = rmp::may_write_shared(&rmp, board, page, self.written_size(access, mapping));
                    (!allowed).then_some(Refusal::Nested(error_code::RMP))
                }
                None => None,
            };
            if let Some(refusal) = refusal {
                return self.refuse_access(board, state, gpa, access, refusal);
            }
        }
        Translation::Page { page, key: protection.map_or(Key::PLAIN, |protection| protection.key) }
    }

    /// What a page is written as: in the host as its own tables map it, in a guest as the nested ones do.
    fn written_size(&self, access: Access, nested: PageSize) -> PageSize {
        let large = if self.guest.is_some() { nested == PageSize::Size2M } else { access.size > PAGE_SIZE };
        PageSize::of_bit(large && self.holds(Rule::LargeWrites))
    }

    /// Whether an access of an encrypted guest uses its key. The CPU has decided it by its own page tables.
    fn is_private(&self, access: Access) -> bool {
        match access.kind {
            _ if access.walk => access.private && self.holds(Rule::PrivateWalks),
            AccessKind::Fetch => access.private && self.holds(Rule::PrivateFetches),
            _ => access.private || !self.holds(Rule::SharedWithoutCBit),
        }
    }

    fn refuse_access(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        gpa: u64,
        access: Access,
        refusal: Refusal,
    ) -> Translation {
        match refusal {
            Refusal::NotValidated => Translation::Reflect(not_validated()),
            Refusal::Nested(_) if self.guest.is_none() => Translation::Reflect(host_write_fault(access)),
            Refusal::Nested(bits) => self.end_access(board, state, rmp_fault(gpa, access, bits)),
        }
    }

    /// Where the page at `gpa` is by the nested page tables and how it is mapped, or EXITINFO1 of the fault.
    pub(super) fn nested_page(&self, board: &mut impl Board, gpa: u64, access: Access) -> Result<(u64, PageSize), u64> {
        let Some(nested) = self.guest.as_ref().and_then(|guest| guest.nested) else {
            return Ok((gpa, PageSize::Size4K));
        };
        let told = self.protection().is_some() && self.holds(Rule::EncryptedFaults);
        let private = if told && access.private { error_code::ENC } else { 0 };
        nested.translate(board, gpa, access).map_err(|error| error | private)
    }

    /// Ends the guest's access with this exit, or with the #VC that the guest gets in place of it.
    fn end_access(&mut self, board: &mut impl Board, state: &mut CpuState, exit: Exit) -> Translation {
        match fate(&exit, self.features.rules) {
            Fate::Exception(exception) if self.registers_encrypted() => Translation::Reflect(exception),
            _ => {
                self.vmexit(board, state, exit);
                Translation::Switched
            }
        }
    }
}

/// #PF of a write to a page that is not the hypervisor's (15.36.10).
fn host_write_fault(access: Access) -> Exception {
    let user = if access.user { PF_USER } else { 0 };
    Exception::pf(access.linear, PF_PRESENT | PF_WRITE | user | error_code::RMP as u32)
}
