//! A vCPU and the thread that runs it.
//!
//! The caller commands, the thread is in KVM_RUN: so a limit can always be kept, also when a guest or the
//! kernel never comes back.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use privet_protocol::Op;

use crate::errno;
use crate::exit::Exit;
use crate::outcome::{Outcome, Stop};
use crate::raw;
use crate::run_page::{RunPage, SENTINEL};
use crate::stats::Stats;
use crate::trace::VcpuName;
use crate::units::{Gpa, PageCount};
use crate::vm_core::Core;
use crate::watchdog::{GRACE, REPEAT, Thread};

/// How often a thread looks whether something has changed before it sleeps.
const SPINS: u32 = 100;

/// A vCPU. Commands can come from any thread.
#[derive(Debug)]
pub struct Vcpu {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

/// What the vCPU and its thread share; a thread that is left behind keeps all of it alive.
#[derive(Debug)]
struct Shared {
    id: u64,
    fd: VcpuFd,
    page: RunPage,
    core: Arc<Core>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    thread: Option<Thread>,
    /// What the guest is about, for the trace.
    operation: Option<Op>,
    /// The thread did not leave KVM_RUN when it was told to: nobody waits for it a second time.
    left_behind: bool,
    /// How many sleep until something changes, and have to be woken.
    sleepers: u32,
}

#[derive(Debug)]
enum Phase {
    /// Outside of KVM_RUN, nothing to report.
    Idle,
    /// In KVM_RUN, or about to be.
    Running,
    /// Outside of KVM_RUN; the exit has not been waited for yet.
    Done(Outcome<Exit>),
    /// The thread is to end.
    Ending,
}

/// What `KVM_PRE_FAULT_MEMORY` did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreFault {
    /// What the ioctl returned.
    pub result: Result<(), Errno>,
    /// Where the rest starts.
    pub gpa: Gpa,
    /// The bytes of the rest, 0 if all is done.
    pub size: u64,
    /// The [`Exit::MemoryFault`] that KVM left in kvm_run, if it did: it does for private memory that has
    /// nothing behind it.
    pub memory_fault: Option<Exit>,
}

impl Vcpu {
    pub(crate) fn create(core: Arc<Core>, id: u64) -> Outcome<Vcpu> {
        let fd = core
            .fd
            .create_vcpu(id)
            .map_err(|error| Stop::Fail(format!("KVM_CREATE_VCPU {id}: {:?}", errno::of_kvm(error))))?;
        let page = raw::map_run_page(&fd, core.run_size)
            .map_err(|errno| Stop::Fail(format!("mapping kvm_run of vCPU {id}: {errno:?}")))?;
        let shared = Arc::new(Shared {
            id,
            fd,
            page: RunPage::new(page)?,
            core,
            state: Mutex::new(State {
                phase: Phase::Idle,
                thread: None,
                operation: None,
                left_behind: false,
                sleepers: 0,
            }),
            changed: Condvar::new(),
        });
        let thread = Mutex::new(Some(shared.spawn()?));
        Ok(Vcpu { shared, thread })
    }

    /// The number it was made with.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// `KVM_SET_MP_STATE`: runs without waiting for INIT and SIPI, where KVM has its APIC.
    ///
    /// # Errors
    /// `Stop::Fail` with the error number.
    pub fn set_runnable(&self) -> Outcome {
        let result = self.kvm()?.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(errno::of_kvm);
        result.map_err(|errno| Stop::Fail(format!("KVM_SET_MP_STATE of vCPU {}: {errno:?}", self.id())))
    }

    /// Hands the vCPU to a fresh thread: KVM_RUN comes from there from now on, on another kernel stack.
    ///
    /// # Errors
    /// `Stop::Error` if the vCPU is in KVM_RUN, or its last exit was not waited for, or there are no threads.
    pub fn change_thread(&self) -> Outcome {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.shared.lock();
        if !matches!(state.phase, Phase::Idle) {
            return Err(Stop::Error(format!("vCPU {} cannot change its thread in the middle of a run", self.id())));
        }
        state.thread = None;
        self.shared.enter(state, Phase::Ending);
        if let Some(old) = thread.take() {
            // A panic over there has nobody to tell, as in `drop`.
            let _ = old.join();
        }
        self.shared.lock().phase = Phase::Idle;
        *thread = Some(self.shared.spawn()?);
        Ok(())
    }

    /// Says what the guest is about from the next run on.
    pub(crate) fn begin_operation(&self, op: Op) {
        self.shared.lock().operation = Some(op);
    }

    /// Lets the thread call KVM_RUN.
    ///
    /// # Errors
    /// `Stop::Error` if it is in there already, or its last exit was not waited for.
    pub fn start(&self) -> Outcome {
        self.begin(false)
    }

    /// Waits for the exit of a run that was started. At the limit the run is ended, within [`GRACE`] more;
    /// a thread that does not come back even then is left behind in the kernel.
    ///
    /// # Errors
    /// `Stop::Timeout` at the limit; `Stop::Error` if nothing was started or the exit makes no sense.
    pub fn wait(&self, limit: Duration) -> Outcome<Exit> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            match std::mem::replace(&mut state.phase, Phase::Idle) {
                Phase::Done(exit) => return exit,
                Phase::Running => state.phase = Phase::Running,
                other => {
                    state.phase = other;
                    return Err(Stop::Error(format!("vCPU {} was not started", self.id())));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.wait_for(state, left, |phase| !matches!(phase, Phase::Running));
        }
        drop(state);
        let place = match self.shared.end_run() {
            false => "and does not leave the kernel".to_owned(),
            true => match self.shared.fd.get_regs() {
                Ok(regs) => format!("at rip {:#x}", regs.rip),
                Err(_) => "at a rip that KVM does not tell".to_owned(),
            },
        };
        Err(Stop::Timeout(format!("vCPU {} was still running after {limit:?}, {place}", self.id())))
    }

    /// [`start`](Self::start) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// As those.
    pub fn run(&self, limit: Duration) -> Outcome<Exit> {
        self.start()?;
        self.wait(limit)
    }

    /// The exit of a run that was started, if it is over.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn poll(&self) -> Outcome<Option<Exit>> {
        let mut state = self.shared.lock();
        match std::mem::replace(&mut state.phase, Phase::Idle) {
            Phase::Done(exit) => exit.map(Some),
            Phase::Running => {
                state.phase = Phase::Running;
                Ok(None)
            }
            other => {
                state.phase = other;
                Err(Stop::Error(format!("vCPU {} was not started", self.id())))
            }
        }
    }

    /// Makes the run under way return [`Exit::Interrupted`]; nothing if there is none.
    ///
    /// # Errors
    /// `Stop::Error` if kvm_run cannot be written.
    pub fn kick(&self) -> Outcome {
        self.shared.kick(&self.shared.lock())
    }

    /// Completes what the last exit left pending (the destination of a load, RAX of a hypercall) without
    /// running the guest: KVM_RUN with `immediate_exit`.
    ///
    /// # Errors
    /// `Stop::Fail` if that does not end in EINTR.
    pub fn complete_pending(&self, limit: Duration) -> Outcome {
        self.begin(true)?;
        match self.wait(limit)? {
            Exit::Interrupted => Ok(()),
            other => Err(Stop::Fail(format!("KVM_RUN with immediate_exit on vCPU {}: {other}", self.id()))),
        }
    }

    /// The kvm_run page.
    pub fn run_page(&self) -> &RunPage {
        &self.shared.page
    }

    /// RAX of the guest after the hypercall that exited.
    ///
    /// # Errors
    /// `Stop::Error` if kvm_run cannot be written; likewise below.
    pub fn set_hypercall_ret(&self, ret: u64) -> Outcome {
        self.shared.page.set_hypercall_ret(ret)
    }

    /// The answer of a `KVM_EXIT_TDX`, R10 of the guest.
    ///
    /// # Errors
    /// As above.
    pub fn set_tdx_ret(&self, ret: u64) -> Outcome {
        self.shared.page.set_tdx_ret(ret)
    }

    /// What GetTdVmCallInfo answers in R11 to R14.
    ///
    /// # Errors
    /// As above.
    pub fn set_tdx_info(&self, registers: [u64; 4]) -> Outcome {
        self.shared.page.set_tdx_info(registers)
    }

    /// What the guest's MMIO load reads, little-endian in the low bytes.
    ///
    /// # Errors
    /// As above.
    pub fn set_mmio_data(&self, data: u64) -> Outcome {
        self.shared.page.set_mmio_data(data)
    }

    /// What becomes of an SNP guest's wish for certificates: 0 or an error number, and with ENOSPC how many pages they take.
    ///
    /// # Errors
    /// As above.
    pub fn set_certificates(&self, ret: u64, pages: u64) -> Outcome {
        self.shared.page.set_certificates(ret, pages)
    }

    /// What the guest's `in` reads.
    ///
    /// # Errors
    /// As above.
    pub fn set_io_in_data(&self, data: &[u8]) -> Outcome {
        self.shared.page.set_io_in_data(data)
    }

    /// The descriptor, for all that kvm-ioctls offers. An ioctl on a vCPU that is in KVM_RUN waits for it to
    /// come out, hence only outside of a run.
    ///
    /// # Errors
    /// `Stop::Error` if the vCPU is running.
    pub fn kvm(&self) -> Outcome<&VcpuFd> {
        match self.shared.lock().phase {
            Phase::Running => Err(Stop::Error(format!("vCPU {} is running", self.id()))),
            _ => Ok(&self.shared.fd),
        }
    }

    /// `KVM_PRE_FAULT_MEMORY` of whole pages.
    ///
    /// # Errors
    /// `Stop::Error` if the vCPU is running. What KVM says is in the value.
    pub fn pre_fault(&self, gpa: Gpa, pages: PageCount) -> Outcome<PreFault> {
        self.pre_fault_raw(gpa.0, pages.bytes(), 0)
    }

    /// `KVM_PRE_FAULT_MEMORY` with any values, in bytes.
    ///
    /// # Errors
    /// `Stop::Error` if the vCPU is running. What KVM says is in the value.
    pub fn pre_fault_raw(&self, gpa: u64, size: u64, flags: u64) -> Outcome<PreFault> {
        let mut range = kvm_pre_fault_memory { gpa, size, flags, ..Default::default() };
        let vcpu = self.kvm()?.as_raw_fd();
        self.shared.page.set_exit_reason(SENTINEL)?;
        let result = raw::pre_fault(vcpu, &mut range);
        let exit = Exit::decode(result, &self.shared.page)?;
        let memory_fault = matches!(exit, Exit::MemoryFault { .. }).then_some(exit);
        Ok(PreFault { result, gpa: Gpa(range.gpa), size: range.size, memory_fault })
    }

    /// `KVM_SET_MSRS` of one MSR, as user space may where a guest may not.
    ///
    /// # Errors
    /// `Stop::Fail` if KVM refuses.
    pub fn set_msr(&self, msr: u32, value: u64) -> Outcome {
        let entry = kvm_msr_entry { index: msr, data: value, ..Default::default() };
        let msrs =
            Msrs::from_entries(&[entry]).map_err(|error| Stop::Error(format!("a list of one MSR: {error:?}")))?;
        match self.kvm()?.set_msrs(&msrs).map_err(errno::of_kvm) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Stop::Fail(format!("KVM_SET_MSRS refuses {value:#x} in MSR {msr:#x}"))),
            Err(errno) => Err(Stop::Fail(format!("KVM_SET_MSRS of MSR {msr:#x}: {errno:?}"))),
        }
    }

    /// Any vCPU ioctl with a small number as its argument, which for requests that take a pointer is one
    /// that cannot be accessed.
    ///
    /// # Errors
    /// Outside `Stop::Error` if the vCPU is running; inside the error number of the ioctl.
    pub fn ioctl_raw(&self, request: u64, argument: u16) -> Outcome<Result<i32, Errno>> {
        Ok(raw::with_small_argument(self.kvm()?, request, argument))
    }

    /// The vCPU's statistics.
    ///
    /// # Errors
    /// `Stop::Fail` if KVM refuses, `Stop::Error` if they are malformed.
    pub fn stats(&self) -> Outcome<Stats> {
        let file = raw::stats_fd(self.kvm()?.as_raw_fd())
            .map_err(|errno| Stop::Fail(format!("KVM_GET_STATS_FD of vCPU {}: {errno:?}", self.id())))?;
        Stats::new(file)
    }

    fn begin(&self, immediate_exit: bool) -> Outcome {
        let shared = &self.shared;
        let state = shared.lock();
        if !matches!(state.phase, Phase::Idle) {
            return Err(Stop::Error(format!("vCPU {} was started twice", self.id())));
        }
        shared.page.set_immediate_exit(immediate_exit)?;
        shared.page.forget_exit()?;
        shared.page.set_exit_reason(SENTINEL)?;
        shared.enter(state, Phase::Running);
        Ok(())
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.end_run();
        let state = self.shared.lock();
        let running = matches!(state.phase, Phase::Running);
        self.shared.enter(state, Phase::Ending);
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take()
            && !running
        {
            // A panic over there has nobody to tell: the process is a worker that ends with this row.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes over to a phase, and wakes whoever sleeps until that.
    fn enter(&self, mut state: MutexGuard<'_, State>, phase: Phase) {
        state.phase = phase;
        let wakes = state.sleepers > 0;
        // Whoever wakes up wants the lock.
        drop(state);
        if wakes {
            self.changed.notify_all();
        }
    }

    /// Waits for a phase that `is_due`, `limit` at most. Where that does not take long it does not sleep: an exit is
    /// back sooner than a thread.
    fn wait_for<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        limit: Duration,
        is_due: impl Fn(&Phase) -> bool,
    ) -> MutexGuard<'a, State> {
        for _ in 0..SPINS {
            if is_due(&state.phase) {
                return state;
            }
            drop(state);
            std::hint::spin_loop();
            state = self.lock();
        }
        state.sleepers += 1;
        let waited = self.changed.wait_timeout_while(state, limit, |state| !is_due(&state.phase));
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.sleepers -= 1;
        state
    }

    fn spawn(self: &Arc<Self>) -> Outcome<thread::JoinHandle<()>> {
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name(format!("vcpu{}", self.id))
            .spawn(move || shared.serve())
            .map_err(|error| Stop::Error(format!("cannot start the thread of vCPU {}: {error}", self.id)))
    }

    /// The thread: runs when told to, until told to end.
    fn serve(&self) {
        let mut state = self.lock();
        state.thread = Some(Thread::this());
        loop {
            match state.phase {
                Phase::Ending => return,
                Phase::Running => {
                    drop(state);
                    let exit = Exit::decode(raw::run(self.fd.as_raw_fd()), &self.page);
                    let name = VcpuName { vm: self.core.number, vcpu: self.id };
                    self.core.trace.record(name, self.operation(), self.rip_after(&exit), &exit);
                    state = self.lock();
                    if matches!(state.phase, Phase::Running) {
                        self.enter(state, Phase::Done(exit));
                        state = self.lock();
                    }
                }
                Phase::Idle | Phase::Done(_) => {
                    let is_due = |phase: &Phase| matches!(phase, Phase::Running | Phase::Ending);
                    state = self.wait_for(state, Duration::MAX, is_due);
                }
            }
        }
    }

    fn operation(&self) -> Option<Op> {
        self.lock().operation
    }

    /// RIP for the trace, where it says something: reading it costs an ioctl, and port accesses are the
    /// doorbell. None where KVM does not tell it.
    fn rip_after(&self, exit: &Outcome<Exit>) -> Option<u64> {
        match exit {
            Ok(Exit::Io { .. } | Exit::Refused { .. }) => None,
            _ => self.fd.get_regs().ok().map(|regs| regs.rip),
        }
    }

    fn kick(&self, state: &State) -> Outcome {
        if matches!(state.phase, Phase::Running) {
            self.page.set_immediate_exit(true)?;
            if let Some(thread) = state.thread {
                thread.interrupt();
            }
        }
        Ok(())
    }

    /// Ends the run under way, if any, and forgets its exit. False if the thread does not come back.
    fn end_run(&self) -> bool {
        let deadline = Instant::now() + GRACE;
        let mut state = self.lock();
        while matches!(state.phase, Phase::Running) {
            if state.left_behind || Instant::now() >= deadline {
                state.left_behind = true;
                return false;
            }
            // An unwritable kvm_run leaves the signal, which alone ends most runs.
            let _ = self.kick(&state);
            state = self.wait_for(state, REPEAT, |phase| !matches!(phase, Phase::Running));
        }
        state.phase = Phase::Idle;
        true
    }
}
