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
    /// What it is; None for mailboxes and GHCBs, which are always shared.
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

    /// All pieces, in the order of their addresses.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces that are private.
    pub fn private(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| piece.kind == Kind::Private)
    }

    /// The length of the memory in which all of it lies, from [`OWN_BASE`] on.
    pub(crate) fn length() -> PageCount {
        PageCount::of_bytes(END.0 - OWN_BASE.0)
    }
}
