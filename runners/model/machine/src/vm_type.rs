//! VM types and what follows from them.
//!
//! Source: `arch/x86/kvm/x86.c:kvm_arch_init_vm`, `arch/x86/include/asm/kvm_host.h`.

use crate::defect::Defect;
use crate::options::Options;

/// The argument of `KVM_CREATE_VM`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VmType {
    /// `KVM_X86_DEFAULT_VM`.
    Default,
    /// `KVM_X86_SW_PROTECTED_VM`: private memory without protection.
    SoftwareProtected,
}

impl VmType {
    const ALL: [Self; 2] = [Self::Default, Self::SoftwareProtected];

    /// The number in `KVM_CREATE_VM` and the bit in `KVM_CAP_VM_TYPES`.
    fn number(self) -> u64 {
        match self {
            Self::Default => 0,
            Self::SoftwareProtected => 1,
        }
    }

    /// The type of this number, if the machine offers it.
    pub(crate) fn offered(number: u64, options: &Options) -> Option<Self> {
        let unknown = options.has(Defect::UnknownVmTypeAccepted).then_some(Self::Default);
        Self::ALL.into_iter().find(|kind| kind.number() == number && kind.is_offered(options)).or(unknown)
    }

    /// `KVM_CAP_VM_TYPES`.
    pub(crate) fn bitmap(options: &Options) -> i32 {
        Self::ALL.into_iter().filter(|kind| kind.is_offered(options)).fold(0, |map, kind| map | 1 << kind.number())
    }

    fn is_offered(self, options: &Options) -> bool {
        match self {
            Self::Default => true,
            Self::SoftwareProtected => options.tdp_mmu,
        }
    }

    /// Memory attributes can say PRIVATE.
    pub(crate) fn has_private_mem(self) -> bool {
        match self {
            Self::Default => false,
            Self::SoftwareProtected => true,
        }
    }

    /// Registers belong to the guest alone once it is launched, and pages cannot be write-protected by slot.
    pub(crate) fn has_protected_state(self) -> bool {
        match self {
            Self::Default | Self::SoftwareProtected => false,
        }
    }

    /// Memslot address spaces: one more for SMM, which VMs with private memory do not have.
    pub(crate) fn address_spaces(self) -> u32 {
        if self.has_private_mem() { 1 } else { 2 }
    }

    /// Who says whether a guest's access is private.
    pub(crate) fn access_kind(self) -> AccessKind {
        match self {
            Self::Default => AccessKind::AlwaysShared,
            Self::SoftwareProtected => AccessKind::ByAttribute,
        }
    }
}

/// Who says whether a guest's access is private (kernel: who sets `PFERR_PRIVATE_ACCESS`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AccessKind {
    /// There is no private memory.
    AlwaysShared,
    /// The VMM, by the attribute of the page.
    ByAttribute,
}
