//! `KVM_CHECK_EXTENSION`: what the model has. Anything else is 0, as on a kernel without it.
//!
//! Values: `kvm_main.c:kvm_vm_ioctl_check_extension_generic`,
//! `arch/x86/kvm/x86.c:kvm_vm_ioctl_check_extension`.

use kvm_bindings::*;

use crate::defect::Defect;
use crate::guest_memfd::{FLAG_INIT_SHARED, FLAG_MMAP};
use crate::log;
use crate::memslot::USER_SLOTS;
use crate::options::Options;
use crate::vm_type::VmType;

/// `KVM_CAP_GUEST_MEMFD_FLAGS`, newer than the bindings.
const KVM_CAP_GUEST_MEMFD_FLAGS: u32 = 244;

/// `KVM_MAX_VCPUS`.
pub(crate) const MAX_VCPUS: u32 = 1024;
/// `KVM_MAX_VCPU_IDS`.
pub(crate) const MAX_VCPU_IDS: u64 = 4096;
/// `KVM_MAX_IRQ_ROUTES`.
pub(crate) const MAX_IRQ_ROUTES: u64 = 4096;
/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`.
pub(crate) const MANUAL_PROTECT: u64 = 1;
/// `KVM_DIRTY_LOG_INITIALLY_SET`.
pub(crate) const INITIALLY_SET: u64 = 2;
/// `1 << KVM_HC_MAP_GPA_RANGE`.
pub(crate) const EXIT_HYPERCALL_MASK: u64 = 1 << 12;
/// `KVM_X86_QUIRK_SLOT_ZAP_ALL`: deleting a slot of a default VM zaps everything.
pub(crate) const QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;
/// `KVM_X86_QUIRK_FIX_HYPERCALL_INSN`: the other vendor's hypercall instruction is as good as the CPU's own.
pub(crate) const QUIRK_FIX_HYPERCALL: u64 = 1 << 5;
/// `KVM_X86_QUIRK_STUFF_FEATURE_MSRS`: feature MSRs of a fresh vCPU are those of the machine.
pub(crate) const QUIRK_STUFF_FEATURE_MSRS: u64 = 1 << 8;
/// `KVM_X86_VALID_QUIRKS`.
pub(crate) const QUIRKS: u64 = 0xfff;
/// `KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`.
pub(crate) const X2APIC_API_FLAGS: u64 = 3;
/// What `kvm_run` can carry: REGS, SREGS, EVENTS.
pub(crate) const SYNC_REGS_FIELDS: u64 = 7;
/// `sizeof(struct kvm_xsave)`: enough for all that the CPU has.
pub(crate) const XSAVE_BYTES: usize = 4096;
/// Flags of `KVM_SET_GUEST_DEBUG` that the model has.
pub(crate) const GUEST_DEBUG_FLAGS: u32 = KVM_GUESTDBG_ENABLE
    | KVM_GUESTDBG_SINGLESTEP
    | KVM_GUESTDBG_USE_SW_BP
    | KVM_GUESTDBG_USE_HW_BP
    | KVM_GUESTDBG_INJECT_DB
    | KVM_GUESTDBG_INJECT_BP
    | KVM_GUESTDBG_BLOCKIRQ;

/// The machine, and the type of the VM that is asked, if it is one.
type Asked<'a> = (&'a Options, Option<VmType>);

enum Value {
    Is(u32),
    Of(fn(Asked<'_>) -> u32),
}
use Value::{Is, Of};

const CAPABILITIES: &[(u32, Value)] = &[
    (KVM_CAP_IRQCHIP, Is(1)),
    (KVM_CAP_HLT, Is(1)),
    (KVM_CAP_MMU_SHADOW_CACHE_CONTROL, Is(1)),
    (KVM_CAP_USER_MEMORY, Is(1)),
    (KVM_CAP_SET_TSS_ADDR, Is(1)),
    (KVM_CAP_EXT_CPUID, Is(1)),
    (KVM_CAP_NR_VCPUS, Of(|_| std::thread::available_parallelism().map_or(1, |count| count.get() as u32))),
    (KVM_CAP_NR_MEMSLOTS, Is(USER_SLOTS)),
    (KVM_CAP_NOP_IO_DELAY, Is(1)),
    (KVM_CAP_MP_STATE, Is(1)),
    (KVM_CAP_SYNC_MMU, Is(1)),
    (KVM_CAP_DESTROY_MEMORY_REGION_WORKS, Is(1)),
    (KVM_CAP_USER_NMI, Is(1)),
    (KVM_CAP_SET_GUEST_DEBUG, Is(1)),
    (KVM_CAP_IRQ_ROUTING, Is(MAX_IRQ_ROUTES as u32)),
    (KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, Is(1)),
    (KVM_CAP_SET_BOOT_CPU_ID, Is(1)),
    (KVM_CAP_IOEVENTFD, Is(1)),
    (KVM_CAP_IOEVENTFD_NO_LENGTH, Is(1)),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, Is(1)),
    (KVM_CAP_SET_IDENTITY_MAP_ADDR, Is(1)),
    (KVM_CAP_INTERNAL_ERROR_DATA, Is(1)),
    (KVM_CAP_VCPU_EVENTS, Is(1)),
    (KVM_CAP_DEBUGREGS, Is(1)),
    (KVM_CAP_X86_ROBUST_SINGLESTEP, Is(1)),
    (KVM_CAP_ENABLE_CAP, Is(1)),
    (KVM_CAP_XSAVE, Is(1)),
    (KVM_CAP_XCRS, Is(1)),
    (KVM_CAP_TSC_CONTROL, Is(1)),
    (KVM_CAP_GET_TSC_KHZ, Is(1)),
    (KVM_CAP_MAX_VCPUS, Is(MAX_VCPUS)),
    (KVM_CAP_ONE_REG, Is(1)),
    (
        KVM_CAP_SYNC_REGS,
        Of(|(_, kind)| if kind.is_some_and(VmType::has_protected_state) { 0 } else { SYNC_REGS_FIELDS as u32 }),
    ),
    (KVM_CAP_SIGNAL_MSI, Is(1)),
    (KVM_CAP_READONLY_MEM, Of(|(_, kind)| (!kind.is_some_and(VmType::has_protected_state)).into())),
    (KVM_CAP_EXT_EMUL_CPUID, Is(1)),
    (KVM_CAP_ENABLE_CAP_VM, Is(1)),
    (KVM_CAP_CHECK_EXTENSION_VM, Is(1)),
    (KVM_CAP_DISABLE_QUIRKS, Is(1)),
    (KVM_CAP_MULTI_ADDRESS_SPACE, Of(|(_, kind)| kind.map_or(2, VmType::address_spaces))),
    (KVM_CAP_SPLIT_IRQCHIP, Is(1)),
    (KVM_CAP_MAX_VCPU_ID, Is(MAX_VCPU_IDS as u32)),
    (KVM_CAP_X2APIC_API, Is(X2APIC_API_FLAGS as u32)),
    (KVM_CAP_IMMEDIATE_EXIT, Is(1)),
    (KVM_CAP_GET_MSR_FEATURES, Is(1)),
    (KVM_CAP_MSR_PLATFORM_INFO, Is(1)),
    (KVM_CAP_EXCEPTION_PAYLOAD, Is(1)),
    (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, Is((MANUAL_PROTECT | INITIALLY_SET) as u32)),
    (KVM_CAP_HALT_POLL, Is(1)),
    (KVM_CAP_LAST_CPU, Is(1)),
    (KVM_CAP_SET_GUEST_DEBUG2, Is(GUEST_DEBUG_FLAGS)),
    (KVM_CAP_SREGS2, Is(1)),
    (KVM_CAP_EXIT_HYPERCALL, Is(EXIT_HYPERCALL_MASK as u32)),
    (KVM_CAP_BINARY_STATS_FD, Is(1)),
    (KVM_CAP_EXIT_ON_EMULATION_FAILURE, Is(1)),
    (KVM_CAP_XSAVE2, Is(XSAVE_BYTES as u32)),
    (KVM_CAP_SYS_ATTRIBUTES, Is(1)),
    (KVM_CAP_VCPU_ATTRIBUTES, Is(1)),
    (KVM_CAP_DISABLE_QUIRKS2, Is(QUIRKS as u32)),
    (KVM_CAP_VM_TSC_CONTROL, Is(1)),
    (KVM_CAP_SYSTEM_EVENT_DATA, Is(1)),
    (KVM_CAP_X86_TRIPLE_FAULT_EVENT, Is(1)),
    (KVM_CAP_USER_MEMORY2, Is(1)),
    (KVM_CAP_MEMORY_FAULT_INFO, Is(1)),
    (
        KVM_CAP_MEMORY_ATTRIBUTES,
        Of(|(options, kind)| {
            let kind = kind.filter(|_| !options.has(Defect::CapabilityOfEveryVm));
            let private = kind.map_or(VmType::bitmap(options) != 1, VmType::has_private_mem);
            if private { KVM_MEMORY_ATTRIBUTE_PRIVATE } else { 0 }
        }),
    ),
    (KVM_CAP_GUEST_MEMFD, Is(1)),
    (KVM_CAP_VM_TYPES, Of(|(options, _)| VmType::bitmap(options) as u32)),
    (KVM_CAP_PRE_FAULT_MEMORY, Is(1)),
    (KVM_CAP_X86_GUEST_MODE, Is(1)),
    (KVM_CAP_GUEST_MEMFD_FLAGS, Of(|(_, kind)| guest_memfd_flags(kind.unwrap_or(VmType::Default)) as u32)),
];

/// The value of a capability, of a VM of a type or of `/dev/kvm`.
pub(crate) fn check(number: u64, options: &Options, kind: Option<VmType>) -> i32 {
    match CAPABILITIES.iter().find(|(known, _)| u64::from(*known) == number) {
        Some((_, Is(value))) => *value as i32,
        Some((_, Of(value))) => value((options, kind)) as i32,
        None => {
            log::once(|| format!("KVM_CHECK_EXTENSION of capability {number}: the model does not have it"));
            0
        }
    }
}

/// The flags of `KVM_CREATE_GUEST_MEMFD`: pages of VMs with private memory start private.
pub(crate) fn guest_memfd_flags(kind: VmType) -> u64 {
    if kind.has_private_mem() { FLAG_MMAP } else { FLAG_MMAP | FLAG_INIT_SHARED }
}
