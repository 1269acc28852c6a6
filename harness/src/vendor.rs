//! The vendors of processors that KVM has a module for. Where their halves of KVM differ, a row says so in
//! its needs.

use std::arch::x86_64::__cpuid;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A vendor whose virtualization extensions KVM drives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// SVM with NPT, driven by `kvm_amd`; Hygon's processors, too.
    Amd,
    /// VMX with EPT, driven by `kvm_intel`.
    Intel,
}

impl Vendor {
    /// The module of KVM that drives these processors.
    pub const fn module(self) -> &'static str {
        match self {
            Vendor::Amd => "kvm_amd",
            Vendor::Intel => "kvm_intel",
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Vendor::Amd => "amd",
            Vendor::Intel => "intel",
        })
    }
}

/// Whether the CPU is AMD's (or Hygon's), whose hypercall instruction is vmmcall instead of vmcall.
pub(crate) fn cpu_is_amd() -> bool {
    let leaf = __cpuid(0);
    [b"AuthenticAMD", b"HygonGenuine"].iter().any(|vendor| {
        [leaf.ebx, leaf.edx, leaf.ecx].iter().zip(vendor.chunks(4)).all(|(reg, text)| reg.to_le_bytes() == *text)
    })
}
