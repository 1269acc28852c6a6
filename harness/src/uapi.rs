//! Numbers of the KVM ABI that the harness and the rows name, and that kvm-bindings 0.14 lacks or spreads
//! over types too narrow for the ioctls.
//!
//! Source: `include/uapi/linux/kvm.h` and `arch/x86/include/uapi/asm/kvm.h` of Linux 7.3.

/// What `KVM_GET_API_VERSION` returns on every kernel since 2.6.22.
pub(crate) const API_VERSION: i32 = 12;

/// `KVM_RUN`: the argument must be 0.
pub const KVM_RUN: u64 = 0xAE80;
/// `KVM_GET_STATS_FD`, of a VM or a vCPU.
pub(crate) const KVM_GET_STATS_FD: u64 = 0xAECE;
/// `KVM_SET_USER_MEMORY_REGION`, 32 bytes.
pub const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_AE46;
/// `KVM_SET_USER_MEMORY_REGION2`, 160 bytes.
pub const KVM_SET_USER_MEMORY_REGION2: u64 = 0x40A0_AE49;
/// `KVM_MEMORY_ENCRYPT_OP`; the number says 8 bytes, KVM takes the 24 of a `kvm_sev_cmd`.
pub const KVM_MEMORY_ENCRYPT_OP: u64 = 0xC008_AEBA;
/// `SEV_ISSUE_CMD` of `/dev/sev`, 16 bytes.
pub(crate) const SEV_ISSUE_CMD: u64 = 0xC010_5300;
/// `KVM_GET_DEVICE_ATTR`, 24 bytes.
pub(crate) const KVM_GET_DEVICE_ATTR: u64 = 0x4018_AEE2;
/// `KVM_GET_DIRTY_LOG`, 16 bytes.
pub(crate) const KVM_GET_DIRTY_LOG: u64 = 0x4010_AE42;
/// `KVM_CLEAR_DIRTY_LOG`, 24 bytes.
pub(crate) const KVM_CLEAR_DIRTY_LOG: u64 = 0xC018_AEC0;
/// `KVM_RESET_DIRTY_RINGS`, of a VM.
pub(crate) const KVM_RESET_DIRTY_RINGS: u64 = 0xAEC7;
/// `KVM_SET_MEMORY_ATTRIBUTES`, 32 bytes.
pub const KVM_SET_MEMORY_ATTRIBUTES: u64 = 0x4020_AED2;
/// `KVM_CREATE_GUEST_MEMFD`, 64 bytes.
pub const KVM_CREATE_GUEST_MEMFD: u64 = 0xC040_AED4;
/// `KVM_PRE_FAULT_MEMORY`, 64 bytes.
pub const KVM_PRE_FAULT_MEMORY: u64 = 0xC040_AED5;

/// The only memory attribute: the guest's accesses go to the guest_memfd.
pub const MEMORY_ATTRIBUTE_PRIVATE: u64 = 1 << 3;

/// Memslot flag: log writes.
pub const MEM_LOG_DIRTY_PAGES: u32 = 1;
/// Memslot flag: guest writes become MMIO exits.
pub const MEM_READONLY: u32 = 2;
/// Memslot flag: the slot has a guest_memfd.
pub const MEM_GUEST_MEMFD: u32 = 4;

/// guest_memfd flag: the file can be mapped.
pub const GUEST_MEMFD_FLAG_MMAP: u64 = 1;
/// guest_memfd flag: pages start out shared, so a mapping of them can be touched.
pub const GUEST_MEMFD_FLAG_INIT_SHARED: u64 = 2;

/// `KVM_EXIT_TDX`.
pub const EXIT_TDX: u32 = 40;

/// `kvm_run.memory_fault.flags`: the guest's access was private.
pub const MEMORY_EXIT_FLAG_PRIVATE: u64 = 1 << 3;

/// `KVM_EXIT_SNP_REQ_CERTS`.
pub(crate) const EXIT_SNP_REQ_CERTS: u32 = 43;

/// The hypercall by which a guest asks for a conversion.
pub const HC_MAP_GPA_RANGE: u64 = 12;
/// In `KVM_HC_MAP_GPA_RANGE`'s third argument: to private (encrypted).
pub const MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;

/// Quirk: the other vendor's hypercall instruction is overwritten with the CPU's own.
pub const QUIRK_FIX_HYPERCALL_INSN: u64 = 1 << 5;
/// Quirk of plain VMs: the deletion of any slot invalidates all page tables at once.
pub const QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;

/// Memslot ids from this one on are KVM's own.
pub const USER_MEM_SLOTS: u32 = 32764;

/// A capability: its number and its name in `linux/kvm.h` without the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// The argument of `KVM_CHECK_EXTENSION`.
    pub number: u32,
    /// The name without `KVM_CAP_`.
    pub name: &'static str,
}

macro_rules! capabilities {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Capability {
            $($(#[$doc])* pub const $name: Capability = Capability { number: $number, name: stringify!($name) };)*

            /// Every capability that rows depend on, by number.
            pub const ALL: &'static [Capability] = &[$(Capability::$name),*];
        }
    };
}

capabilities! {
    /// How many memslots a VM can have.
    NR_MEMSLOTS = 10;
    /// `KVM_REGISTER_COALESCED_MMIO`; the value is the page of the ring in the mapping of kvm_run.
    COALESCED_MMIO = 15;
    /// `KVM_IOEVENTFD`.
    IOEVENTFD = 36;
    /// The MSRs of Hyper-V.
    HYPERV = 44;
    /// Who waits for a page of the guest's can do so beside it.
    ASYNC_PF = 59;
    /// The greatest number of vCPUs of a VM.
    MAX_VCPUS = 66;
    /// Registers in `kvm_run`.
    SYNC_REGS = 74;
    /// Read-only memslots.
    READONLY_MEM = 81;
    /// The I/O APIC in the kernel, which there is, takes no notice of polarities.
    IOAPIC_POLARITY_IGNORED = 97;
    /// How many address spaces memslots can be in.
    MULTI_ADDRESS_SPACE = 118;
    /// A local APIC in the kernel, the other interrupt controllers in user space.
    SPLIT_IRQCHIP = 121;
    /// `kvm_run.immediate_exit`.
    IMMEDIATE_EXIT = 136;
    /// Bit set of the ways in which user space clears dirty logs itself.
    MANUAL_DIRTY_LOG_PROTECT2 = 168;
    /// A VM takes over the encryption context of another, as its mirror.
    VM_COPY_ENC_CONTEXT_FROM = 197;
    /// `KVM_REGISTER_COALESCED_MMIO` takes ports, too.
    COALESCED_PIO = 162;
    /// Bit set of the hypercalls that can be handed to user space.
    EXIT_HYPERCALL = 201;
    /// `KVM_GET_STATS_FD`.
    BINARY_STATS_FD = 203;
    /// A VM takes the encryption context away from another.
    VM_MOVE_ENC_CONTEXT_FROM = 206;
    /// Device attributes of `/dev/kvm` itself.
    SYS_ATTRIBUTES = 209;
    /// `kvm_run.system_event` carries data.
    SYSTEM_EVENT_DATA = 215;
    /// Bit set of the quirks that can be switched off.
    DISABLE_QUIRKS2 = 213;
    /// The most bytes that a vCPU's dirty ring can have, where user space orders its accesses itself.
    DIRTY_LOG_RING_ACQ_REL = 223;
    /// `KVM_SET_USER_MEMORY_REGION2`.
    USER_MEMORY2 = 231;
    /// `KVM_EXIT_MEMORY_FAULT`.
    MEMORY_FAULT_INFO = 232;
    /// Bit set of the attributes that can be set.
    MEMORY_ATTRIBUTES = 233;
    /// `KVM_CREATE_GUEST_MEMFD`.
    GUEST_MEMFD = 234;
    /// Bit set of the VM types.
    VM_TYPES = 235;
    /// `KVM_PRE_FAULT_MEMORY`.
    PRE_FAULT_MEMORY = 236;
    /// `kvm_run.flags` tells whether a nested guest ran.
    X86_GUEST_MODE = 238;
    /// Bit set of the flags of `KVM_CREATE_GUEST_MEMFD`.
    GUEST_MEMFD_FLAGS = 244;
}
