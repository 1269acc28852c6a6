//! Where things are: the words of a mailbox and the addresses that host and payload agree on.

use core::sync::atomic::AtomicU64;

/// 64-bit words in a mailbox: one page.
pub const WORDS: usize = 512;

/// A mailbox as memory.
pub type Words = [AtomicU64; WORDS];

/// vCPUs that a payload can have.
pub const MAX_VCPUS: usize = 4;

/// GPA (and GVA: low memory is identity-mapped) of the first byte of every payload.
pub const PAYLOAD_BASE: u64 = 0x10_0000;

/// GPA after the last byte that a payload may occupy.
pub const PAYLOAD_END: u64 = 0x20_0000;

/// Word of a mailbox: [`MAGIC`](crate::MAGIC), written by the host before the first entry.
pub const MAGIC_WORD: usize = 0;
/// Word of a mailbox: sequence number of the request, written last by the host.
pub const REQUEST_SEQ: usize = 1;
/// Word of a mailbox: sequence number of the request that the reply answers, written last by the guest.
pub const REPLY_SEQ: usize = 2;
/// Nonzero: operations that go on until they are told to stop shall end.
pub(crate) const STOP: usize = 3;
/// How many rounds an operation that goes on until it is stopped has done so far.
pub(crate) const ROUNDS: usize = 5;
/// The first word of what the guest is told at its start, see `Start`; written by the host before the first entry.
pub(crate) const START: usize = 18;
/// How many words of that there are.
pub(crate) const START_COUNT: usize = 6;
/// Word of a mailbox: code of the operation.
pub const OP: usize = 8;
/// Word of a mailbox: the first argument of the operation.
pub const ARGS: usize = 9;
/// How many words of arguments there are.
pub(crate) const ARG_COUNT: usize = 9;
/// Word of a mailbox: status of the reply.
pub const STATUS: usize = 24;
/// Word of a mailbox: the first value of the reply.
pub const VALUES: usize = 25;
/// How many words of values there are.
pub(crate) const VALUE_COUNT: usize = 11;
/// Word of a mailbox: length in bytes of the first text (message, or bytes of a request or reply).
pub const TEXT_LEN: usize = 36;
/// Length in bytes of the second text (file name), which follows the first at the next word.
pub(crate) const FILE_LEN: usize = 37;
/// The texts.
pub(crate) const TEXT: usize = 40;

/// Bytes that the texts of a mailbox can hold together, each rounded up to whole words.
pub const TEXT_BYTES: usize = (WORDS - TEXT) * 8;

/// Bytes that the message of a failure can have: the rest is for the name of the file.
pub const MAX_MESSAGE: usize = TEXT_BYTES / 4 * 3;

/// The numbers above that both sides have to agree on, for the version of the protocol.
pub(crate) const NUMBERS: [usize; 18] = [
    WORDS,
    MAX_VCPUS,
    MAGIC_WORD,
    REQUEST_SEQ,
    REPLY_SEQ,
    STOP,
    ROUNDS,
    START,
    START_COUNT,
    OP,
    ARGS,
    ARG_COUNT,
    STATUS,
    VALUES,
    VALUE_COUNT,
    TEXT_LEN,
    FILE_LEN,
    TEXT,
];
