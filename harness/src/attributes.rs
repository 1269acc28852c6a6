//! Memory attributes: which pages the VMM wants to be private.

use kvm_bindings::kvm_memory_attributes;
use nix::errno::Errno;

use crate::errno;
use crate::host_action::HostAction;
use crate::outcome::{Outcome, Stop};
use crate::uapi::MEMORY_ATTRIBUTE_PRIVATE;
use crate::units::{Gpa, PageCount};
use crate::vm::Vm;

impl Vm {
    /// `KVM_SET_MEMORY_ATTRIBUTES` with any values; `gpa` and `size` in bytes.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn set_memory_attributes_raw(&self, gpa: u64, size: u64, attributes: u64, flags: u64) -> Result<(), Errno> {
        let came = self
            .kvm()
            .set_memory_attributes(kvm_memory_attributes { address: gpa, size, attributes, flags })
            .map_err(errno::of_kvm);
        self.host_did(HostAction::SetMemoryAttributes { attributes, gpa, bytes: size }, &came);
        came
    }

    /// Makes a range private: the guest's accesses go to the guest_memfd.
    ///
    /// # Errors
    /// `Stop::Fail` with the range and the error number.
    pub fn set_private(&self, gpa: Gpa, pages: PageCount) -> Outcome {
        self.set(gpa, pages, MEMORY_ATTRIBUTE_PRIVATE, "private")
    }

    /// Makes a range shared: the guest's accesses go to the slot's mapping.
    ///
    /// # Errors
    /// `Stop::Fail` with the range and the error number.
    pub fn set_shared(&self, gpa: Gpa, pages: PageCount) -> Outcome {
        self.set(gpa, pages, 0, "shared")
    }

    fn set(&self, gpa: Gpa, pages: PageCount, attributes: u64, name: &str) -> Outcome {
        self.set_memory_attributes_raw(gpa.0, pages.bytes(), attributes, 0).map_err(|errno| {
            Stop::Fail(format!("KVM_SET_MEMORY_ATTRIBUTES({name}) of {} pages at gpa {gpa}: {errno:?}", pages.0))
        })
    }
}
