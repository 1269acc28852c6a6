//! Time in the guest: the time stamp counter counts nanoseconds of the host, unless it is scaled.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use crate::memory::Memory;

/// `KVM_GET_TSC_KHZ` of a fresh vCPU.
pub(crate) const TSC_KHZ: u32 = 1_000_000;

/// Nanoseconds since the model was first asked.
pub(crate) fn nanoseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Writes the wall clock at boot where the guest asks for it: version, seconds, nanoseconds. The version is odd
/// while the rest is written (kernel: `kvm_write_wall_clock`).
///
/// # Errors
/// EFAULT.
pub(crate) fn write_wall_clock(memory: &Memory, gpa: u64) -> Result<(), Errno> {
    if gpa == 0 {
        return Ok(());
    }
    let version: u32 = memory.read_guest(gpa)?;
    let version = version | 1;
    memory.write_guest(gpa, &version)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let boot = now.saturating_sub(Duration::from_nanos(nanoseconds()));
    memory.write_guest(gpa, &[version, boot.as_secs() as u32, boot.subsec_nanos()])?;
    memory.write_guest(gpa, &version.wrapping_add(1))
}

/// Writes the time since boot where the guest asks for it: `struct pvclock_vcpu_time_info` with its version, the time
/// stamp counter and nanoseconds. KVM does so at the next entry, and again and again; the model once.
///
/// # Errors
/// EFAULT.
pub(crate) fn write_system_time(memory: &Memory, gpa: u64, tsc: u64) -> Result<(), Errno> {
    let version: u32 = memory.read_guest(gpa)?;
    let version = version | 1;
    memory.write_guest(gpa, &version)?;
    memory.write_guest(gpa + 8, &[tsc, nanoseconds()])?;
    memory.write_guest(gpa, &version.wrapping_add(1))
}

/// The time stamp counter of one vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tsc {
    khz: u32,
    /// What is added to the scaled time.
    offset: u64,
}

impl Tsc {
    /// A counter at 0 of this frequency.
    pub(crate) fn new(khz: u32) -> Self {
        let mut tsc = Self { khz, offset: 0 };
        tsc.set(0);
        tsc
    }

    /// Counts per millisecond.
    pub(crate) fn khz(&self) -> u32 {
        self.khz
    }

    /// Goes on from here with another frequency.
    pub(crate) fn set_khz(&mut self, khz: u32) {
        let now = self.get();
        self.khz = khz;
        self.set(now);
    }

    fn scaled(&self) -> u64 {
        (u128::from(nanoseconds()) * u128::from(self.khz) / u128::from(TSC_KHZ)) as u64
    }

    /// The counter.
    pub(crate) fn get(&self) -> u64 {
        self.scaled().wrapping_add(self.offset)
    }

    /// Sets the counter.
    pub(crate) fn set(&mut self, value: u64) {
        self.offset = value.wrapping_sub(self.scaled());
    }
}
