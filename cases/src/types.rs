//! For which VM types a row is told, as data.

use privet_harness::platform::Platform;

/// A set of VM types, said by what they have in common: a new type falls into the right ones by itself. `tdx` does not yet:
/// it is in [`Types::TDX`] alone, and joins the others as its guests learn what their rows are about.
#[derive(Clone, Copy)]
pub struct Types(fn(Platform) -> bool);

impl Types {
    /// All.
    pub const ALL: Types = Types(|platform| !Types::TDX.contain(platform));
    /// Those whose pages can have the attribute PRIVATE: their private memory is a guest_memfd.
    pub const WITH_PRIVATE_MEMORY: Types =
        Types(|platform| Types::ALL.contain(platform) && platform.has_private_memory());
    /// Those of which all memory is the host's.
    pub const WITHOUT_PRIVATE_MEMORY: Types = Types(|platform| !platform.has_private_memory());
    /// Those whose memory KVM can read and write, page tables and code included.
    pub const UNENCRYPTED: Types =
        Types(|platform| Types::ALL.contain(platform) && !Types::SEV_FAMILY.contain(platform));
    /// Those whose registers the host sees, so that KVM can emulate an instruction for them.
    pub const VISIBLE_REGISTERS: Types =
        Types(|platform| Types::ALL.contain(platform) && !Types::ES_AND_SNP.contain(platform));
    /// Those in which code can run from a slot without a guest_memfd.
    pub const ALL_BUT_SNP: Types = Types(|platform| Types::ALL.contain(platform) && !Types::SNP.contain(platform));
    /// Those in which KVM either emulates an instruction with all that it needs, or does not try to.
    pub const ALL_BUT_SEV: Types = Types(|platform| Types::ALL.contain(platform) && !Types::SEV.contain(platform));
    /// `plain` alone.
    pub const PLAIN: Types = Types(|platform| matches!(platform, Platform::Plain));
    /// `upm` alone: where the attribute decides, whatever the guest does.
    pub const UPM: Types = Types(|platform| matches!(platform, Platform::Upm));
    /// `sev` alone: encrypted memory, and registers that the host sees.
    pub const SEV: Types = Types(|platform| matches!(platform, Platform::Sev));
    /// `sev_es` alone: encrypted memory without a guest_memfd, and encrypted registers.
    pub const SEV_ES: Types = Types(|platform| matches!(platform, Platform::SevEs));
    /// `snp` alone.
    pub const SNP: Types = Types(|platform| matches!(platform, Platform::Snp));
    /// `tdx` alone.
    pub const TDX: Types = Types(|platform| matches!(platform, Platform::Tdx));
    /// Those that are launched by the commands of SEV: the guest alone says what is encrypted.
    pub const SEV_AND_ES: Types = Types(|platform| matches!(platform, Platform::Sev | Platform::SevEs));
    /// Those whose registers are encrypted.
    pub const ES_AND_SNP: Types = Types(|platform| matches!(platform, Platform::SevEs | Platform::Snp));
    /// All that AMD's secure processor launches.
    pub const SEV_FAMILY: Types = Types(|platform| matches!(platform, Platform::Sev | Platform::SevEs | Platform::Snp));

    /// Whether this is one of them.
    pub fn contain(self, platform: Platform) -> bool {
        (self.0)(platform)
    }
}
