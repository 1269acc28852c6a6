//! What the pages of an SNP launch are.

use std::fmt;

/// How `KVM_SEV_SNP_LAUNCH_UPDATE` fills a page, and how the firmware measures it (SNP firmware ABI, 8.17.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageType {
    /// Content from the host, measured.
    Normal,
    /// A vCPU's save area. KVM itself adds these, in `KVM_SEV_SNP_LAUNCH_FINISH`; it refuses them from user space.
    Vmsa,
    /// Zeroes.
    Zero,
    /// Content from the host, of which only the address is measured.
    Unmeasured,
    /// The firmware's secrets for the guest.
    Secrets,
    /// CPUID values that the firmware has checked.
    Cpuid,
}

impl PageType {
    /// Those that user space may add.
    pub const OF_USER_SPACE: [PageType; 5] =
        [PageType::Normal, PageType::Zero, PageType::Unmeasured, PageType::Secrets, PageType::Cpuid];

    /// The number in `PAGE_INFO` and, of the same value, in KVM's ABI.
    pub const fn number(self) -> u8 {
        match self {
            PageType::Normal => 1,
            PageType::Vmsa => 2,
            PageType::Zero => 3,
            PageType::Unmeasured => 4,
            PageType::Secrets => 5,
            PageType::Cpuid => 6,
        }
    }

    /// Whether the content is measured, not only the address.
    pub const fn is_measured(self) -> bool {
        matches!(self, PageType::Normal | PageType::Vmsa)
    }
}

impl fmt::Display for PageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PageType::Normal => "normal",
            PageType::Vmsa => "vmsa",
            PageType::Zero => "zero",
            PageType::Unmeasured => "unmeasured",
            PageType::Secrets => "secrets",
            PageType::Cpuid => "cpuid",
        })
    }
}
