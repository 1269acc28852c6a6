//! Has every running vCPU look around once a millisecond: a thread, since a guest in a loop calls nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use privet_cpu::Kick;

const TICK: Duration = Duration::from_millis(1);

/// Who is ticked for.
pub(crate) struct State {
    /// The process whose thread ticks: a forked child needs one of its own.
    process: u32,
    next: u64,
    running: BTreeMap<u64, Arc<Kick>>,
}

static STATE: Mutex<State> = Mutex::new(State { process: 0, next: 0, running: BTreeMap::new() });
static CHANGED: Condvar = Condvar::new();

/// The ticker's state; also held while a process forks.
pub(crate) fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running vCPU; it is left alone again when this is dropped.
pub(crate) struct Ticking(u64);

/// Ticks for a vCPU that starts to run. Without a thread, which the system may refuse, signals are only
/// noticed at exits.
pub(crate) fn tick(vcpu: &Arc<Kick>) -> Ticking {
    let mut state = lock();
    let process = std::process::id();
    if state.process != process {
        state.process = process;
        state.running.clear();
        // The thread inherits the mask of this one, in which everything is blocked.
        let _ = std::thread::Builder::new().name("privet-model".into()).stack_size(128 << 10).spawn(run);
    }
    state.next += 1;
    let id = state.next;
    state.running.insert(id, Arc::clone(vcpu));
    CHANGED.notify_one();
    Ticking(id)
}

impl Drop for Ticking {
    fn drop(&mut self) {
        lock().running.remove(&self.0);
    }
}

fn run() {
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
    let mut state = lock();
    loop {
        if state.running.is_empty() {
            state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.running.values().for_each(|vcpu| vcpu.stop());
        drop(state);
        std::thread::sleep(TICK);
        state = lock();
    }
}
