//! Stores that KVM keeps in a ring until user space looks: coalesced MMIO and ports.
//!
//! All vCPUs of a VM share one ring, and each has it mapped after its kvm_run (`virt/kvm/coalesced_mmio.c`,
//! `include/uapi/linux/kvm.h`: `struct kvm_coalesced_mmio_ring`).

use kvm_ioctls::IoEventAddress;

use crate::errno;
use crate::outcome::{Outcome, Stop};
use crate::uapi::Capability;
use crate::units::{Gpa, PAGE_SIZE};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// `first` and `last` are before the stores.
const HEADER: u64 = 8;
/// Bytes of `struct kvm_coalesced_mmio`.
const ENTRY: u64 = 24;
/// `KVM_COALESCED_MMIO_MAX`.
const ENTRIES: u64 = (PAGE_SIZE - HEADER) / ENTRY;

/// A store that did not exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coalesced {
    /// Where: a gpa, or a port.
    pub at: u64,
    /// Bytes, 1 to 8.
    pub len: u32,
    /// Whether `at` is a port.
    pub is_port: bool,
    /// What was stored, zero-extended.
    pub value: u64,
}

/// The ring of a VM, as one of its vCPUs has it mapped.
#[derive(Debug)]
pub struct CoalescedRing<'a> {
    vcpu: &'a Vcpu,
    /// Where it begins in the mapping of kvm_run.
    offset: u64,
}

impl CoalescedRing<'_> {
    /// How many stores it takes: one place stays free, so that full is not empty.
    pub const CAPACITY: u64 = ENTRIES - 1;

    /// Takes all stores out of the ring, the oldest first.
    ///
    /// # Errors
    /// [`Stop::Error`] if it cannot be read, or its indices make no sense.
    pub fn take(&self) -> Outcome<Vec<Coalesced>> {
        let page = self.vcpu.run_page();
        let (mut first, last) = (u64::from(page.u32(self.offset)?), u64::from(page.u32(self.offset + 4)?));
        if first >= ENTRIES || last >= ENTRIES {
            return Err(Stop::Error(format!("the ring of coalesced stores is from {first} to {last} of {ENTRIES}")));
        }
        let mut taken = Vec::new();
        while first != last {
            let entry = self.offset + HEADER + first * ENTRY;
            let len = page.u32(entry + 8)?;
            // KVM writes as many bytes as were stored; the rest is of the entry's last use.
            let value = page.u64(entry + 16)? & (u64::MAX >> (64 - 8 * len.clamp(1, 8)));
            taken.push(Coalesced { at: page.u64(entry)?, len, is_port: page.u32(entry + 12)? != 0, value });
            first = (first + 1) % ENTRIES;
        }
        page.bytes().write(self.offset, &(first as u32).to_le_bytes())?;
        Ok(taken)
    }
}

impl Vm {
    /// `KVM_REGISTER_COALESCED_MMIO`: stores into `len` bytes from `gpa` on go to the ring.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses.
    pub fn coalesce_mmio(&self, gpa: Gpa, len: u32) -> Outcome {
        self.coalesce(IoEventAddress::Mmio(gpa.0), len)
    }

    /// The same for `len` ports from `port` on.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses.
    pub fn coalesce_ports(&self, port: u16, len: u32) -> Outcome {
        self.coalesce(IoEventAddress::Pio(port.into()), len)
    }

    /// `KVM_UNREGISTER_COALESCED_MMIO` of such a zone.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses.
    pub fn stop_coalescing_mmio(&self, gpa: Gpa, len: u32) -> Outcome {
        self.kvm().unregister_coalesced_mmio(IoEventAddress::Mmio(gpa.0), len).map_err(|error| {
            let errno = errno::of_kvm(error);
            Stop::Fail(format!("KVM_UNREGISTER_COALESCED_MMIO of {len:#x} bytes at gpa {gpa}: {errno:?}"))
        })
    }

    fn coalesce(&self, at: IoEventAddress, len: u32) -> Outcome {
        let place = match at {
            IoEventAddress::Mmio(gpa) => format!("gpa {gpa:#x}"),
            IoEventAddress::Pio(port) => format!("port {port:#x}"),
        };
        self.kvm().register_coalesced_mmio(at, len).map_err(|error| {
            Stop::Fail(format!("KVM_REGISTER_COALESCED_MMIO of {len:#x} bytes at {place}: {:?}", errno::of_kvm(error)))
        })
    }

    /// The ring, through a vCPU of this VM.
    ///
    /// # Errors
    /// [`Stop::Error`] if this KVM has none.
    pub fn coalesced_ring<'a>(&self, vcpu: &'a Vcpu) -> Outcome<CoalescedRing<'a>> {
        // What the capability tells is the page of the mapping.
        match self.check_extension(Capability::COALESCED_MMIO) {
            page @ 1.. => Ok(CoalescedRing { vcpu, offset: page as u64 * PAGE_SIZE }),
            _ => Err(Stop::Error("KVM_CAP_COALESCED_MMIO is missing: the row has to say that it needs it".into())),
        }
    }
}
