//! Loads a plan: the one place where a guest's own memory gets its slot and its content.

use std::sync::Arc;

use super::plan::{OWN_BASE, Plan};
use crate::guest_memfd::GuestMemfd;
use crate::host::Host;
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::Outcome;
use crate::sev::Device;
use crate::units::Gpa;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Slot id of a guest's own memory.
pub const OWN_SLOT: u32 = 0;

/// A guest's own memory in its VM.
pub(crate) struct OwnMemory {
    /// The host's view. Of private pieces it holds what was loaded, which the guest does not see, or what encryption has
    /// made of it.
    pub(crate) host: Arc<Mapping>,
    /// Where private pieces are, or all of it, if that is a guest_memfd.
    pub(crate) gmem: Option<Arc<GuestMemfd>>,
}

/// How vCPUs enter the payload whose registers the host does not set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) vcpus: u64,
    /// The first instruction.
    pub(crate) code: u64,
    /// CR3.
    pub(crate) root: Gpa,
}

/// A guest to be launched: how its VM gets memory and vCPUs, and in which order, is its platform's affair.
pub(crate) struct Launch<'a> {
    pub(crate) host: &'a Host,
    /// Without slots and vCPUs so far.
    pub(crate) vm: &'a Vm,
    pub(crate) plan: &'a Plan,
    /// Attributes of a TD.
    pub(crate) td_attributes: u64,
    /// Makes the vCPUs, in the state in which they enter the payload.
    pub(crate) make_vcpus: &'a dyn Fn() -> Outcome<Vec<Vcpu>>,
    /// For those that enter it by themselves: how many there are, where its code begins, and under which page tables.
    pub(crate) entry: Entry,
    /// Whether an SNP guest's requests for certificates lead to userspace.
    pub(crate) certificates_exit: bool,
    /// Whether what would be host memory is a guest_memfd that the host maps.
    pub(crate) in_a_file: bool,
}

/// A guest whose vCPUs can run.
pub(crate) struct Launched {
    pub(crate) own: OwnMemory,
    pub(crate) vcpus: Vec<Vcpu>,
    /// The way to the firmware, which KVM takes for what the guest asks of it later.
    pub(crate) firmware: Option<Device>,
}

impl Launch<'_> {
    /// Host memory with the content of the plan, and the slot that it will be behind.
    ///
    /// # Errors
    /// `Stop::Error` if the host has no memory.
    pub(crate) fn content(&self) -> Outcome<(Arc<Mapping>, SlotSpec)> {
        self.filled(Mapping::anonymous(Plan::length().bytes())?)
    }

    fn filled(&self, view: Mapping) -> Outcome<(Arc<Mapping>, SlotSpec)> {
        for piece in self.plan.pieces() {
            view.write(piece.gpa.0 - OWN_BASE.0, &piece.bytes)?;
        }
        let view = Arc::new(view);
        let slot = SlotSpec::shared(OWN_SLOT, OWN_BASE, Plan::length(), &view);
        Ok((view, slot))
    }

    /// The guest's own memory in its slot, with the content of the plan, where all of it is the host's.
    ///
    /// # Errors
    /// What KVM refuses.
    pub(crate) fn host_memory(&self) -> Outcome<OwnMemory> {
        if !self.in_a_file {
            let (host, slot) = self.content()?;
            self.vm.add_slot(slot)?;
            return Ok(OwnMemory { host, gmem: None });
        }
        let (view, file) = self.vm.mapped_guest_memfd(Plan::length().bytes())?;
        let (host, slot) = self.filled(view)?;
        self.vm.add_slot(slot.with_gmem(&file, 0))?;
        Ok(OwnMemory { host, gmem: Some(file) })
    }

    /// The slot without any private piece, and then the vCPUs.
    ///
    /// # Errors
    /// What KVM refuses.
    pub(crate) fn all_shared(&self) -> Outcome<Launched> {
        Ok(Launched { own: self.host_memory()?, vcpus: (self.make_vcpus)()?, firmware: None })
    }
}
