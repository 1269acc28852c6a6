//! What the guest answers.

use crate::decode::{DecodeError, Field};
use crate::layout::VALUE_COUNT;

/// The values of a reply; their meaning is the operation's.
pub type Values = [u64; VALUE_COUNT];

/// An exception in an access that the host asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Vector: 6 #UD, 13 #GP, 14 #PF, 20 #VE, 29 #VC ...
    pub vector: u64,
    /// Error code as pushed by the CPU, 0 for vectors without one.
    pub error_code: u64,
    /// RIP of the faulting instruction.
    pub rip: u64,
    /// CR2 at the time of the exception.
    pub cr2: u64,
}

/// Why the guest could not carry out an operation although the operation was well-formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Refusal {
    /// The operation cannot be decoded, or the sequence number did not advance by one.
    BadRequest = 1,
    /// A page-table entry on the way to the address is missing.
    NotMapped = 2,
    /// The address is mapped by a large page, of which single 4 KiB pages cannot be made non-present.
    LargePage = 3,
    /// An address or length that must be page-aligned is not.
    Unaligned = 4,
}

/// What went wrong in the guest itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum FailureKind {
    /// A Rust panic; the text is its message.
    Panic = 1,
    /// An assertion of the payload; the text is its expression.
    Assertion = 2,
    /// An exception outside of every probe.
    Exception = 3,
    /// An exception in the handler of another one, whose vector is `left`.
    NestedException = 4,
    /// The host does not understand a request through the GHCB: its code is the fault's error code, `left` and `right`
    /// are SW_EXITINFO1 and 2.
    Refused = 5,
}

/// The numbers of a failure. Its texts (message or expression, and file name) are read from the mailbox with
/// [`HostMailbox::texts`](crate::HostMailbox::texts).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// Line in the file, 0 if unknown.
    pub line: u64,
    /// Column in the line, 0 if unknown.
    pub column: u64,
    /// Left operand of an assertion.
    pub left: u64,
    /// Right operand of an assertion.
    pub right: u64,
    /// The exception, for [`FailureKind::Exception`]; zeros otherwise.
    pub fault: Fault,
    /// Code of the operation that was being executed, 0 before the first.
    pub op: u64,
}

/// The guest's answer to one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Done.
    Done(Values),
    /// An access that the host asked for raised an exception.
    Fault(Fault),
    /// The operation was not carried out. The word is the offending address or value.
    Refused(Refusal, u64),
    /// The guest broke; it answers nothing more.
    Failed(Failure),
}

impl Reply {
    /// [`Reply::Done`] with these values, and zeros after them.
    pub fn done<const N: usize>(given: [u64; N]) -> Self {
        let mut values = [0; VALUE_COUNT];
        values[..N].copy_from_slice(&given);
        Reply::Done(values)
    }

    /// Status and values, as they are written into a mailbox.
    pub const fn encode(self) -> (u64, Values) {
        let mut values = [0; VALUE_COUNT];
        match self {
            Reply::Done(values) => (1, values),
            Reply::Fault(Fault { vector, error_code, rip, cr2 }) => {
                values[0] = vector;
                values[1] = error_code;
                values[2] = rip;
                values[3] = cr2;
                (2, values)
            }
            Reply::Refused(refusal, word) => {
                values[0] = refusal as u64;
                values[1] = word;
                (3, values)
            }
            Reply::Failed(failure) => {
                values[0] = failure.fault.vector;
                values[1] = failure.fault.error_code;
                values[2] = failure.fault.rip;
                values[3] = failure.fault.cr2;
                values[4] = failure.kind as u64;
                values[5] = failure.line;
                values[6] = failure.column;
                values[7] = failure.left;
                values[8] = failure.right;
                values[9] = failure.op;
                (4, values)
            }
        }
    }

    /// The reply of a status and its values.
    pub fn decode(status: u64, values: Values) -> Result<Self, DecodeError> {
        let fault = Fault { vector: values[0], error_code: values[1], rip: values[2], cr2: values[3] };
        Ok(match status {
            1 => Reply::Done(values),
            2 => Reply::Fault(fault),
            3 => {
                let refusal = match values[0] {
                    1 => Refusal::BadRequest,
                    2 => Refusal::NotMapped,
                    3 => Refusal::LargePage,
                    4 => Refusal::Unaligned,
                    other => return Err(DecodeError::new(Field::Refusal, other)),
                };
                Reply::Refused(refusal, values[1])
            }
            4 => {
                let kind = match values[4] {
                    1 => FailureKind::Panic,
                    2 => FailureKind::Assertion,
                    3 => FailureKind::Exception,
                    4 => FailureKind::NestedException,
                    5 => FailureKind::Refused,
                    other => return Err(DecodeError::new(Field::FailureKind, other)),
                };
                Reply::Failed(Failure {
                    kind,
                    line: values[5],
                    column: values[6],
                    left: values[7],
                    right: values[8],
                    fault,
                    op: values[9],
                })
            }
            other => return Err(DecodeError::new(Field::Status, other)),
        })
    }
}
