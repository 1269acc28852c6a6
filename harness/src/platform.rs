//! What differs between the VM types that guests are made of, one file a type: nothing else asks which type it has.
//!
//! A new type is a variant of [`Platform`], a file beside this one, and a field of [`ByType`]. The compiler then
//! names every row that has to say what it expects of the new type.

mod plain;
mod upm;

use crate::test_range::Backing;
use crate::vm_type::VmType;

/// A VM type that rows have guests of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Platform {
    /// [`VmType::Plain`].
    Plain,
    /// [`VmType::Upm`].
    Upm,
}

/// What is to be known of a platform.
struct Facts {
    vm_type: VmType,
    /// `kvm_arch_has_private_mem`: the attribute PRIVATE can be set.
    has_private_memory: bool,
    /// All that a slot can have behind it.
    backing: Backing,
}

impl Platform {
    /// Every platform, in the order of the numbers of their VM types.
    pub const ALL: [Platform; 2] = [Platform::Plain, Platform::Upm];

    const fn facts(self) -> &'static Facts {
        match self {
            Platform::Plain => &plain::FACTS,
            Platform::Upm => &upm::FACTS,
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
}

impl<T> ByType<T> {
    /// That of `platform`.
    pub fn of(self, platform: Platform) -> T {
        match platform {
            Platform::Plain => self.plain,
            Platform::Upm => self.upm,
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
        assert_eq!(Platform::ALL.map(|platform| ByType { plain: VmType::Plain, upm: VmType::Upm }.of(platform)), types);
    }
}
