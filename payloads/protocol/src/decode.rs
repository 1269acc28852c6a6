//! What is wrong with a mailbox.

use core::fmt;

/// The field of a mailbox that made no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the fields'")]
pub enum Field {
    Magic,
    Op,
    Width,
    Length,
    Sharing,
    Order,
    Present,
    Register,
    Hypercall,
    Doorbell,
    Conversion,
    RequestSequence,
    ReplySequence,
    Status,
    Refusal,
    FailureKind,
    TextLength,
}

/// A word of a mailbox that means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    /// Which field.
    pub field: Field,
    /// What was found there.
    pub word: u64,
}

impl DecodeError {
    pub(crate) const fn new(field: Field, word: u64) -> Self {
        Self { field, word }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mailbox field {:?} holds {:#x}", self.field, self.word)
    }
}

impl core::error::Error for DecodeError {}
