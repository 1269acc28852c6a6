//! What the instructions on the RMP leave in EAX.

/// Result of an instruction on the RMP (APM volume 3, RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// Done.
    Success = 0,
    /// An operand makes no sense.
    FailInput = 1,
    /// The page may not be changed, or not by this VMPL.
    FailPermission = 2,
    /// Another processor is using the page or its entry.
    FailInUse = 3,
    /// A page of another size lies across.
    FailOverlap = 4,
    /// The page is of another size than the operand says.
    FailSizeMismatch = 6,
    /// The address is not one of the RMP's.
    FailBadAddress = 7,
}
