//! For which VM types a row is told, as data.

use privet_harness::platform::Platform;

/// A set of VM types, said by what they have in common: a new type falls into the right ones by itself.
#[derive(Clone, Copy)]
pub struct Types(fn(Platform) -> bool);

impl Types {
    /// All.
    pub const ALL: Types = Types(|_| true);
    /// Those whose pages can have the attribute PRIVATE: their private memory is a guest_memfd.
    pub const WITH_PRIVATE_MEMORY: Types = Types(Platform::has_private_memory);
    /// Those of them whose private pages keep their content while they are shared, or without a slot.
    pub const KEEPING_PRIVATE_CONTENT: Types =
        Types(|platform| platform.has_private_memory() && !Types::TDX.contain(platform));
    /// Those whose guests say of each access whether it is private.
    pub const WITH_PRIVATE_ACCESSES: Types = Types(|platform| matches!(platform, Platform::Snp | Platform::Tdx));
    /// Those of which all memory is the host's.
    pub const WITHOUT_PRIVATE_MEMORY: Types = Types(|platform| !platform.has_private_memory());
    /// Those whose memory KVM can read and write, page tables and code included.
    pub const UNENCRYPTED: Types =
        Types(|platform| !Types::SEV_FAMILY.contain(platform) && !Types::TDX.contain(platform));
    /// The others: a bit of the guest's page tables says what is private.
    pub const ENCRYPTED: Types = Types(|platform| !Types::UNENCRYPTED.contain(platform));
    /// Those in which some memory is the guest's own, by whatever means.
    pub const ALL_BUT_PLAIN: Types = Types(|platform| !Types::PLAIN.contain(platform));
    /// Those whose registers the host sees, so that KVM can emulate an instruction for them.
    pub const VISIBLE_REGISTERS: Types =
        Types(|platform| !Types::ES_AND_SNP.contain(platform) && !Types::TDX.contain(platform));
    /// The others: the guest itself asks for what KVM would emulate.
    pub const HIDDEN_REGISTERS: Types = Types(|platform| !Types::VISIBLE_REGISTERS.contain(platform));
    /// Those in which code can run from a slot without a guest_memfd.
    pub const WITH_SHARED_CODE: Types = Types(|platform| !matches!(platform, Platform::Snp | Platform::Tdx));
    /// Those that KVM's own MSRs and EFER are no secrets of, in which each answer to a hypercall is told, and that have
    /// vCPUs without being launched.
    pub const ALL_BUT_TDX: Types = Types(|platform| !Types::TDX.contain(platform));
    /// Those in which KVM either emulates an instruction with all that it needs, or does not try to.
    pub const ALL_BUT_SEV: Types = Types(|platform| !Types::SEV.contain(platform));
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
