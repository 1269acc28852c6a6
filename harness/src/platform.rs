//! What differs between the VM types that guests are made of, one file a type: nothing else asks which type it has.
//!
//! A new type is a variant of [`Platform`], a file beside this one, and a field of [`ByType`]. The compiler then
//! names every row that has to say what it expects of the new type.

mod plain;
mod sev;
mod sev_es;
mod snp;
mod tdx;
mod upm;

use privet_protocol::{AliasBits, Conversion, Doorbell};

use crate::host::Host;
use crate::launch::{Launch, Launched, Part};
use crate::outcome::Outcome;
use crate::test_range::Backing;
use crate::vm_type::VmType;

/// A VM type that rows have guests of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Platform {
    /// [`VmType::Plain`].
    Plain,
    /// [`VmType::Upm`].
    Upm,
    /// [`VmType::Sev`].
    Sev,
    /// [`VmType::SevEs`].
    SevEs,
    /// [`VmType::Snp`].
    Snp,
    /// [`VmType::Tdx`].
    Tdx,
}

/// What is to be known of a platform.
struct Facts {
    vm_type: VmType,
    /// How guests leave when they have answered; of the vCPU with this index.
    doorbell: fn(usize) -> Doorbell,
    /// How guests ask for conversions.
    conversion: Conversion,
    /// `kvm_arch_has_private_mem`: the attribute PRIVATE can be set.
    has_private_memory: bool,
    /// The firmware can give its guests secrets and a table of CPUID.
    has_firmware_pages: bool,
    /// Its vCPUs begin at the reset vector, in a page that the guest has beside the rest of its own memory.
    begins_at_the_reset_vector: bool,
    /// All that a slot can have behind it.
    backing: Backing,
    /// What page-table entries say of privacy, on this host.
    aliases: fn(&Host) -> Outcome<AliasBits>,
    /// The parts of a guest's own memory that cannot but be private.
    private_parts: &'static [Part],
    /// From an empty VM to one whose vCPUs can run.
    launch: fn(&Launch<'_>) -> Outcome<Launched>,
}

impl Platform {
    /// Every platform, in the order of the numbers of their VM types.
    pub const ALL: [Platform; 6] =
        [Platform::Plain, Platform::Upm, Platform::Sev, Platform::SevEs, Platform::Snp, Platform::Tdx];

    const fn facts(self) -> &'static Facts {
        match self {
            Platform::Plain => &plain::FACTS,
            Platform::Upm => &upm::FACTS,
            Platform::Sev => &sev::FACTS,
            Platform::SevEs => &sev_es::FACTS,
            Platform::Snp => &snp::FACTS,
            Platform::Tdx => &tdx::FACTS,
        }
    }

    /// The name and the number of its VMs.
    pub const fn vm_type(self) -> VmType {
        self.facts().vm_type
    }

    /// Whether the attribute PRIVATE can be set in its VMs.
    pub const fn has_private_memory(self) -> bool {
        self.facts().has_private_memory
    }

    /// Whether the firmware can give its guests secrets and a table of CPUID.
    pub(crate) const fn has_firmware_pages(self) -> bool {
        self.facts().has_firmware_pages
    }

    /// Whether its vCPUs begin at the reset vector, in a page of their own.
    pub(crate) const fn begins_at_the_reset_vector(self) -> bool {
        self.facts().begins_at_the_reset_vector
    }

    /// What a guest's page-table entries say of privacy.
    ///
    /// # Errors
    /// `Stop::Fail` if the host does not tell.
    pub(crate) fn aliases(self, host: &Host) -> Outcome<AliasBits> {
        (self.facts().aliases)(host)
    }

    /// The parts of a guest's own memory that cannot but be private.
    pub(crate) const fn private_parts(self) -> &'static [Part] {
        self.facts().private_parts
    }

    /// How vCPU `index` of its guests leaves when it has answered.
    pub(crate) fn doorbell(self, index: usize) -> Doorbell {
        (self.facts().doorbell)(index)
    }

    /// How its guests ask for conversions.
    pub const fn conversion(self) -> Conversion {
        self.facts().conversion
    }

    /// Gives the VM its memory and its vCPUs.
    ///
    /// # Errors
    /// What KVM refuses, and `Stop::Error` for private pieces where there is no private memory.
    pub(crate) fn launch(self, launch: &Launch<'_>) -> Outcome<Launched> {
        (self.facts().launch)(launch)
    }

    /// All that a slot of its VMs can have behind it.
    pub const fn backing(self) -> Backing {
        self.facts().backing
    }
}

/// Something that every platform has its own of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the platforms'")]
pub struct ByType<T> {
    pub plain: T,
    pub upm: T,
    pub sev: T,
    pub sev_es: T,
    pub snp: T,
    pub tdx: T,
}

impl<T> ByType<T> {
    /// That of `platform`.
    pub fn of(self, platform: Platform) -> T {
        match platform {
            Platform::Plain => self.plain,
            Platform::Upm => self.upm,
            Platform::Sev => self.sev,
            Platform::SevEs => self.sev_es,
            Platform::Snp => self.snp,
            Platform::Tdx => self.tdx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_in_the_order_of_their_types() {
        let types = Platform::ALL.map(Platform::vm_type);
        assert!(types.is_sorted());
        let by_type = ByType {
            plain: VmType::Plain,
            upm: VmType::Upm,
            sev: VmType::Sev,
            sev_es: VmType::SevEs,
            snp: VmType::Snp,
            tdx: VmType::Tdx,
        };
        assert_eq!(Platform::ALL.map(|platform| by_type.of(platform)), types);
    }
}
