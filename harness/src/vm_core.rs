//! What a VM and its vCPUs share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;

use crate::memslot::SlotTable;
use crate::trace::Trace;

/// The VM's descriptor, which is closed when the last of them is gone, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) fd: VmFd,
    /// Bytes of a kvm_run page and what KVM maps after it.
    pub(crate) run_size: u64,
    pub(crate) trace: Arc<Trace>,
    /// The number of the VM in the trace.
    pub(crate) number: u64,
    slots: Mutex<SlotTable>,
}

impl Core {
    pub(crate) fn new(fd: VmFd, trace: &Arc<Trace>) -> Core {
        let (run_size, number) = (fd.run_size() as u64, trace.next_vm());
        Core { fd, run_size, trace: Arc::clone(trace), number, slots: Mutex::default() }
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, SlotTable> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
