//! What a VM exit tells a hypervisor (SDM volume 3, 28.2 and appendix C).

/// Basic exit reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Reason {
    ExceptionOrNmi = 0,
    ExternalInterrupt = 1,
    TripleFault = 2,
    Init = 3,
    InterruptWindow = 7,
    NmiWindow = 8,
    Cpuid = 10,
    Hlt = 12,
    Invd = 13,
    Invlpg = 14,
    Rdpmc = 15,
    Rdtsc = 16,
    Vmcall = 18,
    Vmclear = 19,
    Vmlaunch = 20,
    Vmptrld = 21,
    Vmptrst = 22,
    Vmread = 23,
    Vmresume = 24,
    Vmwrite = 25,
    Vmxoff = 26,
    Vmxon = 27,
    CrAccess = 28,
    MovDr = 29,
    Io = 30,
    Rdmsr = 31,
    Wrmsr = 32,
    GuestState = 33,
    MsrLoading = 34,
    Mwait = 36,
    Monitor = 39,
    Pause = 40,
    TprThreshold = 43,
    ApicAccess = 44,
    VirtualizedEoi = 45,
    EptViolation = 48,
    EptMisconfiguration = 49,
    Invept = 50,
    Rdtscp = 51,
    PreemptionTimer = 52,
    Invvpid = 53,
    Wbinvd = 54,
    Xsetbv = 55,
    ApicWrite = 56,
    Invpcid = 58,
    PmlFull = 62,
    Seamcall = 76,
    Tdcall = 77,
}

/// Bit of the exit reason: the entry failed, so that the guest has not run.
pub(crate) const ENTRY_FAILURE: u64 = 1 << 31;

/// An exit and what goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) reason: Reason,
    pub(crate) qualification: u64,
    /// Bytes of the instruction, 0 where it is none's.
    pub(crate) length: u8,
    /// The VM-exit instruction information.
    pub(crate) information: u32,
    /// The VM-exit interruption information and its error code.
    pub(crate) event: (u32, u32),
    pub(crate) linear: u64,
    pub(crate) gpa: u64,
}

impl Exit {
    /// An exit for something that no instruction asked for.
    pub(crate) fn asynchronous(reason: Reason) -> Exit {
        Exit { reason, qualification: 0, length: 0, information: 0, event: (0, 0), linear: 0, gpa: 0 }
    }

    /// An exit in place of an instruction, or behind it.
    pub(crate) fn instruction(reason: Reason, qualification: u64, length: u8) -> Exit {
        Exit { qualification, length, ..Exit::asynchronous(reason) }
    }
}
