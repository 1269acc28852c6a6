//! Deviations from KVM that can be switched on by name, one at a time.
//!
//! Each is a bug that kernels had or could have. They exist to show that rows can fail: a row that no defect
//! turns red proves nothing. The code that deviates asks `Options::has` at the one place where it does.

macro_rules! defects {
    ($($variant:ident = $name:literal: $summary:literal, $explanation:literal;)*) => {
        /// A deviation.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Defect {
            $(#[doc = $summary] $variant,)*
        }

        impl Defect {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name, as in `PRIVET_MODEL_DEFECT`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What is wrong, in a few words.
            pub fn summary(self) -> &'static str {
                match self { $(Self::$variant => $summary,)* }
            }

            /// What is wrong, why a kernel might do it, and what a guest or VMM sees of it.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)* }
            }
        }
    };
}

defects! {
    StaleMappingAfterConversion = "stale-mapping-after-conversion":
        "a conversion leaves the old mapping in use",
        "KVM_SET_MEMORY_ATTRIBUTES changes the attribute but zaps nothing, so a vCPU that has touched the page goes on with the other backing: it reads old data, and its private writes land in memory that the VMM reads. Kernel 5a475554db1e avoids this by invalidating before and after the change.";
    StaleMappingInOneVcpu = "stale-mapping-in-one-vcpu":
        "a conversion flushes only the first vCPU",
        "The zap of KVM_SET_MEMORY_ATTRIBUTES reaches vCPU 0 alone; the others keep what their TLB holds, as if a remote TLB flush had been forgotten. With one vCPU nothing is wrong.";
    AttributeOnePageTooMany = "attribute-one-page-too-many":
        "a conversion takes the page after its range with it",
        "The end of the range in KVM_SET_MEMORY_ATTRIBUTES is taken as inclusive. The neighbour above changes its backing without having been asked: its content is gone from the guest's view.";
    AttributeOnePageTooFew = "attribute-one-page-too-few":
        "a conversion of several pages leaves out the last",
        "The last page of a range of at least two pages in KVM_SET_MEMORY_ATTRIBUTES keeps its attribute, an off-by-one as in the reservation of the xarray (119e9db233ad). The ioctl succeeds.";
    AttributeUnalignedAccepted = "attribute-unaligned-accepted":
        "unaligned ranges are rounded instead of refused",
        "KVM_SET_MEMORY_ATTRIBUTES rounds address and size down to pages instead of returning EINVAL. A VMM that computes a range wrongly is told that all is well.";
    AttributeOfPlainVmAccepted = "attribute-of-plain-vm-accepted":
        "PRIVATE can be set on a VM without private memory",
        "The attribute is checked against what the kernel supports instead of what the VM's type supports, so KVM_SET_MEMORY_ATTRIBUTES(PRIVATE) succeeds on a default VM instead of EINVAL. The access is still shared.";
    AttributeFollowsSlot = "attribute-follows-slot":
        "deleting a slot forgets the attributes of its range",
        "Attributes belong to the VM's physical address space, not to slots: a page stays private when its slot is deleted and made again. Here deletion makes the range shared, so the recreated slot shows the guest the VMM's memory.";
    AttributeMovesGeneration = "attribute-moves-generation":
        "a conversion makes cached MMIO stale",
        "KVM_SET_MEMORY_ATTRIBUTES advances the memslot generation as a slot change does. Every conversion then costs each cached MMIO address one full fault; only counters show it.";
    PrivateLeaksToShared = "private-leaks-to-shared":
        "converting to shared publishes the private content",
        "The conversion copies the guest_memfd page to the VMM's memory, as in-place conversion would without scrubbing. What the guest wrote privately is there for the host to read.";
    SharedLeaksToPrivate = "shared-leaks-to-private":
        "converting to private takes the shared content along",
        "The conversion copies the VMM's page into the guest_memfd. The guest finds in private memory what the host chose to put there, where it must find what it last left there, or zeros.";
    ConversionDropsPrivate = "conversion-drops-private":
        "converting to shared frees the private page",
        "The guest_memfd page is dropped when its range becomes shared. In a software-protected VM the two backings are independent, and content must be back when the page is private again.";
    HoleNotZeroed = "hole-not-zeroed":
        "punching a hole keeps the old content",
        "fallocate(PUNCH_HOLE) unmaps the page from the guest but keeps it, so the next access finds the old data instead of zeros, as if a folio had kept its up-to-date flag (d04c77d23122).";
    HoleOnePageTooMany = "hole-one-page-too-many":
        "punching a hole zeroes the page after it too",
        "The end of the range in fallocate(PUNCH_HOLE) is taken as inclusive. A page that the VMM did not name loses its content.";
    HoleClearsAttribute = "hole-clears-attribute":
        "punching a hole makes the range shared",
        "The attribute is reset along with the page. It must stay: the guest's next private access gets a zeroed private page, not the VMM's memory.";
    FileCloseKeepsMapping = "file-close-keeps-mapping":
        "closing a guest_memfd leaves its pages mapped",
        "The release of the file forgets the invalidation of its bindings (compare ae431059e75d, where it raced and left dangling ones). The guest goes on using pages whose file is gone, where it must exit with MEMORY_FAULT.";
    MmapPrivateTouchable = "mmap-private-touchable":
        "private guest_memfd pages can be touched through mmap",
        "A file with MMAP but without INIT_SHARED gives its pages to whoever touches the mapping, where that must be SIGBUS. Private memory is readable by the host.";
    InitSharedAccepted = "init-shared-accepted":
        "INIT_SHARED is accepted for VMs with private memory",
        "KVM_CREATE_GUEST_MEMFD checks its flags against the kernel's instead of the VM's, and gives a confidential VM a file whose pages the host can map.";
    DoubleBindAccepted = "double-bind-accepted":
        "two slots can bind the same file range",
        "The check for existing bindings is missing: guest memory is the same at two addresses, and unbinding one leaves the other without invalidation. The errno was wrong once, and upstream's test with it; it is EEXIST.";
    ReadOnlyFileSlotAccepted = "read-only-file-slot-accepted":
        "READONLY together with GUEST_MEMFD is accepted",
        "As in kernels before the fix of a7800aa80ea4. Writes to a read-only slot are emulated as MMIO, which private memory must never be.";
    DirtyLogOfFileSlotAccepted = "dirty-log-of-file-slot-accepted":
        "LOG_DIRTY_PAGES together with GUEST_MEMFD is accepted",
        "The flag check forgets that private memory cannot be logged. The VMM gets a bitmap that misses every private write.";
    BindOffsetSigned = "bind-offset-signed":
        "huge file offsets pass the range check",
        "Offset and size are added as signed numbers, so an offset near 2^63 wraps below the file's size and is accepted (\"Fix possible signed integer overflow\", 2026). EINVAL is right.";
    ForeignFileAccepted = "foreign-file-accepted":
        "a guest_memfd of another VM can be bound",
        "The owner of the file is not compared with the VM of the slot, so one VM maps another's private memory.";
    FileFlagCanBeCleared = "file-flag-can-be-cleared":
        "GUEST_MEMFD can be cleared on an existing slot",
        "As before 9935df5333aa: the slot becomes an ordinary one and its binding is left behind, dangling. The right answer is EINVAL.";
    SlotDeleteKeepsMapping = "slot-delete-keeps-mapping":
        "deleting a slot leaves its pages mapped",
        "The zap of kvm_arch_flush_shadow_memslot is missing. The guest goes on reading memory that the VMM has taken back, where it must exit with MMIO or MEMORY_FAULT.";
    OverlapAccepted = "overlap-accepted":
        "a slot may cover the first page of another",
        "The overlap check compares with the wrong end: a new slot that begins on the last page of an existing one is accepted instead of EEXIST, and which memory the guest sees is luck.";
    MmioCachedOverNewSlot = "mmio-cached-over-new-slot":
        "cached MMIO outlives a slot that is created over it",
        "The generation of an MMIO SPTE is not compared. After a slot is added at an address that the guest has touched as MMIO, its accesses still exit to user space instead of reaching memory.";
    MmioGenerationWrap = "mmio-generation-wrap":
        "the wrap of the MMIO generation zaps nothing",
        "Only 18 bits of the memslot generation fit into an MMIO SPTE; when they wrap, all must be zapped (e1359e2beb8b). Without that an SPTE of 2^18 generations ago looks fresh, and hides a slot.";
    MmioNeverCached = "mmio-never-cached":
        "MMIO is never cached although mmio_caching is Y",
        "The MMIO SPTE is not installed, as when the mask was not recomputed on module reload (c3e0c8c2e8b1). The guest sees no difference; every access takes the full fault path, which the counters show. SEV-ES, SNP and TDX cannot do MMIO at all without it.";
    MmioCachedWhenOff = "mmio-cached-when-off":
        "MMIO is cached although mmio_caching is N",
        "The parameter is ignored. Counters show SPTEs that must not exist.";
    MmioReadReturnsOld = "mmio-read-returns-old":
        "an MMIO load gets the data of the load before",
        "The completion of KVM_EXIT_MMIO copies kvm_run.mmio.data too early, so each load returns what user space gave to the previous one.";
    MmioPrivateAccess = "mmio-private-access":
        "a private access without a slot is MMIO",
        "A fault on a slotless private page is handed to the emulator as if it were shared, and user space gets KVM_EXIT_MMIO instead of MEMORY_FAULT: private data leaves through an exit.";
    FaultFlagMissing = "fault-flag-missing":
        "MEMORY_FAULT does not say that the access was private",
        "kvm_run.memory_fault.flags is 0 for private accesses. A VMM that converts to what the exit says makes the page shared, and loops.";
    FaultGpaNotAligned = "fault-gpa-not-aligned":
        "MEMORY_FAULT gives the address instead of the page",
        "The gpa is that of the access and not of its page. A VMM that passes it on to KVM_SET_MEMORY_ATTRIBUTES gets EINVAL.";
    FaultSizeZero = "fault-size-zero":
        "MEMORY_FAULT has size 0",
        "The size is left out. It must be that of a page.";
    FaultReturnsZero = "fault-returns-zero":
        "KVM_RUN returns 0 with MEMORY_FAULT",
        "The documented return is -1 with EFAULT (or EHWPOISON); a VMM that checks the errno first takes the exit for an ordinary one.";
    FaultReasonMissing = "fault-reason-missing":
        "the exit reason of a memory fault stays unknown",
        "KVM_RUN fails with EFAULT and exit_reason 0, as before kernel 6.8: the VMM cannot tell a conversion request from a broken mapping, and kills the guest.";
    PrefaultWrongKind = "prefault-wrong-kind":
        "pre-faulting ignores the attribute",
        "KVM_PRE_FAULT_MEMORY faults the shared backing in for private pages too: it counts a mapping that no access can use, and succeeds where a private page has no file.";
    PrefaultMapsNothing = "prefault-maps-nothing":
        "pre-faulting succeeds without mapping",
        "The ioctl reports the pages as done but installs no SPTE. The guest faults on each of them; only counters show it.";
    PrefaultRemainderLost = "prefault-remainder-lost":
        "pre-faulting does not write back what is left",
        "struct kvm_pre_fault_memory keeps its values when the ioctl stops half-way, so a VMM that continues does it all again, or never ends.";
    PrefaultHoleSucceeds = "prefault-hole-succeeds":
        "pre-faulting an address without a slot succeeds",
        "RET_PF_EMULATE is taken for success instead of ENOENT.";
    HypercallRetIgnored = "hypercall-ret-ignored":
        "the guest never sees the VMM's answer to a hypercall",
        "The completion of KVM_EXIT_HYPERCALL writes 0 to RAX instead of kvm_run.hypercall.ret, so the guest believes a refused conversion.";
    HypercallArgsSwapped = "hypercall-args-swapped":
        "gpa and page count of a conversion request are swapped",
        "kvm_run.hypercall.args are filled in the wrong order.";
    HypercallFromUserMode = "hypercall-from-user-mode":
        "ring 3 may ask for conversions",
        "The CPL check of the hypercall is missing: a guest process can make the kernel's pages shared. The right answer is -KVM_EPERM, without an exit.";
    HypercallAlwaysExits = "hypercall-always-exits":
        "conversion requests exit although nobody enabled them",
        "KVM_CAP_EXIT_HYPERCALL is ignored. A VMM that did not ask for the exit does not know it and gives up; the guest must get -KVM_ENOSYS instead.";
    HypercallQuirkIgnored = "hypercall-quirk-ignored":
        "the other vendor's hypercall is patched although the quirk is off",
        "KVM_X86_QUIRK_FIX_HYPERCALL_INSN is not asked. A guest whose code must not change, because it is measured, is changed by the host; it should get #UD.";
    AttributeIgnoredByFaults = "attribute-ignored-by-faults":
        "private pages are mapped from the VMM's memory",
        "Faults do not look at the attribute, which is stored and given back all the same. The guest and the VMM believe in private memory that there is not.";
    AttributeOnePageTooEarly = "attribute-one-page-too-early":
        "a conversion takes the page before its range with it",
        "The start of the range in KVM_SET_MEMORY_ATTRIBUTES is rounded to the entry before. The neighbour below changes its backing without having been asked.";
    AttributeFlagsUnchecked = "attribute-flags-unchecked":
        "unknown attributes and flags are ignored instead of refused",
        "Only the bits that KVM_SET_MEMORY_ATTRIBUTES knows are looked at. A VMM that asks for what this kernel does not have is told that it got it.";
    AttributeEmptyRangeAccepted = "attribute-empty-range-accepted":
        "a range without pages, or one that wraps, succeeds",
        "KVM_SET_MEMORY_ATTRIBUTES checks neither for size 0 nor for an end below the start. The ioctl succeeds and has done nothing.";
    BadPointerIsInvalid = "bad-pointer-is-invalid":
        "an unreadable argument is EINVAL instead of EFAULT",
        "What copy_from_user leaves over is taken for a bad value. A VMM that tells the two apart looks for its mistake in the wrong place.";
    HostFaultIsMemoryFault = "host-fault-is-memory-fault":
        "memory that the VMM has taken away exits with MEMORY_FAULT",
        "The exit information is filled in for every error of a fault. A page of the VMM's that cannot be had (unmapped, PROT_NONE) asks for a conversion, where KVM_RUN must fail with EFAULT alone.";
    HugePageOverMixed = "huge-page-over-mixed":
        "shared memory is mapped by 2 MiB with private pages among it",
        "The attributes of the neighbours are not looked at (9129633d568e). The guest reaches the VMM's memory where its private page is.";
    SlotFlagsUnchecked = "slot-flags-unchecked":
        "unknown flags of a slot are ignored instead of refused",
        "The check of the flags is missing. A VMM that asks for a property that this kernel does not have is told that its slot has it.";
    SlotUnalignedAccepted = "slot-unaligned-accepted":
        "unaligned slots are rounded instead of refused",
        "Addresses, size and file offset of a slot are rounded down to pages instead of EINVAL: the guest's memory is not where the VMM put it.";
    SlotHostAddressUnchecked = "slot-host-address-unchecked":
        "a slot may lie in the kernel's half of the address space",
        "access_ok is missing. A VMM maps the kernel's memory into its guest.";
    SlotAboveReachAccepted = "slot-above-reach-accepted":
        "a slot may lie where no CPU of the guest reaches",
        "kvm_arch_prepare_memory_region forgets the limit of the second-level page table; the slot's upper pages cannot be mapped, and a guest that touches them loops or loses bits of the address.";
    SlotIdUnchecked = "slot-id-unchecked":
        "ids of slots and address spaces that there are not are accepted",
        "Neither is compared with what the VM has. KVM's own slots can be replaced, and slots are made where no access looks.";
    SlotDeletedTwice = "slot-deleted-twice":
        "deleting a slot that is not there succeeds",
        "Nothing is nothing: the ioctl returns 0 where it must say EINVAL. A VMM with a wrong book of its slots does not notice.";
    FileFlagsUnchecked = "file-flags-unchecked":
        "unknown flags of a guest_memfd are ignored instead of refused",
        "KVM_CREATE_GUEST_MEMFD looks at the flags that it knows only. A VMM that asks for more is told that its file has it.";
    FileSizeUnchecked = "file-size-unchecked":
        "a guest_memfd may have a size that is no number of pages",
        "The size is rounded up to pages instead of EINVAL, none at all to one.";
    FileMapsWithoutFlag = "file-maps-without-flag":
        "a guest_memfd can be mapped though it was made without the flag",
        "mmap does not ask for GUEST_MEMFD_FLAG_MMAP. It must be ENODEV.";
    FileCopyMapped = "file-copy-mapped":
        "MAP_PRIVATE of a guest_memfd succeeds",
        "The check for VM_SHARED is missing. The VMM writes into a copy of its own and believes that the guest has it.";
    FileServesPrivateOnly = "file-serves-private-only":
        "shared faults ignore a guest_memfd that can be mapped",
        "kvm_memslot_is_gmem_only is forgotten: a fault on a shared page goes to the host address of the slot, which is other memory or none.";
    HoleUnalignedAccepted = "hole-unaligned-accepted":
        "an unaligned hole is rounded instead of refused",
        "fallocate(PUNCH_HOLE) rounds outwards to pages instead of EINVAL: bytes that the VMM did not name are gone.";
    AllocationZeroes = "allocation-zeroes":
        "allocating pages that are there zeroes them",
        "fallocate without PUNCH_HOLE takes fresh pages, as if a folio had lost its up-to-date flag. Allocating ahead of a conversion destroys what is there.";
    ReadOnlySlotWritable = "read-only-slot-writable":
        "stores to a read-only slot reach memory",
        "The fault does not look at the flag. Firmware that the VMM protects is overwritten without an exit.";
    MmioWriteTruncated = "mmio-write-truncated":
        "an MMIO store loses all but its low 2 bytes",
        "The data of KVM_EXIT_MMIO is copied with the size of another operand. Devices get zeros.";
    MmioSecondPartLost = "mmio-second-part-lost":
        "the second part of a split MMIO store is lost",
        "The fragments after the first are forgotten when user space has taken it (compare CVE-2026-31588, where the second was read from a stack that was gone).";
    IoeventfdRingsBeside = "ioeventfd-rings-beside":
        "an ioeventfd takes stores beside its address",
        "The address is compared by 8 bytes. A store to the register beside a doorbell rings, and the device never sees it.";
    UnknownVmTypeAccepted = "unknown-vm-type-accepted":
        "a VM of an unknown type is a default VM",
        "KVM_CREATE_VM does not refuse types that it does not know. A VMM that wants a protected guest gets an open one.";
    CapabilityOfEveryVm = "capability-of-every-vm":
        "a VM without private memory claims to have it",
        "KVM_CHECK_EXTENSION(MEMORY_ATTRIBUTES) of a VM answers for the machine instead of for the VM's type. The VMM sets up what will be refused.";
    DirtyLogMissesWrites = "dirty-log-misses-writes":
        "a page is logged only when it is first written",
        "KVM_GET_DIRTY_LOG clears the bitmap without protecting the pages again, so later writes go unnoticed and migration loses data.";
}

impl Defect {
    /// The defect of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|defect| defect.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<_> = Defect::ALL.iter().map(|defect| defect.name()).collect();
        assert_eq!(names.len(), Defect::ALL.len());
        for defect in Defect::ALL {
            assert_eq!(Defect::named(defect.name()), Some(*defect));
            assert!(defect.name().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", defect.name());
        }
        assert_eq!(Defect::named("no-such"), None);
    }
}
