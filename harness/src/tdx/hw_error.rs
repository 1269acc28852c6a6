//! What the TDX module answers.

use std::fmt;

/// RAX of a SEAMCALL: the code in bits 63:32, what it is about in bits 31:0 (TDX module ABI, "Function Completion Status
/// Codes"; `arch/x86/include/asm/shared/tdx_errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct HwError(pub u64);

macro_rules! codes {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are those of the specification")]
        impl HwError {
            $(pub const $name: HwError = HwError($number << 32);)*

            fn name(self) -> Option<&'static str> {
                match self.0 >> 32 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    SUCCESS = 0;
    OPERAND_INVALID = 0xc000_0100;
    OPERAND_ADDR_RANGE_ERROR = 0xc000_0101;
    OPERAND_BUSY = 0x8000_0200;
    RND_NO_ENTROPY = 0x8000_0203;
    PAGE_METADATA_INCORRECT = 0xc000_0300;
    TD_FATAL = 0xe000_0604;
    TDCS_NOT_ALLOCATED = 0xc000_0606;
    LIFECYCLE_STATE_INCORRECT = 0xc000_0607;
    OP_STATE_INCORRECT = 0xc000_0608;
    NO_VCPUS = 0xc000_0609;
}

macro_rules! operands {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are those of the specification")]
        impl HwError {
            $(pub const $name: u32 = $number;)*

            fn operand_name(operand: u32) -> Option<&'static str> {
                match operand {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

operands! {
    RCX = 1;
    RDX = 2;
    ATTRIBUTES = 64;
    XFAM = 65;
    EXEC_CONTROLS = 66;
    EPTP_CONTROLS = 67;
    MAX_VCPUS = 68;
    CPUID_CONFIG = 69;
    TSC_FREQUENCY = 70;
    TDR = 128;
    SEPT = 146;
    TD_EPOCH = 169;
    OP_STATE = 172;
}

impl HwError {
    /// The same about an operand.
    pub const fn on(self, operand: u32) -> HwError {
        HwError(self.0 | operand as u64)
    }
}

impl fmt::Display for HwError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operand = self.0 as u32;
        match self.name() {
            None => return write!(f, "module status {:#x}", self.0),
            Some(name) => write!(f, "module status {name}")?,
        }
        match (operand, HwError::operand_name(operand)) {
            (0, _) => Ok(()),
            (_, Some(name)) => write!(f, " ({name})"),
            (number, None) => write!(f, " ({number:#x})"),
        }
    }
}

impl fmt::Debug for HwError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_operands_are_told_by_name() {
        let told = |error: HwError| error.to_string();
        assert_eq!(told(HwError::SUCCESS), "module status SUCCESS");
        assert_eq!(told(HwError(0xc000_0100_0000_0045)), "module status OPERAND_INVALID (CPUID_CONFIG)");
        assert_eq!(told(HwError::OPERAND_BUSY.on(HwError::TDR)), "module status OPERAND_BUSY (TDR)");
        assert_eq!(told(HwError(0xc000_0100_0000_0009)), "module status OPERAND_INVALID (0x9)");
        assert_eq!(told(HwError(0x1234_0000_0000)), "module status 0x123400000000");
    }
}
