//! Whose machine is modelled: the CPU vendor, the vendor's KVM module, and what comes with them.

/// Whose machine is modelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Personality {
    /// An AMD CPU with kvm-amd.
    Amd,
    /// An Intel CPU with kvm-intel.
    Intel,
    /// An AMD CPU without memory encryption, with kvm-amd: what the rig is.
    Plain,
}

impl Personality {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Amd, Self::Intel, Self::Plain];

    /// The name, as in the environment and in verdicts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
            Self::Plain => "plain",
        }
    }

    /// The personality of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|personality| personality.name() == name)
    }

    /// The vendor string of CPUID leaf 0.
    pub(crate) fn cpu_vendor(self) -> &'static [u8; 12] {
        match self {
            Self::Amd | Self::Plain => b"AuthenticAMD",
            Self::Intel => b"GenuineIntel",
        }
    }

    /// The vendor's module, as in `/sys/module`.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::Amd | Self::Plain => "kvm_amd",
            Self::Intel => "kvm_intel",
        }
    }

    /// Guest physical address bits (CPUID 0x80000008): a Milan or Genoa without its reduction, and a
    /// Sapphire Rapids after that for its key ids.
    pub(crate) fn physical_address_bits(self) -> u32 {
        match self {
            Self::Amd | Self::Plain => 48,
            Self::Intel => 46,
        }
    }
}
