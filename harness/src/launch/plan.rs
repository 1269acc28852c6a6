//! What lies where in a guest's own memory, and of which kind it is.

use std::ops::Range;

use privet_protocol::{MAX_VCPUS, PAYLOAD_BASE};

use crate::outcome::{Outcome, Stop};
use crate::page_tables::PageTables;
use crate::payload::Payload;
use crate::units::{Gpa, PAGE_SIZE, PageCount};

/// GPA (and GVA: it is mapped identically) of the first byte of a guest's own memory.
pub const OWN_BASE: Gpa = Gpa(PAYLOAD_BASE);
/// GPA of the mailbox of vCPU 0; the others follow page by page.
pub(crate) const MAILBOXES: Gpa = Gpa(0x20_0000);
/// GPA of the GHCB of vCPU 0, likewise, for guests that have one.
const GHCBS: Gpa = Gpa(MAILBOXES.0 + MAX_VCPUS as u64 * PAGE_SIZE);
/// GPA of the GHCB of vCPU `index`.
pub fn ghcb(index: usize) -> Gpa {
    Gpa(GHCBS.0 + index as u64 * PAGE_SIZE)
}

/// GPA of the page with the firmware's secrets, in guests that have one; the page with CPUID follows.
pub const SECRETS: Gpa = Gpa(0x1f_e000);
/// GPA (and GVA) of the page with CPUID.
pub const CPUID: Gpa = Gpa(SECRETS.0 + PAGE_SIZE);

/// GPA of the root page table; the other tables follow page by page.
pub(crate) const TABLES: Gpa = Gpa(0x40_0000);
/// GPA after the last byte.
const END: Gpa = Gpa(0x60_0000);

/// A part of a guest's own memory that can be private.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// What the payload executes.
    Code,
    /// What else the payload has: constants, variables, descriptor tables, stacks.
    Data,
    /// The page tables.
    Tables,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 3] = [Part::Code, Part::Data, Part::Tables];
}

/// How a piece is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Host and guest both have it.
    Shared,
    /// Only the guest has it; its content is there before the guest's first instruction.
    Private,
    /// Likewise, and the content is the firmware's: keys for messages between the guest and it (SNP).
    Secrets,
    /// Likewise, and the firmware has checked the content: a table of CPUID (SNP).
    Cpuid,
}

/// Whole pages that lie together and are of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it begins.
    pub gpa: Gpa,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its kind.
    pub kind: Kind,
    /// What it is; None for mailboxes and GHCBs, which are always shared, and for pages of the firmware's.
    pub part: Option<Part>,
}

impl Piece {
    /// Its length.
    pub fn pages(&self) -> PageCount {
        PageCount::of_bytes(self.bytes.len() as u64)
    }

    /// Where it is in the host's view of the guest's own memory, in whole pages.
    pub fn in_own_memory(&self) -> Range<u64> {
        let start = self.gpa.0 - OWN_BASE.0;
        start..start + self.pages().bytes()
    }
}

/// All of a guest's own memory.
#[derive(Clone, Debug)]
pub struct Plan {
    pieces: Vec<Piece>,
}

impl Plan {
    /// `payload` under `tables`, with these parts private.
    ///
    /// # Errors
    /// [`Stop::Error`] if the tables do not fit.
    pub(crate) fn new(payload: &Payload, tables: &PageTables, private: &[Part]) -> Outcome<Plan> {
        let piece = |gpa, bytes, part| {
            let kind = if private.contains(&part) { Kind::Private } else { Kind::Shared };
            Piece { gpa, bytes, kind, part: Some(part) }
        };
        let mut pieces = Vec::new();
        for segment in &payload.segments {
            let part = if segment.executable { Part::Code } else { Part::Data };
            pieces.push(piece(Gpa(segment.gpa), segment.bytes.clone(), part));
        }
        let mailboxes = vec![0; 2 * MAX_VCPUS * PAGE_SIZE as usize];
        pieces.push(Piece { gpa: MAILBOXES, bytes: mailboxes, kind: Kind::Shared, part: None });
        if (TABLES + tables.pages()).0 > END.0 {
            return Err(Stop::Error(format!(
                "{} pages of page tables do not fit below gpa {END}; use smaller test ranges",
                tables.pages().0
            )));
        }
        pieces.push(piece(TABLES, tables.bytes(), Part::Tables));
        Ok(Plan { pieces })
    }

    /// The same with a page of secrets and a page with this table of CPUID.
    ///
    /// # Errors
    /// [`Stop::Error`] if the payload lies there.
    pub(crate) fn with_firmware_pages(mut self, cpuid: Vec<u8>) -> Outcome<Plan> {
        let behind = self.pieces.partition_point(|piece| piece.gpa.0 < SECRETS.0);
        let before = behind.checked_sub(1).map(|last| &self.pieces[last]);
        if before.is_some_and(|piece| (piece.gpa + piece.pages()).0 > SECRETS.0) {
            return Err(Stop::Error(format!("the payload reaches over gpa {SECRETS}, where the firmware's pages are")));
        }
        let secrets = Piece { gpa: SECRETS, bytes: vec![0; PAGE_SIZE as usize], kind: Kind::Secrets, part: None };
        let cpuid = Piece { gpa: CPUID, bytes: cpuid, kind: Kind::Cpuid, part: None };
        self.pieces.splice(behind..behind, [secrets, cpuid]);
        Ok(self)
    }

    /// All pieces, in the order of their addresses.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces that are private, and have their content from the host alone.
    pub fn private(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| piece.kind == Kind::Private)
    }

    /// The length of the memory in which all of it lies, from [`OWN_BASE`] on.
    pub(crate) fn length() -> PageCount {
        PageCount::of_bytes(END.0 - OWN_BASE.0)
    }
}
