//! For which VM types a row is told, as data.

use privet_harness::platform::Platform;

/// A set of VM types, said by what they have in common: a new type falls into the right ones by itself.
#[derive(Clone, Copy)]
pub struct Types(fn(Platform) -> bool);

impl Types {
    /// All.
    pub const ALL: Types = Types(|_| true);
    /// Those whose pages can have the attribute PRIVATE.
    pub const WITH_PRIVATE_MEMORY: Types = Types(Platform::has_private_memory);
    /// `plain` alone.
    pub const PLAIN: Types = Types(|platform| matches!(platform, Platform::Plain));
    /// `upm` alone: where the attribute decides, whatever the guest does.
    pub const UPM: Types = Types(|platform| matches!(platform, Platform::Upm));

    /// Whether this is one of them.
    pub fn contain(self, platform: Platform) -> bool {
        (self.0)(platform)
    }
}
