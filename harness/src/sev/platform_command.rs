//! Commands of `/dev/sev` that no VM has a part in: what the platform says about itself.
#![expect(unsafe_code, reason = "ioctl(2) with structures that hold addresses")]

use nix::errno::Errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::device::Device;
use super::firmware::Firmware;
use crate::outcome::{Outcome, Stop};
use crate::uapi::SEV_ISSUE_CMD;

/// `SEV_PLATFORM_STATUS`.
const STATUS: (u32, &str) = (1, "SEV_PLATFORM_STATUS");
/// `SEV_PDH_CERT_EXPORT`.
const EXPORT: (u32, &str) = (5, "SEV_PDH_CERT_EXPORT");

/// `struct sev_issue_cmd` (include/uapi/linux/psp-sev.h).
#[repr(C, packed)]
struct Issue {
    command: u32,
    data: u64,
    error: u32,
}

/// `struct sev_user_data_status`.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
struct Status {
    major: u8,
    minor: u8,
    state: u8,
    flags: u32,
    build: u8,
    guests: u32,
}

/// `struct sev_user_data_pdh_cert_export`.
#[repr(C, packed)]
struct Export {
    certificate: u64,
    certificate_length: u32,
    chain: u64,
    chain_length: u32,
}

/// Bytes of a certificate, and of the three that vouch for it (SEV API, appendix C).
pub(super) const CERTIFICATE: usize = 2084;
const CHAIN: usize = 3 * CERTIFICATE;

/// The firmware's version, which measurements are made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Of the API.
    pub major: u8,
    /// Of the API.
    pub minor: u8,
    /// Of the firmware.
    pub build: u8,
}

impl Device {
    /// The firmware's version.
    ///
    /// # Errors
    /// `Stop::Fail` with what the driver and the firmware say.
    pub fn version(&self) -> Outcome<Version> {
        let mut status = Status::default();
        self.issue(STATUS, &mut status)?;
        Ok(Version { major: status.major, minor: status.minor, build: status.build })
    }

    /// The platform's Diffie-Hellman certificate, with which whoever it belongs to can agree on a secret with it.
    ///
    /// # Errors
    /// `Stop::Fail` with what the driver and the firmware say.
    pub fn diffie_hellman_certificate(&self) -> Outcome<Vec<u8>> {
        let (mut certificate, mut chain) = (vec![0_u8; CERTIFICATE], vec![0_u8; CHAIN]);
        let mut export = Export {
            certificate: certificate.as_mut_ptr().expose_provenance() as u64,
            certificate_length: CERTIFICATE as u32,
            chain: chain.as_mut_ptr().expose_provenance() as u64,
            chain_length: CHAIN as u32,
        };
        self.issue(EXPORT, &mut export)?;
        Ok(certificate)
    }

    /// One command. Addresses in `argument` are of memory of the length that stands beside them.
    fn issue<T>(&self, (command, name): (u32, &str), argument: &mut T) -> Outcome {
        let data = std::ptr::from_mut(argument).expose_provenance() as u64;
        let mut issue = Issue { command, data, error: Firmware::NOT_ASKED.0 };
        // SAFETY: the request's size is that of the structure. The driver reads and writes the command's own structure,
        // which `argument` is, and as many bytes at the addresses in there as it is told, which the two callers above
        // own; all of it lives until the call returns.
        let done = Errno::result(unsafe { ioctl_with_mut_ref(self, SEV_ISSUE_CMD, &mut issue) });
        let firmware = Firmware(issue.error);
        done.map(drop).map_err(|errno| Stop::Fail(format!("{name}: {errno:?}, {firmware}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// include/uapi/linux/psp-sev.h: all of them are packed.
    #[test]
    fn the_layouts_are_the_drivers() {
        assert_eq!((size_of::<Issue>(), size_of::<Status>(), size_of::<Export>()), (16, 12, 24));
        assert_eq!(SEV_ISSUE_CMD, 0xc010_5300);
    }
}
