//! What differs between the VM types that guests are made of, one file a type: nothing else asks which type it has.
//!
//! A new type is a variant of [`Platform`], a file beside this one, and a field of [`ByType`]. The compiler then
//! names every row that has to say what it expects of the new type.

mod plain;
mod sev;
mod sev_es;
mod snp;
mod upm;

use std::sync::Arc;

use privet_protocol::{AliasBits, Doorbell};

use crate::host::Host;
use crate::launch::Plan;
use crate::mapping::Mapping;
use crate::outcome::Outcome;
use crate::test_range::Backing;
use crate::vm::Vm;
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
}

/// What is to be known of a platform.
struct Facts {
    vm_type: VmType,
    /// How guests leave when they have answered.
    doorbell: Doorbell,
    /// `kvm_arch_has_private_mem`: the attribute PRIVATE can be set.
    has_private_memory: bool,
    /// All that a slot can have behind it.
    backing: Backing,
    /// What page-table entries say of privacy.
    aliases: AliasBits,
    /// How the private pieces of a launch plan get their content; the memory has its slot already.
    fill_private: fn(&Host, &Vm, &Arc<Mapping>, &Plan) -> Outcome,
}

impl Platform {
    /// Every platform, in the order of the numbers of their VM types.
    pub const ALL: [Platform; 5] = [Platform::Plain, Platform::Upm, Platform::Sev, Platform::SevEs, Platform::Snp];

    const fn facts(self) -> &'static Facts {
        match self {
            Platform::Plain => &plain::FACTS,
            Platform::Upm => &upm::FACTS,
            Platform::Sev => &sev::FACTS,
            Platform::SevEs => &sev_es::FACTS,
            Platform::Snp => &snp::FACTS,
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

    /// What a guest's page-table entries say of privacy.
    pub(crate) const fn aliases(self) -> AliasBits {
        self.facts().aliases
    }

    /// How its guests leave when they have answered.
    pub(crate) const fn doorbell(self) -> Doorbell {
        self.facts().doorbell
    }

    /// Gives the private pieces of `plan` their content, which `view` has from the start of the guest's own memory on.
    ///
    /// # Errors
    /// What KVM refuses, and `Stop::Error` where there is no private memory.
    pub(crate) fn fill_private(self, host: &Host, vm: &Vm, view: &Arc<Mapping>, plan: &Plan) -> Outcome {
        (self.facts().fill_private)(host, vm, view, plan)
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
        };
        assert_eq!(Platform::ALL.map(|platform| by_type.of(platform)), types);
    }
}
