//! What host and guest say to each other.
//!
//! Each vCPU has one page of shared memory, its *mailbox*. The host writes an [`Op`] into it and enters the
//! guest; the guest executes it, writes a [`Reply`] and rings the doorbell, which leaves the guest. The
//! mailbox is 512 words of 64 bits (little endian), so that both sides see it as `&[AtomicU64; 512]` and
//! neither needs `unsafe` to speak. Everything that is read from it is checked: a word that means nothing is
//! a [`DecodeError`] that names the field.
//!
//! [`VERSION`] changes with the table of operations and with the layout: the loader refuses payloads of another version.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod argument;
mod decode;
mod descriptor;
mod layout;
mod mailbox;
mod op;
mod parameter;
mod pattern;
mod reply;
mod start;
mod version;

pub use decode::{DecodeError, Field};
pub use descriptor::{DESCRIPTOR_BYTES, Descriptor, DescriptorField};
pub use layout::{
    ARGS, MAGIC_WORD, MAX_MESSAGE, MAX_VCPUS, OP, PAYLOAD_BASE, PAYLOAD_END, REPLY_SEQ, REQUEST_SEQ, STATUS,
    TEXT_BYTES, TEXT_LEN, VALUES, WORDS, Words,
};
pub use mailbox::{GuestMailbox, HostMailbox};
pub use op::Op;
pub use parameter::{Convert, Length, Order, Sharing, Width};
pub use pattern::Pattern;
pub use reply::{Failure, FailureKind, Fault, Refusal, Reply, Values};
pub use start::{AliasBits, Conversion, Doorbell, HypercallInstruction, Start};
pub use version::VERSION;

/// The first eight bytes of the `.privet` section of every payload, and the first word of every mailbox.
pub const MAGIC: u64 = u64::from_le_bytes(*b"privet01");

/// The I/O port of [`Doorbell::Port`].
pub const DOORBELL_PORT: u16 = 0xe0;
