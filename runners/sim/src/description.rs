//! What a machine is made of.

use std::sync::Arc;

use crate::error::SimError;
use crate::feature::Without;
use crate::profile::{Processors, Profile};

/// A machine before it is switched on.
#[derive(Debug, Clone)]
pub struct Description {
    /// The kernel: the bytes of a bzImage.
    pub kernel: Arc<[u8]>,
    /// What the kernel unpacks as its root file system; may be empty.
    pub initramfs: Arc<[u8]>,
    /// What the kernel is told. The console is `ttyS0`, the port to the host `ttyS1`.
    pub command_line: String,
    /// Processors, 1 to [`Description::MAX_CPUS`].
    pub cpus: usize,
    /// Memory in MiB, [`Description::MEMORY_MIB`]. What the guest never touches costs nothing.
    pub memory_mib: u64,
    /// Which processors they are.
    pub profile: Profile,
    /// What they lack of it.
    pub without: Without,
    /// Decides how the processors' instructions are interleaved.
    pub seed: u64,
}

impl Description {
    /// The most processors that a machine has.
    pub const MAX_CPUS: usize = 8;
    /// How much memory a machine may have.
    pub const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=65_536;

    /// A machine with two processors and 2 GiB of memory.
    #[must_use]
    pub fn new(kernel: Arc<[u8]>, initramfs: Arc<[u8]>, command_line: String) -> Description {
        Description {
            kernel,
            initramfs,
            command_line,
            cpus: 2,
            memory_mib: 2048,
            profile: Profile::default(),
            without: Without::default(),
            seed: 0,
        }
    }

    pub(crate) fn processors(&self) -> Processors {
        Processors { profile: self.profile, without: self.without }
    }

    pub(crate) fn check(&self) -> Result<(), SimError> {
        let (cpus, memory) = (1..=Self::MAX_CPUS, Self::MEMORY_MIB);
        if !cpus.contains(&self.cpus) {
            let what = format!("a machine has 1 to {} processors, not {}", Self::MAX_CPUS, self.cpus);
            return Err(SimError::Description(what));
        }
        if !memory.contains(&self.memory_mib) {
            let what =
                format!("a machine has {} to {} MiB of memory, not {}", memory.start(), memory.end(), self.memory_mib);
            return Err(SimError::Description(what));
        }
        Ok(())
    }
}
