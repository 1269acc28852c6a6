//! The rules of the silicon by name, so that each can be switched off: a mutant, which tests and rows have to notice.
//!
//! A rule that is off is one that this silicon forgot. At the place of each rule [`Rules::hold`] is asked; real
//! machines have all of them, and then that costs one comparison.

mod unasked;

use privet_cpu::Vendor;
use serde::{Deserialize, Serialize};

macro_rules! rules {
    ($($variant:ident = $name:literal: $sentence:literal,)*) => {
        /// A rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Rule {
            $(#[doc = $sentence] $variant,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant),*];

            /// Its name on command lines.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Rule::$variant => $name,)* }
            }

            /// What it says.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self { $(Rule::$variant => $sentence,)* }
            }
        }
    };
}

rules! {
    // Encryption.
    Ciphertext = "ciphertext": "What a guest has written is ciphertext to everybody without its key.",
    PrivateFetches = "private-fetches": "An encrypted guest's instruction fetches use its key whatever the C-bit says.",
    PrivateWalks = "private-walks": "An encrypted guest's page tables are read and written with its key.",
    SharedWithoutCBit = "shared-without-c-bit": "Data behind a clear C-bit is accessed without the guest's key.",
    // The RMP on each access.
    HostWrites = "host-writes": "Nobody but its owner writes a page that is assigned: the host gets #PF with the RMP bit.",
    LargeWrites = "large-writes": "A write through a mapping of 2 MiB needs all of it to be the hypervisor's.",
    AccessOwner = "access-owner": "A guest reaches no private page of another ASID.",
    AccessPlace = "access-place": "A private page is good at the guest-physical address of its entry only.",
    AccessMutable = "access-mutable": "A guest reaches no page that the firmware still holds.",
    AccessSize = "access-size": "A private page is mapped with the size of its entry.",
    AccessValidated = "access-validated": "A private page that the guest has not validated raises #VC.",
    AccessVmpl = "access-vmpl": "A VMPL does with a page only what it has the right to.",
    StaleTranslations = "stale-translations": "Whoever changes an entry has all processors forget the page.",
    // The hypervisor's instructions.
    UpdateImmutable = "update-immutable": "RMPUPDATE changes no immutable page.",
    UpdateInUse = "update-in-use": "RMPUPDATE changes no page that a processor runs with.",
    UpdateOverlap = "update-overlap": "RMPUPDATE makes no entries that lie across others.",
    UpdateInput = "update-input": "RMPUPDATE takes aligned addresses that the table covers.",
    UpdateInvalidates = "update-invalidates": "What RMPUPDATE has assigned is not validated.",
    SmashPlaces = "smash-places": "PSMASH gives each small page its own guest-physical address.",
    SmashImmutable = "smash-immutable": "PSMASH changes no immutable page.",
    SmashInUse = "smash-in-use": "PSMASH changes no page that a processor runs with.",
    // The guest's instructions.
    ValidateCarry = "validate-carry": "PVALIDATE says by CF that the page was in that state already.",
    ValidateSize = "validate-size": "PVALIDATE and RMPADJUST mind the size of the entry.",
    ValidateVmpl = "validate-vmpl": "PVALIDATE is for VMPL 0.",
    AdjustDown = "adjust-down": "RMPADJUST changes rights of lower VMPLs only.",
    AdjustWithin = "adjust-within": "RMPADJUST gives no right that its VMPL has not.",
    AdjustVmsa = "adjust-vmsa": "Only VMPL 0 makes a page a VMSA.",
    AdjustInUse = "adjust-in-use": "RMPADJUST changes no page that a processor runs with.",
    AdjustValidated = "adjust-validated": "RMPADJUST of a page that is not validated raises #VC.",
    // VMRUN.
    RunnableGuest = "runnable-guest": "VMRUN runs no guest whose launch is not finished.",
    AsidKind = "asid-kind": "VMRUN takes an ASID only for the kind of guest that its range is for.",
    VmcbOwned = "vmcb-owned": "VMRUN takes a VMCB only from a page of the hypervisor's.",
    VmsaOwner = "vmsa-owner": "VMRUN takes a VMSA only from a page of the guest that it runs.",
    VmsaMarked = "vmsa-marked": "VMRUN takes a VMSA of an SNP guest only from a page that is marked as one.",
    VmsaBusy = "vmsa-busy": "A VMSA runs on one processor at a time.",
    VmsaFeatures = "vmsa-features": "VMRUN refuses features of a VMSA that the processor has not.",
    InUse = "in-use": "VMCB and VMSA are in use from VMRUN to #VMEXIT.",
    LbrVirtualization = "lbr-virtualization": "VMRUN of an SEV-ES guest needs LBR virtualization.",
    InjectedSoftware = "injected-software": "VMRUN injects no software event into an SEV-ES guest.",
    SaveAreaNamed = "save-area-named": "VMRUN needs a host save area, which is not at address 0.",
    SaveAreaOwned = "save-area-owned": "The host save area is a page of the hypervisor's.",
    // What a guest with encrypted registers exits with.
    VcForExits = "vc-for-exits": "What an SEV-ES guest would exit with raises #VC, unless the exit is automatic.",
    VcForDevices = "vc-for-devices": "A nested page fault on a reserved bit is the SEV-ES guest's: #VC.",
    RipBehind = "rip-behind": "VMGEXIT, HLT and PAUSE exit behind the instruction.",
    WriteTraps = "write-traps": "Control registers of an SEV-ES guest are told after they were written.",
    HiddenRegisters = "hidden-registers": "#VMEXIT leaves nothing of an SEV-ES guest's registers to the host.",
    GhcbRegister = "ghcb-register": "MSR GHCB of the guest is in the VMCB after #VMEXIT.",
    StatusRegister = "status-register": "RDMSR of SEV_STATUS is answered by the processor whatever the hypervisor intercepts.",
    SnpIntercepts = "snp-intercepts": "CPUID and ports of an SNP guest are taken for intercepted.",
    EncryptedFaults = "encrypted-faults": "A nested page fault says whether the access was private.",
    DecodeBytes = "decode-bytes": "#VMEXIT shows no instruction bytes of an SEV-ES guest.",
    // The secure processor's ASIDs.
    DirtyAsid = "dirty-asid": "An ASID that was a guest's is given to nobody before a flush (DFFLUSH_REQUIRED).",
    WriteBack = "write-back": "A flush takes WBINVD of all processors before (WBINVD_REQUIRED).",
    AsidOwned = "asid-owned": "An ASID has one guest (ASID_OWNED).",
    AsidRange = "asid-range": "ACTIVATE minds the ranges of ASIDs (INVALID_ASID).",
    AsidPages = "asid-pages": "SNP_ACTIVATE takes no ASID that pages belong to (INVALID_CONFIG).",
    OneActivation = "one-activation": "A guest has one ASID at a time (ACTIVE).",
    ActiveGuest = "active-guest": "Memory of a guest is reached with its ASID active only (INACTIVE).",
    DecommissionIdle = "decommission-idle": "DECOMMISSION forgets no guest that has an ASID (ACTIVE).",
    // Launch.
    FirmwarePages = "firmware-pages": "With SNP the firmware writes pages of state Firmware only (INVALID_PAGE_STATE).",
    LaunchOrder = "launch-order": "Commands of a launch come in its order (INVALID_GUEST_STATE).",
    KeySharing = "key-sharing": "Guests share a key only if both policies allow it (POLICY_FAILURE).",
    FirmwareVersion = "firmware-version": "A policy may demand newer firmware than there is (POLICY_FAILURE).",
    SnpPolicy = "snp-policy": "A policy that the host cannot grant launches nothing (POLICY_FAILURE).",
    DebugPolicy = "debug-policy": "A guest is debugged only if its policy allows it (POLICY_FAILURE).",
    MeasuredData = "measured-data": "The measurement covers all that was launched.",
    PreGuest = "pre-guest": "SNP_LAUNCH_UPDATE takes pages of state Pre-Guest of its guest only (INVALID_PAGE_STATE).",
    LaunchedValidated = "launched-validated": "Pages of a launch are validated and mutable.",
    CpuidPage = "cpuid-page": "The CPUID page promises nothing that the processor has not (INVALID_PARAM).",
    IdBlock = "id-block": "A launch is refused that is not the one its owner has signed.",
    SecretMac = "secret-mac": "A secret is taken only from whom the launch was measured for (BAD_MEASUREMENT).",
    SessionPolicy = "session-policy": "A session is good for the policy that it was made for (BAD_MEASUREMENT).",
    SendPolicy = "send-policy": "A guest leaves the platform only if its policy allows it (POLICY_FAILURE).",
    SendTarget = "send-target": "A guest goes only to platforms that prove to be one (INVALID_CERTIFICATE).",
    PacketMac = "packet-mac": "Memory of a guest is taken only as it was sent (BAD_MEASUREMENT).",
    // Messages and the platform of SNP.
    MessageOrder = "message-order": "A guest's message is taken once and in order (AEAD_OFLOW).",
    MessageVmpl = "message-vmpl": "A VMPL gets no report and no key of one above it.",
    ReportSignature = "report-signature": "Reports are signed by the chip.",
    ReclaimState = "reclaim-state": "SNP_PAGE_RECLAIM gives back no page that the firmware needs (INVALID_PAGE_STATE).",
    RmpProtected = "rmp-protected": "The RMP's own pages are the firmware's.",
    InitSetup = "init-setup": "SNP_INIT minds how processors and IOMMU are set up.",
    ShutdownIdle = "shutdown-idle": "SNP_SHUTDOWN minds guests and dirty ASIDs (DFFLUSH_REQUIRED).",
    TcbCommitted = "tcb-committed": "SNP_CONFIG reports no newer firmware than is committed (INVALID_PARAM).",
    // Intel's come last: instructions of VMX.
    FixedBits = "fixed-bits": "VMX operation lets go of no bit of CR0 and CR4 that it needs.",
    VmcsNotVmxonRegion = "vmcs-not-vmxon-region": "The VMXON region is no VMCS (VMfail 3 and 10).",
    VmcsRevision = "vmcs-revision": "VMPTRLD takes a VMCS of this processor's revision only (VMfail 11).",
    ReadOnlyFields = "read-only-fields": "VMWRITE changes no field that tells of an exit (VMfail 13).",
    VpidNotZero = "vpid-not-zero": "INVVPID and VM entry know no VPID 0.",
    InitBlocked = "init-blocked": "VMX root operation takes no INIT.",
    // VM entry.
    EntryAfterMovSs = "entry-after-mov-ss": "VM entry is none behind MOV SS (VMfail 26).",
    LaunchState = "launch-state": "VMLAUNCH takes a clear VMCS, VMRESUME a launched one (VMfail 4 and 5).",
    EntryControls = "entry-controls": "VM entry refuses controls that go not together (VMfail 7).",
    InjectedEvents = "injected-events": "VM entry injects no event that there is not (VMfail 7).",
    HostState = "host-state": "VM entry refuses a host state that no exit could load (VMfail 8).",
    GuestState = "guest-state": "VM entry refuses a guest state that no processor could be in (exit 33).",
    // VM exit.
    EventInjectedOnce = "event-injected-once": "An exit takes the event to inject out of the VMCS.",
    EptReserved = "ept-reserved": "A reserved bit in the EPT is a misconfiguration.",
    EptWrites = "ept-writes": "Writes need the right to in the EPT.",
    // The TDX module: memory that the host gives and takes.
    GivenPages = "given-pages": "A TD is given no page that is somebody's (PAGE_METADATA_INCORRECT).",
    BuiltThenRun = "built-then-run": "Pages are added before a TD runs, and augmented after that (OP_STATE_INCORRECT).",
    BlockedFirst = "blocked-first": "No page is removed that is not blocked (GPA_RANGE_NOT_BLOCKED).",
    TlbTracking = "tlb-tracking": "No page is removed that a vCPU may remember (TLB_TRACKING_NOT_DONE).",
    TlbEpochs = "tlb-epochs": "An epoch ends when no vCPU runs in the one before (PREVIOUS_TLB_EPOCH_BUSY).",
    EmptyTables = "empty-tables": "No table of the S-EPT is removed that has entries (EPT_ENTRY_NOT_FREE).",
    HiddenLines = "hidden-lines": "Who comes without a TD's key reads zeros.",
    PoisonedLines = "poisoned-lines": "A TD meets no line that somebody else has written.",
    RemovedContent = "removed-content": "Nothing of a TD's page is left to the host.",
    MeasuredPages = "measured-pages": "MRTD covers where pages are added.",
    MeasuredContent = "measured-content": "MRTD covers what pages are extended with.",
    // Lives of TDs and vCPUs.
    FlushedHkid = "flushed-hkid": "An HKID is free when all caches are flushed (WBCACHE_NOT_COMPLETE).",
    LastPage = "last-page": "The root of a TD is reclaimed last (TD_ASSOCIATED_PAGES_EXIST).",
    OneProcessor = "one-processor": "A vCPU's state is on one processor at a time (VCPU_ASSOCIATED).",
    DeadTd = "dead-td": "A TD that has met spoiled memory never runs again (TD_FATAL).",
    DeadVcpu = "dead-vcpu": "A vCPU that has shut down never runs again (VCPU_STATE_INCORRECT).",
    // A TD that runs.
    BlockedAccess = "blocked-access": "A TD reaches nothing that is blocked.",
    FlushAtEntry = "flush-at-entry": "TDH.VP.ENTER forgets translations of an epoch before.",
    AcceptFirst = "accept-first": "A TD reaches no page that it has not accepted.",
    AcceptOnce = "accept-once": "A page is accepted once (PAGE_ALREADY_ACCEPTED).",
    AcceptSize = "accept-size": "A page is accepted with the size of its entry (PAGE_SIZE_MISMATCH).",
    AcceptClears = "accept-clears": "A page that is accepted reads zero.",
    PendingExit = "pending-exit": "With SEPT_VE_DISABLE an access to a pending page leaves the TD.",
    OneVe = "one-ve": "A #VE before the last one is told is a #DF.",
    SharedFetches = "shared-fetches": "A TD executes nothing that is shared.",
    SuppressedVe = "suppressed-ve": "A shared access is a #VE only where the host does not suppress it.",
    VmcallRegisters = "vmcall-registers": "TDG.VP.VMCALL shows the registers of its mask, and no others.",
    HostRegisters = "host-registers": "A TD leaves none of its registers to the host.",
    FixedControl = "fixed-control": "A TD keeps the bits of CR0 and CR4 that are fixed.",
    TdCpuid = "td-cpuid": "The module answers CPUID, the host's leaves excepted.",
    PostedToTd = "posted-to-td": "The notification of posted interrupts does not leave the TD.",
    ReportedRegisters = "reported-registers": "TDG.MR.REPORT tells MRTD and RTMRs as they are.",
}

impl Rule {
    /// Whose processors it is about.
    #[must_use]
    pub fn vendor(self) -> Vendor {
        if (self as u32) < Rule::FixedBits as u32 { Vendor::Amd } else { Vendor::Intel }
    }

    /// Whether it is about Intel's TDX module.
    #[must_use]
    pub fn is_of_tdx(self) -> bool {
        self as u32 >= Rule::GivenPages as u32
    }

    /// The rule of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Rule> {
        Rule::ALL.iter().copied().find(|rule| rule.name() == name)
    }
}

/// Which rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rules {
    /// The one that does not.
    off: Option<Rule>,
}

impl Rules {
    /// All.
    pub const ALL: Rules = Rules { off: None };

    /// All but this one.
    #[must_use]
    pub const fn without(rule: Rule) -> Rules {
        Rules { off: Some(rule) }
    }

    /// Whether this one holds.
    #[must_use]
    #[inline]
    pub const fn hold(self, rule: Rule) -> bool {
        match self.off {
            None => true,
            Some(off) => off as u32 != rule as u32,
        }
    }
}

impl Default for Rules {
    /// All; in tests of this crate all but the one that [`tests::BROKEN`] names.
    fn default() -> Rules {
        #[cfg(test)]
        return tests::broken().map_or(Rules::ALL, Rules::without);
        #[cfg(not(test))]
        Rules::ALL
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::OnceLock;

    use super::*;

    /// Names the rule that machines in tests lack.
    pub(super) const BROKEN: &str = "PRIVET_BROKEN_RULE";

    pub(super) fn broken() -> Option<Rule> {
        static RULE: OnceLock<Option<Rule>> = OnceLock::new();
        *RULE.get_or_init(|| std::env::var(BROKEN).ok().and_then(|name| Rule::named(&name)))
    }

    #[test]
    fn each_rule_has_a_name_of_its_own() {
        for (index, &rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(Rule::named(rule.name()), Some(rule));
            assert!(!Rules::without(rule).hold(rule) && Rules::ALL.hold(rule));
            assert_eq!(rule as usize, index);
            assert_eq!(rule.vendor() == Vendor::Amd, index <= Rule::TcbCommitted as usize, "{}", rule.name());
        }
    }

    /// Runs all tests of this crate without each rule: one that no test misses is a gap.
    #[test]
    #[ignore = "takes a minute or more: cargo test -p privet-silicon -- --ignored"]
    fn no_rule_goes_unmissed() {
        if broken().is_some() {
            return;
        }
        let tests = std::env::current_exe().expect("this program");
        let passes = |rule: &&Rule| {
            let status = Command::new(&tests)
                .args(["--skip", "random", "--quiet"])
                .env(BROKEN, rule.name())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            status.expect("it starts").success()
        };
        let unmissed: Vec<_> = Rule::ALL.iter().filter(passes).map(|rule| rule.name()).collect();
        assert!(unmissed.is_empty(), "no test misses {unmissed:?}");
    }
}
