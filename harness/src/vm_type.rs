//! The VM types of KVM on x86.

use std::fmt;
use std::str::FromStr;

use crate::vendor::Vendor;

/// What `KVM_CREATE_VM` is asked for; also the first segment of a row's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum VmType {
    /// `KVM_X86_DEFAULT_VM`.
    Plain,
    /// `KVM_X86_SW_PROTECTED_VM`: private memory without encryption.
    Upm,
    /// `KVM_X86_SEV_VM`.
    Sev,
    /// `KVM_X86_SEV_ES_VM`.
    SevEs,
    /// `KVM_X86_SNP_VM`.
    Snp,
    /// `KVM_X86_TDX_VM`.
    Tdx,
}

impl VmType {
    /// Every type, by its number.
    pub const ALL: [VmType; 6] = [VmType::Plain, VmType::Upm, VmType::Sev, VmType::SevEs, VmType::Snp, VmType::Tdx];

    /// The argument of `KVM_CREATE_VM`, and the bit of the type in `KVM_CAP_VM_TYPES`.
    pub const fn kvm_type(self) -> u64 {
        match self {
            VmType::Plain => 0,
            VmType::Upm => 1,
            VmType::Sev => 2,
            VmType::SevEs => 3,
            VmType::Snp => 4,
            VmType::Tdx => 5,
        }
    }

    /// Whether AMD's secure processor launches its guests: it needs `/dev/sev`.
    pub const fn needs_secure_processor(self) -> bool {
        matches!(self, VmType::Sev | VmType::SevEs | VmType::Snp)
    }

    /// The vendor of the processors that have such VMs; nobody's, if all have.
    pub const fn vendor(self) -> Option<Vendor> {
        match self {
            VmType::Plain | VmType::Upm => None,
            VmType::Sev | VmType::SevEs | VmType::Snp => Some(Vendor::Amd),
            VmType::Tdx => Some(Vendor::Intel),
        }
    }

    /// The scarce ids of encryption keys that each of its guests has one of, by their name in the misc cgroup
    /// (arch/x86/kvm/svm/sev.c: sev_misc_cg_try_charge; arch/x86/kvm/vmx/tdx.c: __tdx_td_init).
    pub const fn key_ids(self) -> Option<&'static str> {
        match self {
            VmType::Plain | VmType::Upm => None,
            VmType::Sev => Some("sev"),
            VmType::SevEs | VmType::Snp => Some("sev_es"),
            VmType::Tdx => Some("tdx"),
        }
    }

    /// The name in ids and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            VmType::Plain => "plain",
            VmType::Upm => "upm",
            VmType::Sev => "sev",
            VmType::SevEs => "sev_es",
            VmType::Snp => "snp",
            VmType::Tdx => "tdx",
        }
    }
}

impl fmt::Display for VmType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no VM type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no VM type: use one of plain, upm, sev, sev_es, snp, tdx")]
pub struct UnknownVmType(String);

impl FromStr for VmType {
    type Err = UnknownVmType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        VmType::ALL.into_iter().find(|vm_type| vm_type.name() == name).ok_or_else(|| UnknownVmType(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for (number, vm_type) in VmType::ALL.into_iter().enumerate() {
            assert_eq!(vm_type.kvm_type(), number as u64);
            assert_eq!(vm_type.name().parse(), Ok(vm_type));
        }
        assert!("SEV".parse::<VmType>().unwrap_err().to_string().contains("sev_es"));
    }
}
