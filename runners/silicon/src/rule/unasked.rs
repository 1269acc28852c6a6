//! AMD's rules that no row of a guest on KVM misses, each with the reason: somebody has looked. The silicon's own tests
//! miss them all.

use super::Rule;

/// What KVM never does, or what no row could bring about.
const PLACES: &str =
    "KVM maps a private page only where its entry says, in 4 KiB, to its owner, and when the firmware is done with it";
const DIRECT_MAP: &str = "Linux has split its own mapping of what it gives away";
const VMPL: &str = "KVM runs all vCPUs at VMPL 0";
const FLUSHES: &str = "KVM flushes itself wherever it has an entry changed";
const UPDATES: &str = "Linux has RMPUPDATE change only what may be changed";
const SMALL: &str = "guest_memfd has pages of 4 KiB, so that nothing is smashed";
const AT_THIS_INSTRUCTION: &str = "another vCPU would have to be in the guest at this very instruction";
const STATE: &str = "KVM refuses before it asks";
const ASIDS: &str = "KVM keeps account of ASIDs itself, and asks the firmware for nothing that it would refuse";
const FIRMWARES: &str = "KVM makes a page what the firmware wants before it hands it over";
const SMT: &str =
    "KVM refuses unknown bits itself, and the sim has no SMT, without which snp.launch.start.snp_smt asks for nothing";
const CHIP: &str = "who checks a signature needs AMD's certificate of the chip";
const PLATFORM: &str = "Linux sets the platform up as the firmware wants it, and gives back nothing too early";
const INTERCEPTED: &str = "KVM intercepts them anyway";
const UNREAD: &str =
    "KVM tells nobody of an encrypted guest's control registers, and looks at none of its instructions";
const SOUND: &str = "what KVM gives VMRUN is sound";

impl Rule {
    /// Why no row can miss it, if somebody has judged that.
    #[must_use]
    pub const fn why_no_row(self) -> Option<&'static str> {
        Some(match self {
            Rule::AccessOwner | Rule::AccessPlace | Rule::AccessMutable | Rule::AccessSize => PLACES,
            Rule::LargeWrites => DIRECT_MAP,
            Rule::AccessVmpl | Rule::ValidateVmpl | Rule::AdjustWithin | Rule::AdjustVmsa => VMPL,
            Rule::StaleTranslations => FLUSHES,
            Rule::UpdateImmutable | Rule::UpdateInUse | Rule::UpdateOverlap | Rule::UpdateInput => UPDATES,
            Rule::SmashPlaces | Rule::SmashImmutable | Rule::SmashInUse => SMALL,
            Rule::AdjustInUse | Rule::VmsaBusy | Rule::InUse => AT_THIS_INSTRUCTION,
            Rule::RunnableGuest => STATE,
            Rule::AsidKind
            | Rule::VmcbOwned
            | Rule::VmsaOwner
            | Rule::LbrVirtualization
            | Rule::InjectedSoftware
            | Rule::SaveAreaNamed
            | Rule::SaveAreaOwned => SOUND,
            Rule::DirtyAsid
            | Rule::WriteBack
            | Rule::AsidOwned
            | Rule::AsidRange
            | Rule::AsidPages
            | Rule::OneActivation
            | Rule::ActiveGuest
            | Rule::DecommissionIdle => ASIDS,
            Rule::FirmwarePages | Rule::PreGuest => FIRMWARES,
            Rule::SnpPolicy => SMT,
            Rule::ReportSignature => CHIP,
            Rule::ReclaimState | Rule::RmpProtected | Rule::InitSetup | Rule::ShutdownIdle | Rule::TcbCommitted => {
                PLATFORM
            }
            Rule::SnpIntercepts => INTERCEPTED,
            Rule::WriteTraps | Rule::DecodeBytes => UNREAD,
            _ => return None,
        })
    }
}
