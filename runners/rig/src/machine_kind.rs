//! The machines that a rig can be made of, by name.

use std::fmt;
use std::str::FromStr;

use privet_harness::vendor::Vendor;
use serde::{Deserialize, Serialize};

/// What plays the machine on which the rig's kernel runs. None of them is hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// Our own, in this executable.
    Sim,
    /// QEMU, which translates.
    Qemu,
    /// Bochs, which interprets.
    Bochs,
}

impl MachineKind {
    /// All machines.
    pub const ALL: [MachineKind; 3] = [MachineKind::Sim, MachineKind::Qemu, MachineKind::Bochs];

    /// Its name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            MachineKind::Sim => "sim",
            MachineKind::Qemu => "qemu",
            MachineKind::Bochs => "bochs",
        }
    }

    /// The vendors whose processors with virtualization it has, the one that is meant if none is named first.
    pub fn vendors(self) -> &'static [Vendor] {
        match self {
            MachineKind::Sim => &[Vendor::Amd, Vendor::Intel],
            MachineKind::Qemu => &[Vendor::Amd],
            MachineKind::Bochs => &[Vendor::Intel],
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MachineKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        MachineKind::ALL
            .into_iter()
            .find(|machine| machine.name() == name)
            .ok_or_else(|| format!("no machine is named \"{name}\": there are sim, qemu and bochs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_found_by_name() {
        for machine in MachineKind::ALL {
            assert_eq!(machine.to_string().parse(), Ok(machine));
        }
        assert!([Vendor::Amd, Vendor::Intel].iter().all(|vendor| MachineKind::Sim.vendors().contains(vendor)));
        assert!("vmware".parse::<MachineKind>().unwrap_err().contains("sim, qemu and bochs"));
    }
}
