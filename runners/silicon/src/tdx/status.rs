//! What a leaf function of the module answers in RAX (TDX module ABI, "Function Completion Status Codes").
//!
//! Numbers are those of the ABI; where Linux and Intel's newer modules differ (bit 61 of NON_RECOVERABLE_TD) they are
//! Linux's, arch/x86/include/asm/shared/tdx_errno.h, since that is who reads them here.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($variant:ident = $number:literal, $name:literal: $sentence:literal;)*) => {
        /// Class and detail of a status, bits 63:32.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[repr(u32)]
        pub enum Code {
            $(#[doc = $sentence] $variant = $number,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// Its name in the ABI, without TDX_.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }
        }
    };
}

codes! {
    Success = 0x0000_0000, "SUCCESS": "Done.";
    NonRecoverableVcpu = 0x4000_0001, "NON_RECOVERABLE_VCPU": "The vCPU never runs again: it shut down.";
    NonRecoverableTd = 0x4000_0002, "NON_RECOVERABLE_TD": "The TD never runs again.";
    InterruptedResumable = 0x8000_0003, "INTERRUPTED_RESUMABLE": "Not done yet; go on with the same leaf.";
    InterruptedRestartable = 0x8000_0004, "INTERRUPTED_RESTARTABLE": "Nothing done; call again.";
    NonRecoverableTdNonAccessible = 0x6000_0005, "NON_RECOVERABLE_TD_NON_ACCESSIBLE": "The TD met memory that somebody else wrote.";
    NonRecoverableTdWrongApicMode = 0x6000_0007, "NON_RECOVERABLE_TD_WRONG_APIC_MODE": "The vCPU is not in x2APIC mode.";
    OperandInvalid = 0xC000_0100, "OPERAND_INVALID": "An operand has a value that cannot be.";
    OperandAddrRangeError = 0xC000_0101, "OPERAND_ADDR_RANGE_ERROR": "An address lies in no TDMR.";
    OperandBusy = 0x8000_0200, "OPERAND_BUSY": "Somebody else uses it at the moment.";
    PreviousTlbEpochBusy = 0x8000_0201, "PREVIOUS_TLB_EPOCH_BUSY": "A vCPU still runs with the epoch before.";
    SysBusy = 0x8000_0202, "SYS_BUSY": "Another leaf of TDH.SYS runs.";
    RndNoEntropy = 0x8000_0203, "RND_NO_ENTROPY": "No random number; call again.";
    PageMetadataIncorrect = 0xC000_0300, "PAGE_METADATA_INCORRECT": "The page is not of the type that the leaf takes.";
    PageAlreadyFree = 0x0000_0301, "PAGE_ALREADY_FREE": "The page is nobody's already.";
    PageNotOwnedByTd = 0xC000_0302, "PAGE_NOT_OWNED_BY_TD": "The page is another TD's.";
    PageNotFree = 0xC000_0303, "PAGE_NOT_FREE": "The page is somebody's.";
    TdAssociatedPagesExist = 0xC000_0400, "TD_ASSOCIATED_PAGES_EXIST": "The TD still has pages.";
    SysInitNotPending = 0xC000_0500, "SYS_INIT_NOT_PENDING": "TDH.SYS.INIT was called already.";
    SysLpInitNotDone = 0xC000_0502, "SYS_LP_INIT_NOT_DONE": "A processor has not called TDH.SYS.LP.INIT.";
    SysLpInitDone = 0xC000_0503, "SYS_LP_INIT_DONE": "This processor has called TDH.SYS.LP.INIT already.";
    SysNotReady = 0xC000_0505, "SYS_NOT_READY": "The module is not initialised.";
    SysShutdown = 0xC000_0506, "SYS_SHUTDOWN": "The module is shut down.";
    SysKeyConfigNotPending = 0xC000_0507, "SYS_KEY_CONFIG_NOT_PENDING": "It is not the time for TDH.SYS.KEY.CONFIG.";
    SysStateIncorrect = 0xC000_0508, "SYS_STATE_INCORRECT": "The module is not in the state that the leaf takes.";
    TdFatal = 0xE000_0604, "TD_FATAL": "The TD has met a fatal error.";
    TdNonDebug = 0xC000_0605, "TD_NON_DEBUG": "The TD is not debuggable.";
    TdcsNotAllocated = 0xC000_0606, "TDCS_NOT_ALLOCATED": "The TD has too few control pages.";
    LifecycleStateIncorrect = 0xC000_0607, "LIFECYCLE_STATE_INCORRECT": "Not in this state of the TD's life.";
    OpStateIncorrect = 0xC000_0608, "OP_STATE_INCORRECT": "Not in this state of the TD's building.";
    NoVcpus = 0xC000_0609, "NO_VCPUS": "The TD has no vCPU.";
    TdcxNumIncorrect = 0xC000_0610, "TDCX_NUM_INCORRECT": "Too few or too many control pages.";
    X2apicIdNotUnique = 0xC000_0621, "X2APIC_ID_NOT_UNIQUE": "Another vCPU has this x2APIC id.";
    VcpuStateIncorrect = 0xC000_0700, "VCPU_STATE_INCORRECT": "Not in this state of the vCPU.";
    VcpuAssociated = 0x8000_0701, "VCPU_ASSOCIATED": "The vCPU is another processor's.";
    VcpuNotAssociated = 0x8000_0702, "VCPU_NOT_ASSOCIATED": "The vCPU is no processor's.";
    NoValidVeInfo = 0xC000_0704, "NO_VALID_VE_INFO": "No #VE has been raised since the last was told.";
    MaxVcpusExceeded = 0xC000_0705, "MAX_VCPUS_EXCEEDED": "The TD has as many vCPUs as it may.";
    TscRollback = 0xC000_0706, "TSC_ROLLBACK": "The time went backwards.";
    KeyGenerationFailed = 0x8000_0800, "KEY_GENERATION_FAILED": "No key; call again.";
    TdKeysNotConfigured = 0x8000_0810, "TD_KEYS_NOT_CONFIGURED": "A package has no key of the TD.";
    KeyStateIncorrect = 0xC000_0811, "KEY_STATE_INCORRECT": "The HKID is not in the state that the leaf takes.";
    KeyConfigured = 0x0000_0815, "KEY_CONFIGURED": "This package has the key already.";
    WbcacheNotComplete = 0x8000_0817, "WBCACHE_NOT_COMPLETE": "A package's caches have not been written back.";
    HkidNotFree = 0xC000_0820, "HKID_NOT_FREE": "The HKID is somebody's.";
    NoHkidReadyToWbcache = 0x0000_0821, "NO_HKID_READY_TO_WBCACHE": "No HKID waits for this package's caches.";
    WbcacheResumeError = 0xC000_0823, "WBCACHE_RESUME_ERROR": "There is nothing to resume.";
    FlushvpNotDone = 0x8000_0824, "FLUSHVP_NOT_DONE": "A vCPU is still some processor's.";
    InvalidTdmr = 0xC000_0A00, "INVALID_TDMR": "A TDMR's base or size cannot be.";
    NonOrderedTdmr = 0xC000_0A01, "NON_ORDERED_TDMR": "TDMRs do not ascend.";
    TdmrOutsideCmrs = 0xC000_0A02, "TDMR_OUTSIDE_CMRS": "A TDMR covers what is not convertible.";
    TdmrAlreadyInitialized = 0x0000_0A03, "TDMR_ALREADY_INITIALIZED": "All of the TDMR is initialised.";
    InvalidPamt = 0xC000_0A10, "INVALID_PAMT": "A PAMT region's base or size cannot be.";
    PamtOutsideCmrs = 0xC000_0A11, "PAMT_OUTSIDE_CMRS": "A PAMT region is not convertible.";
    PamtOverlap = 0xC000_0A12, "PAMT_OVERLAP": "A PAMT region lies across something else.";
    InvalidReservedInTdmr = 0xC000_0A20, "INVALID_RESERVED_IN_TDMR": "A reserved area cannot be.";
    NonOrderedReservedInTdmr = 0xC000_0A21, "NON_ORDERED_RESERVED_IN_TDMR": "Reserved areas do not ascend.";
    EptWalkFailed = 0xC000_0B00, "EPT_WALK_FAILED": "The S-EPT has no entry at this level.";
    EptEntryFree = 0xC000_0B01, "EPT_ENTRY_FREE": "The S-EPT entry is free.";
    EptEntryNotFree = 0xC000_0B02, "EPT_ENTRY_NOT_FREE": "The S-EPT entry is not free.";
    EptEntryNotLeaf = 0xC000_0B04, "EPT_ENTRY_NOT_LEAF": "The S-EPT entry is no leaf.";
    GpaRangeNotBlocked = 0xC000_0B06, "GPA_RANGE_NOT_BLOCKED": "The range is not blocked.";
    GpaRangeAlreadyBlocked = 0x0000_0B07, "GPA_RANGE_ALREADY_BLOCKED": "The range is blocked already.";
    TlbTrackingNotDone = 0xC000_0B08, "TLB_TRACKING_NOT_DONE": "A vCPU may still remember the range.";
    PageAlreadyAccepted = 0x0000_0B0A, "PAGE_ALREADY_ACCEPTED": "The TD has accepted the page already.";
    PageSizeMismatch = 0xC000_0B0B, "PAGE_SIZE_MISMATCH": "The page is mapped with another size.";
    EptEntryStateIncorrect = 0xC000_0B0D, "EPT_ENTRY_STATE_INCORRECT": "The S-EPT entry is not in the state that the leaf takes.";
    MetadataFieldIdIncorrect = 0xC000_0C00, "METADATA_FIELD_ID_INCORRECT": "There is no such field.";
    MetadataFieldNotWritable = 0xC000_0C01, "METADATA_FIELD_NOT_WRITABLE": "The field cannot be written.";
    MetadataFieldNotReadable = 0xC000_0C02, "METADATA_FIELD_NOT_READABLE": "The field cannot be read.";
    MetadataFieldValueNotValid = 0xC000_0C03, "METADATA_FIELD_VALUE_NOT_VALID": "The field cannot have this value.";
    MetadataWrMaskNotValid = 0xC000_0C0A, "METADATA_WR_MASK_NOT_VALID": "Bits of the mask cannot be written.";
}

impl Code {
    /// The code of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The status about this operand.
    #[must_use]
    pub const fn on(self, operand: Operand) -> Status {
        Status { code: self, detail: operand as u32 }
    }

    /// The status with some other number in its low half.
    #[must_use]
    pub const fn with(self, detail: u32) -> Status {
        Status { code: self, detail }
    }
}

macro_rules! operands {
    ($($variant:ident = $number:literal, $name:literal;)*) => {
        /// What a status is about, bits 31:0 (TDX module ABI, "Function Operand IDs").
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[expect(missing_docs, reason = "the names are those of the specification")]
        pub enum Operand {
            $($variant = $number,)*
        }

        impl Operand {
            /// All of them.
            pub const ALL: &'static [Operand] = &[$(Operand::$variant),*];

            /// Its name in the ABI.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Operand::$variant => $name,)* }
            }
        }
    };
}

operands! {
    Rax = 0, "RAX";
    Rcx = 1, "RCX";
    Rdx = 2, "RDX";
    R8 = 8, "R8";
    R9 = 9, "R9";
    Attributes = 64, "ATTRIBUTES";
    Xfam = 65, "XFAM";
    ExecControls = 66, "EXEC_CONTROLS";
    EptpControls = 67, "EPTP_CONTROLS";
    MaxVcpus = 68, "MAX_VCPUS";
    CpuidConfig = 69, "CPUID_CONFIG";
    TscFrequency = 70, "TSC_FREQUENCY";
    NumL2Vms = 71, "NUM_L2_VMS";
    TdmrInfoPa = 96, "TDMR_INFO_PA";
    Tdr = 128, "TDR";
    Tdcx = 129, "TDCX";
    Tdvpr = 130, "TDVPR";
    Sept = 146, "SEPT";
    SeptEntry = 147, "SEPT_ENTRY";
    Rtmr = 168, "RTMR";
    TdEpoch = 169, "TD_EPOCH";
    OpState = 172, "OP_STATE";
    MetadataField = 176, "METADATA_FIELD";
    Sys = 184, "SYS";
    Tdmr = 185, "TDMR";
    Kot = 186, "KOT";
    Wbcache = 188, "WBCACHE";
}

impl Operand {
    /// The operand of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Operand> {
        Operand::ALL.iter().copied().find(|operand| operand.name() == name)
    }
}

/// RAX of a leaf that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Bits 63:32.
    pub code: Code,
    /// Bits 31:0: an operand, a level, an exit reason.
    pub detail: u32,
}

impl Status {
    /// Done.
    pub const SUCCESS: Status = Status { code: Code::Success, detail: 0 };

    /// RAX.
    #[must_use]
    pub const fn bits(self) -> u64 {
        (self.code as u64) << 32 | self.detail as u64
    }
}

impl From<Code> for Status {
    fn from(code: Code) -> Status {
        Status { code, detail: 0 }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.name())?;
        match self.detail {
            0 => Ok(()),
            detail => write!(f, " {detail:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// arch/x86/include/asm/shared/tdx_errno.h.
    #[test]
    fn statuses_are_those_that_linux_knows() {
        assert_eq!(Status::from(Code::FlushvpNotDone).bits(), 0x8000_0824_0000_0000);
        assert_eq!(Status::from(Code::NoHkidReadyToWbcache).bits(), 0x0000_0821_0000_0000);
        assert_eq!(Code::OperandBusy.on(Operand::TdEpoch).bits(), 0x8000_0200_0000_00A9);
        assert_eq!(Code::OperandInvalid.on(Operand::Rcx).bits(), 0xC000_0100_0000_0001);
        assert_eq!(Code::OperandBusy.on(Operand::Sept).bits(), 0x8000_0200_0000_0092);
        assert_eq!(Status::SUCCESS.bits(), 0);
    }

    #[test]
    fn each_code_and_operand_is_found_by_its_name() {
        for &code in Code::ALL {
            assert_eq!(Code::named(code.name()), Some(code));
        }
        for &operand in Operand::ALL {
            assert_eq!(Operand::named(operand.name()), Some(operand));
        }
        assert_eq!(Code::named("TEA_TIME"), None);
        assert_eq!(Code::OperandBusy.on(Operand::Sept).to_string(), "OPERAND_BUSY 0x92");
    }
}
