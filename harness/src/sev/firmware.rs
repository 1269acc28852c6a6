//! What the secure processor answers.

use std::fmt;

/// A status of the secure processor (`sev_ret_code` in `include/uapi/linux/psp-sev.h`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Firmware(pub u32);

macro_rules! statuses {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are those of the specification")]
        impl Firmware {
            $(pub const $name: Firmware = Firmware($number);)*
        }

        impl Firmware {
            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    NOT_ASKED = 0xffff_ffff;
    SUCCESS = 0x00;
    INVALID_PLATFORM_STATE = 0x01;
    INVALID_GUEST_STATE = 0x02;
    INVALID_CONFIG = 0x03;
    INVALID_LEN = 0x04;
    ALREADY_OWNED = 0x05;
    INVALID_CERTIFICATE = 0x06;
    POLICY_FAILURE = 0x07;
    INACTIVE = 0x08;
    INVALID_ADDRESS = 0x09;
    BAD_SIGNATURE = 0x0a;
    BAD_MEASUREMENT = 0x0b;
    ASID_OWNED = 0x0c;
    INVALID_ASID = 0x0d;
    WBINVD_REQUIRED = 0x0e;
    DFFLUSH_REQUIRED = 0x0f;
    INVALID_GUEST = 0x10;
    INVALID_COMMAND = 0x11;
    ACTIVE = 0x12;
    HW_PLATFORM = 0x13;
    HW_UNSAFE = 0x14;
    UNSUPPORTED = 0x15;
    INVALID_PARAM = 0x16;
    RESOURCE_LIMIT = 0x17;
    SECURE_DATA_INVALID = 0x18;
    INVALID_PAGE_SIZE = 0x19;
    INVALID_PAGE_STATE = 0x1a;
    INVALID_MDATA_ENTRY = 0x1b;
    INVALID_PAGE_OWNER = 0x1c;
    AEAD_OFLOW = 0x1d;
    EXIT_RING_BUFFER = 0x1f;
    RMP_INIT_REQUIRED = 0x20;
    BAD_SVN = 0x21;
    BAD_VERSION = 0x22;
    SHUTDOWN_REQUIRED = 0x23;
    UPDATE_FAILED = 0x24;
    RESTORE_REQUIRED = 0x25;
    RMP_INITIALIZATION_FAILED = 0x26;
    INVALID_KEY = 0x27;
    SHUTDOWN_INCOMPLETE = 0x28;
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.name()) {
            (Firmware::NOT_ASKED, _) => f.write_str("firmware not asked"),
            (_, Some(name)) => write!(f, "firmware {name} ({:#x})", self.0),
            (_, None) => write!(f, "firmware status {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_by_name_and_number() {
        assert_eq!(Firmware::BAD_MEASUREMENT.to_string(), "firmware BAD_MEASUREMENT (0xb)");
        assert_eq!(Firmware(0x7777).to_string(), "firmware status 0x7777");
        assert_eq!(Firmware::NOT_ASKED.to_string(), "firmware not asked");
    }
}
