//! A VM: its type, its memory, its vCPUs, and what was switched on for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::capability;
use crate::ioeventfd::IoEventFds;
use crate::memory::Memory;
use crate::options::Options;
use crate::stats::Stats;
use crate::vcpu::Vcpu;
use crate::vm_type::VmType;

/// Who emulates interrupt controllers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Irqchip {
    /// User space.
    #[default]
    None,
    /// Local APICs in the kernel, the rest in user space.
    Split,
    /// All in the kernel.
    Full,
}

/// What can only be set before there are vCPUs, and the vCPUs (kernel: under kvm->lock).
#[derive(Default)]
pub(crate) struct Config {
    pub(crate) irqchip: Irqchip,
    pub(crate) has_pit: bool,
    pub(crate) tsc_khz: Option<u32>,
    pub(crate) bsp_id: u64,
    pub(crate) max_vcpu_ids: Option<u64>,
    pub(crate) vcpus: Vec<Arc<Vcpu>>,
}

/// A VM.
pub(crate) struct Vm {
    pub(crate) kind: VmType,
    pub(crate) options: &'static Options,
    pub(crate) memory: Memory,
    pub(crate) stats: Arc<Stats>,
    pub(crate) ioeventfds: IoEventFds,
    creator: u32,
    config: Mutex<Config>,
    /// Hypercalls that exit: bit n for hypercall n.
    pub(crate) exit_hypercalls: AtomicU64,
    pub(crate) disabled_quirks: AtomicU64,
    pub(crate) manual_dirty_log: AtomicU64,
    pub(crate) exception_payload: AtomicBool,
    pub(crate) triple_fault_event: AtomicBool,
    pub(crate) exit_on_emulation_failure: AtomicBool,
    pub(crate) hides_platform_info: AtomicBool,
}

impl Vm {
    /// A VM of this process.
    pub(crate) fn new(kind: VmType, options: &'static Options) -> Self {
        let stats = Arc::new(Stats::of_vm(std::process::id() as i32));
        Self {
            kind,
            options,
            memory: Memory::new(kind, options, Arc::clone(&stats)),
            stats,
            ioeventfds: IoEventFds::default(),
            creator: std::process::id(),
            config: Mutex::default(),
            exit_hypercalls: AtomicU64::new(0),
            disabled_quirks: AtomicU64::new(0),
            manual_dirty_log: AtomicU64::new(0),
            exception_payload: AtomicBool::new(false),
            triple_fault_event: AtomicBool::new(false),
            exit_on_emulation_failure: AtomicBool::new(false),
            hides_platform_info: AtomicBool::new(false),
        }
    }

    /// Whether another process made it: a child after fork has the descriptors, but not the memory.
    pub(crate) fn is_foreign(&self) -> bool {
        self.creator != std::process::id()
    }

    /// What is set before there are vCPUs.
    pub(crate) fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flags of `KVM_CREATE_GUEST_MEMFD`.
    pub(crate) fn guest_memfd_flags(&self) -> u64 {
        let kind =
            if self.options.has(crate::defect::Defect::InitSharedAccepted) { VmType::Default } else { self.kind };
        capability::guest_memfd_flags(kind)
    }

    /// Whether a quirk is on.
    pub(crate) fn has_quirk(&self, quirk: u64) -> bool {
        self.disabled_quirks.load(Ordering::SeqCst) & quirk == 0
    }
}
