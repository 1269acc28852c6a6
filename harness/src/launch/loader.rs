//! Loads a plan: the one place where a guest's own memory gets its slot and its content.

use std::sync::Arc;

use super::plan::{OWN_BASE, Plan};
use crate::guest_memfd::GuestMemfd;
use crate::host::Host;
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::Outcome;
use crate::platform::Platform;
use crate::vm::Vm;

/// Slot id of a guest's own memory.
pub const OWN_SLOT: u32 = 0;

/// A guest's own memory in its VM.
pub(crate) struct OwnMemory {
    /// The host's view. Of private pieces it holds what was loaded, which the guest does not see.
    pub(crate) host: Arc<Mapping>,
    /// Where private pieces are; None if there are none.
    pub(crate) gmem: Option<Arc<GuestMemfd>>,
}

/// Gives `vm`, one of `platform` and without vCPUs so far, the memory of `plan`.
///
/// # Errors
/// What KVM refuses, and `Stop::Error` for private pieces where there is no private memory.
pub(crate) fn load(host: &Host, platform: Platform, vm: &Vm, plan: &Plan) -> Outcome<OwnMemory> {
    let length = Plan::length();
    let view = Arc::new(Mapping::anonymous(length.bytes())?);
    for piece in plan.pieces() {
        view.write(piece.gpa.0 - OWN_BASE.0, &piece.bytes)?;
    }
    let slot = SlotSpec::shared(OWN_SLOT, OWN_BASE, length, &view);
    if plan.private().next().is_none() {
        vm.add_slot(slot)?;
        return Ok(OwnMemory { host: view, gmem: None });
    }
    let gmem = vm.create_guest_memfd(length.bytes(), 0)?;
    vm.add_slot(slot.with_gmem(&gmem, 0))?;
    platform.fill_private(host, vm, &view, plan)?;
    Ok(OwnMemory { host: view, gmem: Some(gmem) })
}
