//! The two views of a mailbox.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::MAGIC;
use crate::decode::{DecodeError, Field};
use crate::layout::{
    ARG_COUNT, ARGS, FILE_LEN, MAGIC_WORD, MAX_MESSAGE, OP, REPLY_SEQ, REQUEST_SEQ, ROUNDS, START, START_COUNT, STATUS,
    STOP, TEXT, TEXT_BYTES, TEXT_LEN, VALUE_COUNT, VALUES, Words,
};
use crate::op::Op;
use crate::reply::Reply;
use crate::start::Start;

/// The host's side of a mailbox.
#[derive(Clone, Copy)]
pub struct HostMailbox<'a>(&'a Words);

impl<'a> HostMailbox<'a> {
    /// The mailbox in `words`.
    pub const fn new(words: &'a Words) -> Self {
        Self(words)
    }

    /// Prepares a fresh mailbox, before the vCPU first runs.
    pub fn init(self, start: Start) {
        for word in self.0 {
            word.store(0, Relaxed);
        }
        for (word, value) in self.0[START..START + START_COUNT].iter().zip(start.encode()) {
            word.store(value, Relaxed);
        }
        self.0[MAGIC_WORD].store(MAGIC, Release);
    }

    /// Writes a request and returns its sequence number. `bytes` is the text of [`Op::WriteBytes`].
    ///
    /// # Panics
    /// If `bytes` does not fit into the text area: [`Op`] limits it.
    pub fn send(self, op: Op, bytes: &[u8]) -> u64 {
        let (code, args) = op.encode();
        self.0[STOP].store(0, Relaxed);
        self.0[ROUNDS].store(0, Relaxed);
        self.0[STATUS].store(0, Relaxed);
        self.0[OP].store(code, Relaxed);
        for (word, value) in self.0[ARGS..ARGS + ARG_COUNT].iter().zip(args) {
            word.store(value, Relaxed);
        }
        put_texts(self.0, bytes, &[]);
        let sequence = self.0[REQUEST_SEQ].load(Relaxed).wrapping_add(1);
        self.0[REQUEST_SEQ].store(sequence, Release);
        sequence
    }

    /// Tells an operation that goes on until it is stopped to end.
    pub fn stop(self) {
        self.0[STOP].store(1, Release);
    }

    /// How many rounds an operation that goes on until it is stopped has done so far.
    pub fn rounds(self) -> u64 {
        self.0[ROUNDS].load(Acquire)
    }

    /// The reply to request `sequence`.
    ///
    /// # Errors
    /// Whatever is not a reply to that request names the field that is wrong.
    pub fn reply(self, sequence: u64) -> Result<Reply, DecodeError> {
        let magic = self.0[MAGIC_WORD].load(Acquire);
        if magic != MAGIC {
            return Err(DecodeError::new(Field::Magic, magic));
        }
        let status = self.0[STATUS].load(Relaxed);
        let values = core::array::from_fn::<_, VALUE_COUNT, _>(|i| self.0[VALUES + i].load(Relaxed));
        let reply = Reply::decode(status, values);
        // A failure may come before or beside any request, so it is reported whatever its number is.
        if let Ok(Reply::Failed(_)) = reply {
            return reply;
        }
        let answered = self.0[REPLY_SEQ].load(Acquire);
        if answered != sequence {
            return Err(DecodeError::new(Field::ReplySequence, answered));
        }
        reply
    }

    /// The two texts of a reply (bytes or message or expression; file name) as byte iterators.
    ///
    /// # Errors
    /// [`Field::TextLength`] if they claim to be longer than the text area.
    pub fn texts(
        self,
    ) -> Result<(impl Iterator<Item = u8> + use<'a>, impl Iterator<Item = u8> + use<'a>), DecodeError> {
        let (first, second) = text_lengths(self.0)?;
        Ok((bytes(self.0, 0, first), bytes(self.0, first.div_ceil(8), second)))
    }
}

/// The guest's side of a mailbox.
#[derive(Clone, Copy)]
pub struct GuestMailbox<'a>(&'a Words);

impl<'a> GuestMailbox<'a> {
    /// The mailbox in `words`.
    pub const fn new(words: &'a Words) -> Self {
        Self(words)
    }

    /// Whether this is a mailbox that the host has prepared.
    pub fn is_ready(self) -> bool {
        self.0[MAGIC_WORD].load(Acquire) == MAGIC
    }

    /// What the host tells a guest about the VM that it is in.
    ///
    /// # Errors
    /// The field that makes no sense.
    pub fn start(self) -> Result<Start, DecodeError> {
        Start::decode(core::array::from_fn(|i| self.0[START + i].load(Relaxed)))
    }

    /// The request that follows request `previous`.
    ///
    /// # Errors
    /// [`Field::RequestSequence`] if the host entered the guest without a new request, otherwise the field
    /// that makes no sense.
    pub fn request(self, previous: u64) -> Result<Op, DecodeError> {
        let sequence = self.0[REQUEST_SEQ].load(Acquire);
        if sequence != previous.wrapping_add(1) {
            return Err(DecodeError::new(Field::RequestSequence, sequence));
        }
        let args = core::array::from_fn(|i| self.0[ARGS + i].load(Relaxed));
        Op::decode(self.0[OP].load(Relaxed), args)
    }

    /// The code of the request that is in the mailbox, whether it can be decoded or not.
    pub fn op_code(self) -> u64 {
        self.0[OP].load(Relaxed)
    }

    /// Byte `index` of the request's text.
    pub fn byte(self, index: usize) -> u8 {
        byte(self.0, index)
    }

    /// Whether the host wants a long operation to end.
    pub fn must_stop(self) -> bool {
        self.0[STOP].load(Acquire) != 0
    }

    /// Tells the host how many rounds a long operation has done so far.
    pub fn set_rounds(self, rounds: u64) {
        self.0[ROUNDS].store(rounds, Release);
    }

    /// Stores byte `index` of the reply's first text.
    pub fn set_byte(self, index: usize, value: u8) {
        let word = &self.0[TEXT + index / 8];
        let shift = index % 8 * 8;
        word.store(word.load(Relaxed) & !(0xff << shift) | u64::from(value) << shift, Relaxed);
    }

    /// Declares how long the first text of the reply is, after [`Self::set_byte`].
    pub fn set_text_len(self, len: usize) {
        self.0[TEXT_LEN].store(len as u64, Relaxed);
        self.0[FILE_LEN].store(0, Relaxed);
    }

    /// Declares how long the message of a failure is, after [`Self::set_byte`], and stores the name of the
    /// file after it. What does not fit is cut off.
    pub fn set_failure_texts(self, message_len: usize, file: &[u8]) {
        let file = &file[..file.len().min(TEXT_BYTES - MAX_MESSAGE)];
        self.0[TEXT_LEN].store(message_len as u64, Relaxed);
        self.0[FILE_LEN].store(file.len() as u64, Relaxed);
        put_bytes(self.0, message_len.div_ceil(8), file);
    }

    /// Writes the reply to request `sequence`. The doorbell follows.
    pub fn answer(self, sequence: u64, reply: Reply) {
        let (status, values) = reply.encode();
        for (word, value) in self.0[VALUES..VALUES + VALUE_COUNT].iter().zip(values) {
            word.store(value, Relaxed);
        }
        self.0[STATUS].store(status, Relaxed);
        self.0[REPLY_SEQ].store(sequence, Release);
    }
}

fn put_texts(words: &Words, first: &[u8], second: &[u8]) {
    words[TEXT_LEN].store(first.len() as u64, Relaxed);
    words[FILE_LEN].store(second.len() as u64, Relaxed);
    put_bytes(words, 0, first);
    put_bytes(words, first.len().div_ceil(8), second);
}

fn put_bytes(words: &Words, at: usize, bytes: &[u8]) {
    for (word, chunk) in words[TEXT + at..].iter().zip(bytes.chunks(8)) {
        let mut le = [0; 8];
        le[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(le), Relaxed);
    }
}

fn text_lengths(words: &Words) -> Result<(usize, usize), DecodeError> {
    let [first, second] = [TEXT_LEN, FILE_LEN].map(|i| words[i].load(Relaxed));
    for len in [first, second] {
        if len > TEXT_BYTES as u64 {
            return Err(DecodeError::new(Field::TextLength, len));
        }
    }
    if first.next_multiple_of(8) + second > TEXT_BYTES as u64 {
        return Err(DecodeError::new(Field::TextLength, second));
    }
    Ok((first as usize, second as usize))
}

fn byte(words: &Words, index: usize) -> u8 {
    words[TEXT + index / 8].load(Relaxed).to_le_bytes()[index % 8]
}

fn bytes(words: &Words, at: usize, len: usize) -> impl Iterator<Item = u8> + use<'_> {
    (at * 8..at * 8 + len).map(|i| byte(words, i))
}
