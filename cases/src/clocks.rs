//! The clocks that a guest asks KVM for (Documentation/virt/kvm/x86/msr.rst).

/// MSR_KVM_WALL_CLOCK_NEW.
pub(crate) const WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW; bit 0 of its value switches it on.
pub(crate) const SYSTEM_TIME: u32 = 0x4b56_4d01;
