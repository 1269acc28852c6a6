//! One vCPU of a guest: operations go in through its mailbox, replies and exits come out.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use privet_protocol::{
    Failure, FailureKind, Fault, HostMailbox, Length, Op, Pattern, Reply, Start, Values, Width, Words,
};

use crate::exit::Exit;
use crate::mapping::Mapping;
use crate::outcome::{Outcome, Stop};
use crate::payload::Symbols;
use crate::units::{Gva, PAGE_SIZE};
use crate::vcpu::Vcpu;

/// How long an operation that the guest does alone may take before the row is a timeout.
const OPERATION_LIMIT: Duration = Duration::from_secs(20);

/// Where a vCPU's mailbox is, as the host sees it.
pub(crate) struct Mailbox {
    pub(crate) memory: Arc<Mapping>,
    pub(crate) offset: u64,
}

/// A vCPU that executes operations.
pub struct GuestVcpu {
    index: usize,
    vcpu: Vcpu,
    mailbox: Mailbox,
    symbols: Arc<Symbols>,
    limit: Duration,
}

impl GuestVcpu {
    /// The vCPU `index`, which is about to enter the payload.
    pub(crate) fn new(index: usize, vcpu: Vcpu, mailbox: Mailbox, symbols: Arc<Symbols>, limit: Duration) -> Self {
        Self { index, vcpu, mailbox, symbols, limit: OPERATION_LIMIT.min(limit) }
    }

    /// Enters the guest for the first time, after telling it this, and waits for its first answer.
    pub(crate) fn boot(&self, start: Start) -> Outcome {
        self.mailbox()?.init(start);
        self.call(Op::Nop).map(drop)
    }

    /// The KVM vCPU below.
    pub fn kvm(&self) -> &Vcpu {
        &self.vcpu
    }

    /// How long an operation may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The mailbox as memory, for rows that corrupt it.
    ///
    /// # Errors
    /// [`Stop::Error`] if it lies in no memory.
    pub fn mailbox_words(&self) -> Outcome<&Words> {
        self.mailbox.memory.words(self.mailbox.offset)
    }

    fn mailbox(&self) -> Outcome<HostMailbox<'_>> {
        self.mailbox_words().map(HostMailbox::new)
    }

    /// Sends an operation and enters the guest, without waiting for anything.
    pub fn start(&self, op: Op) -> Outcome<Running<'_>> {
        self.start_with_bytes(op, &[])
    }

    fn start_with_bytes(&self, op: Op, bytes: &[u8]) -> Outcome<Running<'_>> {
        let sequence = self.mailbox()?.send(op, bytes);
        self.vcpu.begin_operation(op);
        self.vcpu.start()?;
        Ok(Running { vcpu: self, op, sequence })
    }

    /// Sends an operation that goes on until [`Self::stop`], enters the guest, and waits until it has done a
    /// round: from here on other vCPUs and the host really meet it.
    ///
    /// # Errors
    /// [`Stop::Fail`] if it ends before, [`Stop::Timeout`] if it does no round within the limit.
    pub fn hammer(&self, op: Op) -> Outcome<Running<'_>> {
        let running = self.start(op)?;
        let deadline = Instant::now() + self.limit;
        while self.mailbox()?.rounds() == 0 {
            if let Some(exit) = self.vcpu.poll()? {
                let ended = running.finish(&exit)?;
                return Err(Stop::Fail(format!("vCPU {} in {op}: {ended:x?} before the first round", self.index)));
            }
            if Instant::now() > deadline {
                return Err(Stop::Timeout(format!("vCPU {} in {op}: no round in {:?}", self.index, self.limit)));
            }
            thread::yield_now();
        }
        Ok(running)
    }

    /// Executes an operation to its end and returns its values.
    ///
    /// # Errors
    /// [`Stop::Fail`] on any exit but the doorbell and on a fault in the access, [`Stop::Error`] if the guest
    /// broke.
    pub fn call(&self, op: Op) -> Outcome<Values> {
        self.start(op)?.done()
    }

    /// Executes an operation to its end; a fault in its access is a result.
    pub fn attempt(&self, op: Op) -> Outcome<Result<Values, Fault>> {
        self.start(op)?.result()
    }

    /// Loads one value.
    pub fn read(&self, gva: Gva, width: Width) -> Outcome<u64> {
        Ok(self.call(Op::Read { gva: gva.0, width })?[0])
    }

    /// Loads one value and expects it.
    pub fn expect_read(&self, gva: Gva, width: Width, expected: u64) -> Outcome {
        let seen = self.read(gva, width)?;
        if seen == expected {
            return Ok(());
        }
        Err(Stop::Fail(format!(
            "the guest read {seen:#x} at gva {gva} ({} bytes), expected {expected:#x}",
            width.bytes()
        )))
    }

    /// Stores one value.
    pub fn write(&self, gva: Gva, width: Width, value: u64) -> Outcome {
        self.call(Op::Write { gva: gva.0, width, value }).map(drop)
    }

    /// Stores bytes.
    pub fn write_bytes(&self, gva: Gva, bytes: &[u8]) -> Outcome {
        self.start_with_bytes(Op::WriteBytes { gva: gva.0, len: Length(bytes.len() as u64) }, bytes)?.done().map(drop)
    }

    /// Loads bytes, one by one.
    pub fn read_bytes(&self, gva: Gva, len: usize) -> Outcome<Vec<u8>> {
        self.call(Op::ReadBytes { gva: gva.0, len: Length(len as u64) })?;
        let (bytes, _) = self.mailbox()?.texts().map_err(|e| self.broken(e))?;
        Ok(bytes.collect())
    }

    /// Fills pages whose first has index `first` in the pattern.
    pub fn fill(&self, gva: Gva, pages: u64, pattern: Pattern, first: u64) -> Outcome {
        self.call(Op::Fill { gva: gva.0, pages, pattern, first }).map(drop)
    }

    /// Expects pages to be as [`Self::fill`] left them.
    ///
    /// # Errors
    /// [`Stop::Fail`] with the first word that differs and the number of such words.
    pub fn expect(&self, gva: Gva, pages: u64, pattern: Pattern, first: u64) -> Outcome {
        let [differing, at, expected, seen, ..] = self.call(Op::Check { gva: gva.0, pages, pattern, first })?;
        if differing == 0 {
            return Ok(());
        }
        Err(Stop::Fail(format!(
            "the guest sees {seen:#x} at gva {at:#x}, expected {expected:#x} (pattern {:#x}, page {}); {differing} of {} words differ",
            pattern.0,
            first + (at.wrapping_sub(gva.0)) / PAGE_SIZE,
            pages * PAGE_SIZE / 8,
        )))
    }

    /// Expects no word of pages to be as [`Self::fill`] would leave it.
    ///
    /// # Errors
    /// [`Stop::Fail`] with the number of words that are.
    pub fn expect_not(&self, gva: Gva, pages: u64, pattern: Pattern, first: u64) -> Outcome {
        let [differing, ..] = self.call(Op::Check { gva: gva.0, pages, pattern, first })?;
        let words = pages * PAGE_SIZE / 8;
        if differing == words {
            return Ok(());
        }
        Err(Stop::Fail(format!(
            "the guest sees pattern {:#x} in {} of {words} words at gva {gva}, expected none",
            pattern.0,
            words - differing
        )))
    }

    /// The page-table entry (4 KiB) that maps `gva`, as the guest reads it.
    pub fn read_entry(&self, gva: Gva) -> Outcome<u64> {
        Ok(self.call(Op::ReadEntry { gva: gva.0 })?[0])
    }

    /// The guest writes the page-table entry (4 KiB) that maps `gva`, and flushes the TLBs of all its vCPUs.
    pub fn write_entry(&self, gva: Gva, entry: u64) -> Outcome {
        self.call(Op::WriteEntry { gva: gva.0, entry }).map(drop)
    }

    /// Tells an operation that goes on until it is stopped to end.
    pub fn stop(&self) -> Outcome {
        self.mailbox()?.stop();
        Ok(())
    }

    fn broken(&self, what: impl std::fmt::Display) -> Stop {
        Stop::Error(format!("vCPU {}: {what}; the guest or its mailbox is damaged", self.index))
    }

    fn failure(&self, failure: Failure) -> Outcome<Stop> {
        let (message, file) = self.mailbox()?.texts().map_err(|error| self.broken(error))?;
        let (message, file) = (text(message), text(file));
        let at =
            if file.is_empty() { String::new() } else { format!(" at {file}:{}:{}", failure.line, failure.column) };
        let what = match failure.kind {
            FailureKind::Panic => format!("the guest panicked: {message}{at}"),
            FailureKind::Assertion => format!(
                "a guest assertion failed: {message} (left {:#x}, right {:#x}){at}",
                failure.left, failure.right
            ),
            FailureKind::Exception => format!("the guest took exception {}", self.describe(failure.fault)),
            FailureKind::NestedException => format!(
                "while the guest handled exception {}, which is lost, it took exception {}",
                vector_name(failure.left),
                self.describe(failure.fault)
            ),
            FailureKind::Refused => format!(
                "the host does not understand the guest's request {:#x}: SW_EXITINFO1 {:#x}, SW_EXITINFO2 {:#x}{at}",
                failure.fault.error_code, failure.left, failure.right
            ),
        };
        Ok(Stop::Error(format!("vCPU {}: {what}, in operation code {}", self.index, failure.op)))
    }

    /// An exception that nobody expected.
    fn describe(&self, Fault { vector, error_code, rip, cr2 }: Fault) -> String {
        let (name, place) = (vector_name(vector), self.symbols.describe(rip));
        format!("{name} (error code {error_code:#x}) at rip {rip:#x} ({place}), cr2 {cr2:#x}")
    }
}

/// An operation that the guest is executing.
#[must_use = "an operation that nobody waits for leaves its vCPU running"]
pub struct Running<'a> {
    vcpu: &'a GuestVcpu,
    op: Op,
    sequence: u64,
}

impl Running<'_> {
    /// Waits for the next return of KVM_RUN, whatever it is.
    pub fn exit(&self) -> Outcome<Exit> {
        self.vcpu.vcpu.wait(self.vcpu.limit).map_err(|stop| match stop {
            Stop::Timeout(what) => Stop::Timeout(format!("vCPU {} in {}: {what}", self.vcpu.index, self.op)),
            other => other,
        })
    }

    /// Waits for the next return of KVM_RUN and expects exactly this.
    ///
    /// # Errors
    /// [`Stop::Fail`] with both exits, or with the guest's own failure if it rang the doorbell instead.
    pub fn expect_exit(&self, expected: &Exit) -> Outcome {
        let seen = self.exit()?;
        if seen == *expected {
            return Ok(());
        }
        if seen.is_doorbell() {
            let reply = self.reply()?;
            return Err(Stop::Fail(format!(
                "vCPU {} in {}: expected {expected}, but the operation ended with {}",
                self.vcpu.index,
                self.op,
                describe(&reply)
            )));
        }
        Err(Stop::Fail(format!("vCPU {} in {}: expected {expected}, saw {seen}", self.vcpu.index, self.op)))
    }

    /// Enters the guest again.
    pub fn resume(&self) -> Outcome {
        self.vcpu.vcpu.start()
    }

    /// Waits for the doorbell and returns what the guest answered.
    ///
    /// # Errors
    /// [`Stop::Fail`] on any other exit, [`Stop::Error`] if the guest broke.
    pub fn result(self) -> Outcome<Result<Values, Fault>> {
        let seen = self.exit()?;
        self.finish(&seen)
    }

    /// What the guest answered, if `exit`, which [`Self::exit`] has returned, is its doorbell.
    ///
    /// # Errors
    /// As [`Self::result`].
    pub fn finish(self, exit: &Exit) -> Outcome<Result<Values, Fault>> {
        if !exit.is_doorbell() {
            return Err(Stop::Fail(format!(
                "vCPU {} in {}: expected the operation to end, saw {exit}",
                self.vcpu.index, self.op
            )));
        }
        match self.reply()? {
            Reply::Done(values) => Ok(Ok(values)),
            Reply::Fault(fault) => Ok(Err(fault)),
            reply => Err(self.vcpu.broken(format!("in {}: {}", self.op, describe(&reply)))),
        }
    }

    /// Waits for the doorbell and returns the operation's values.
    ///
    /// # Errors
    /// As [`Self::result`], and [`Stop::Fail`] if the access faulted.
    pub fn done(self) -> Outcome<Values> {
        let (op, vcpu) = (self.op, self.vcpu);
        self.result()?.map_err(|fault| {
            Stop::Fail(format!(
                "vCPU {} in {op}: unexpected {} in the guest",
                vcpu.index,
                describe(&Reply::Fault(fault))
            ))
        })
    }

    fn reply(&self) -> Outcome<Reply> {
        match self.vcpu.mailbox()?.reply(self.sequence) {
            Ok(Reply::Failed(failure)) => Err(self.vcpu.failure(failure)?),
            Ok(reply) => Ok(reply),
            Err(error) => Err(self.vcpu.broken(error)),
        }
    }
}

fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Done(values) => format!("values {values:x?}"),
        Reply::Fault(Fault { vector, error_code, rip, cr2 }) => {
            format!("{} (error code {error_code:#x}, rip {rip:#x}, cr2 {cr2:#x})", vector_name(*vector))
        }
        Reply::Refused(refusal, word) => format!("refusal {refusal:?} ({word:#x})"),
        Reply::Failed(failure) => format!("{failure:?}"),
    }
}

fn text(bytes: impl Iterator<Item = u8>) -> String {
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

fn vector_name(vector: u64) -> String {
    let name = match vector {
        0 => "#DE",
        1 => "#DB",
        3 => "#BP",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        20 => "#VE",
        29 => "#VC",
        other => return format!("vector {other}"),
    };
    name.into()
}
