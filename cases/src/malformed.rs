//! How KVM answers a request through the GHCB that makes no sense (AMD's GHCB specification, 56421;
//! arch/x86/include/asm/sev-common.h: GHCB_HV_RESP_MALFORMED_INPUT and GHCB_ERR_*).

/// SW_EXITINFO1; SW_EXITINFO2 is one of the others and says why.
pub(crate) const MALFORMED: u64 = 2;
/// The GHCB is none that the guest has registered.
pub(crate) const NOT_REGISTERED: u64 = 1;
/// The GHCB's usage is unknown.
pub(crate) const INVALID_USAGE: u64 = 2;
/// The scratch area lies where it may not.
pub(crate) const INVALID_SCRATCH_AREA: u64 = 3;
/// A field is missing that the request needs.
pub(crate) const MISSING_INPUT: u64 = 4;
/// A field has a value that makes no sense.
pub(crate) const INVALID_INPUT: u64 = 5;
/// There is no such exit code.
pub(crate) const INVALID_EVENT: u64 = 6;
