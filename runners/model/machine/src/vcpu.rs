//! A vCPU: its CPU, the page it shares with the program, and everything that KVM keeps beside.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use privet_cpu::{Cpu, Kick};

use crate::capability::{MAX_VCPU_IDS, MAX_VCPUS, QUIRK_STUFF_FEATURE_MSRS};
use crate::cpuid::GuestCpuid;
use crate::descriptors::{self, Object, new_memfd};
use crate::dispatch::IoctlResult;
use crate::fault::MmioCache;
use crate::host_memory::{FileView, PAGE_SIZE};
use crate::lapic::Lapic;
use crate::msr::Msrs;
use crate::run_page::RunPage;
use crate::stats::Stats;
use crate::time::{self, Tsc};
use crate::vm::{Irqchip, Vm};

/// `KVM_GET_VCPU_MMAP_SIZE`: `struct kvm_run`, the page of port data, and the ring of coalesced MMIO.
pub(crate) const RUN_BYTES: u64 = 3 * PAGE_SIZE;

/// `KVM_MP_STATE_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum MpState {
    Runnable = 0,
    Uninitialized = 1,
    InitReceived = 2,
    Halted = 3,
    SipiReceived = 4,
}

/// What user space has to answer before the guest goes on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Pending {
    /// Nothing.
    #[default]
    None,
    /// A port read of so many bytes.
    PortIn(usize),
    /// A load from MMIO of so many bytes.
    MmioRead(usize),
    /// A hypercall; RAX is in `kvm_run`.
    Hypercall,
}

/// What belongs to whoever holds the vCPU (kernel: under vcpu->mutex).
pub(crate) struct State {
    pub(crate) cpu: Cpu,
    pub(crate) cpuid: GuestCpuid,
    pub(crate) msrs: Msrs,
    pub(crate) mmio_cache: Option<MmioCache>,
    pub(crate) pending: Pending,
    pub(crate) tsc: Tsc,
    /// `KVM_SET_SIGNAL_MASK`.
    pub(crate) signal_mask: Option<u64>,
    /// The guest has run, so CPUID may no longer change.
    pub(crate) has_run: bool,
    /// An interrupt that user space has queued with `KVM_INTERRUPT`.
    pub(crate) user_interrupt: Option<u8>,
    /// NMIs that are waiting, at most two.
    pub(crate) nmis: u8,
    /// `KVM_GUESTDBG_BLOCKIRQ`: no interrupts while user space single-steps.
    pub(crate) interrupts_blocked: bool,
    /// A triple fault that user space asked for.
    pub(crate) triple_fault: bool,
    /// What the last MMIO load read, for a defect.
    pub(crate) last_mmio: u64,
}

/// What other vCPUs may touch while this one runs.
pub(crate) struct Mailbox {
    pub(crate) mp_state: MpState,
    pub(crate) lapic: Option<Lapic>,
}

/// A vCPU.
pub(crate) struct Vcpu {
    pub(crate) id: u32,
    pub(crate) is_bsp: bool,
    pub(crate) kick: Arc<Kick>,
    pub(crate) stats: Stats,
    pub(crate) run: RunPage,
    state: Mutex<State>,
    mailbox: Mutex<Mailbox>,
    woken: Condvar,
}

/// A vCPU and the VM that its descriptor keeps alive.
pub(crate) struct VcpuFile {
    pub(crate) vm: Arc<Vm>,
    pub(crate) vcpu: Arc<Vcpu>,
}

impl Vcpu {
    /// The vCPU's own state; waits while another thread runs it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other vCPUs touch.
    pub(crate) fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something came for the vCPU: it looks at its mailbox.
    pub(crate) fn wake(&self) {
        self.kick.raise_event();
        self.woken.notify_all();
    }

    /// Waits for [`wake`](Self::wake), for a tick at most.
    pub(crate) fn wait<'a>(&self, mailbox: MutexGuard<'a, Mailbox>) -> MutexGuard<'a, Mailbox> {
        let tick = std::time::Duration::from_millis(1);
        self.woken.wait_timeout(mailbox, tick).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// `KVM_CREATE_VCPU`.
///
/// # Errors
/// As the ioctl.
pub(crate) fn create(vm: &Arc<Vm>, id: u64) -> IoctlResult {
    let mut config = vm.config();
    if id >= MAX_VCPU_IDS || config.vcpus.len() >= MAX_VCPUS as usize {
        return Err(Errno::EINVAL);
    }
    if config.vcpus.iter().any(|vcpu| u64::from(vcpu.id) == id) {
        return Err(Errno::EEXIST);
    }
    if config.max_vcpu_ids.is_some_and(|max| max != 0 && id >= max) {
        return Err(Errno::EINVAL);
    }
    let fd = new_memfd(c"anon_inode:kvm-vcpu", RUN_BYTES, libc::MFD_CLOEXEC)?;
    let view = FileView::new(fd, 0, RUN_BYTES).inspect_err(|_| descriptors::close_unregistered(fd))?;
    let id = id as u32;
    let is_bsp = u64::from(id) == config.bsp_id;
    let cpuid = GuestCpuid::default();
    let mut cpu = Cpu::new(cpuid.config());
    let lapic = (config.irqchip != Irqchip::None).then(|| Lapic::new(id));
    if !is_bsp {
        cpu.state.apic_base &= !(1 << 8);
    }
    let kick = Arc::clone(cpu.kick());
    vm.memory.add_vcpu(Arc::clone(&kick));
    let waits_for_init = lapic.is_some() && !is_bsp;
    let vcpu = Arc::new(Vcpu {
        id,
        is_bsp,
        kick,
        stats: Stats::of_vcpu(std::process::id() as i32, id),
        run: RunPage::new(view),
        state: Mutex::new(State {
            cpu,
            cpuid,
            msrs: Msrs::new(vm.has_quirk(QUIRK_STUFF_FEATURE_MSRS)),
            mmio_cache: None,
            pending: Pending::None,
            tsc: Tsc::new(config.tsc_khz.unwrap_or(time::TSC_KHZ)),
            signal_mask: None,
            has_run: false,
            user_interrupt: None,
            nmis: 0,
            interrupts_blocked: false,
            triple_fault: false,
            last_mmio: 0,
        }),
        mailbox: Mutex::new(Mailbox {
            mp_state: if waits_for_init { MpState::Uninitialized } else { MpState::Runnable },
            lapic,
        }),
        woken: Condvar::new(),
    });
    config.vcpus.push(Arc::clone(&vcpu));
    drop(config);
    descriptors::register(fd, Object::Vcpu(Arc::new(VcpuFile { vm: Arc::clone(vm), vcpu })));
    Ok(fd)
}
