//! What a command answers.

/// Status of a command (55766, "Status Codes"; 56860, chapter 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Success = 0x00,
    /// Not in this state of the platform.
    InvalidPlatformState = 0x01,
    /// Not in this state of the guest.
    InvalidGuestState = 0x02,
    /// The machine is not set up for it.
    InvalidConfig = 0x03,
    /// A buffer is too short, or of a size that cannot be.
    InvalidLength = 0x04,
    /// The platform has an owner.
    AlreadyOwned = 0x05,
    /// A certificate is not one, or not signed by whom it should be.
    InvalidCertificate = 0x06,
    /// The guest's policy forbids it.
    PolicyFailure = 0x07,
    /// The guest has no ASID.
    Inactive = 0x08,
    /// An address is misaligned, or of no memory.
    InvalidAddress = 0x09,
    /// A signature is wrong.
    BadSignature = 0x0A,
    /// A digest or MAC is wrong.
    BadMeasurement = 0x0B,
    /// The ASID is another guest's.
    AsidOwned = 0x0C,
    /// There is no such ASID for this guest.
    InvalidAsid = 0x0D,
    /// A processor has not executed WBINVD.
    WbinvdRequired = 0x0E,
    /// The ASID's data has not been flushed out of the data fabric.
    DfFlushRequired = 0x0F,
    /// There is no such guest.
    InvalidGuest = 0x10,
    /// There is no such command.
    InvalidCommand = 0x11,
    /// The guest has an ASID.
    Active = 0x12,
    /// The processors are not set up for it.
    HardwarePlatform = 0x13,
    /// Known, but not offered.
    Unsupported = 0x15,
    /// A parameter is none that is defined.
    InvalidParameter = 0x16,
    /// Out of some resource.
    ResourceLimit = 0x17,
    /// What was stored is not what was written.
    SecureDataInvalid = 0x18,
    /// A page is of another size.
    InvalidPageSize = 0x19,
    /// A page is not in the state that the command demands.
    InvalidPageState = 0x1A,
    /// A page belongs to another guest.
    InvalidPageOwner = 0x1C,
    /// A message's sequence number is not the next.
    AeadOverflow = 0x1D,
    /// The RMP is not initialised.
    RmpInitRequired = 0x20,
}

impl Status {
    /// As the mailbox shows it.
    #[must_use]
    pub fn code(self) -> u16 {
        self as u16
    }
}
