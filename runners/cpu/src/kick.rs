//! Reaching into a running CPU from another thread: stop it, flush its translations, tell it of an
//! interrupt.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::state::World;

const STOP: u32 = 1 << 0;
const FLUSH: u32 = 1 << 1;
const EVENT: u32 = 1 << 2;
const PARTS: u32 = 1 << 3;

/// Translations that are to be dropped, of those that a CPU remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// All of one world.
    World(World),
    /// Those of the page with this linear address, in every world.
    Page(u64),
    /// Those that lead to the page of host memory at this address ([`crate::HostPage::start`]).
    Backing(usize),
}

/// How a thread waits for another one, which may need this one's core: it lets others run, and sleeps now and
/// then. Who only yields keeps a core busy that could take the other one over.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    waits: u32,
}

impl Patience {
    const SLEEP_EVERY: u32 = 64;
    const SLEEP: Duration = Duration::from_micros(20);

    /// Waits a little.
    pub(crate) fn wait(&mut self) {
        self.waits = self.waits.wrapping_add(1);
        if self.waits.is_multiple_of(Self::SLEEP_EVERY) {
            std::thread::sleep(Self::SLEEP);
        } else {
            std::thread::yield_now();
        }
    }
}

/// One vCPU's mailbox for requests from other threads. All methods may be called from any thread; [`Kick::stop`],
/// [`Kick::raise_event`] and [`Kick::request_flush`] from signal handlers, too.
///
/// # Invalidation
/// A CPU caches host pointers. Before a VM changes what a guest-physical page is (attributes, slots,
/// a hole punched), no CPU may use an old pointer any more, and none may obtain it anew until the
/// change is done. The protocol is that of a TLB shootdown:
///
/// 1. The VM takes the lock under which [`crate::Bus::resolve`] looks pages up (for writing).
/// 2. It calls [`Kick::flush_and_wait`] for every vCPU, best [`Kick::request_flush`] for all first.
/// 3. It makes the change and drops the lock.
///
/// A CPU is *quiescent* outside `run` and inside every call to its bus: it holds no pointer then, and
/// looks at the request before it uses one again. So step 2 does not deadlock with a vCPU that waits
/// for the lock in `resolve`, and a vCPU thread may flush all vCPUs, its own included, from inside a
/// bus call. What `resolve` returned is thrown away and asked for again if a flush came meanwhile.
/// Elsewhere a CPU looks at its requests before every block (at most [`crate::MAX_BLOCK_OPS`]
/// instructions) and before every iteration of a repeated string instruction.
///
/// A bus may ask for a flush of its own CPU from inside a call, which then is honoured behind that call.
#[derive(Debug, Default)]
pub struct Kick {
    /// Translated code looks at it, too.
    pub(crate) requests: AtomicU32,
    running: AtomicBool,
    parts: Mutex<Vec<Flush>>,
}

impl Kick {
    /// A mailbox without requests.
    #[must_use]
    pub fn new() -> Kick {
        Kick::default()
    }

    /// Makes `run` return [`crate::CpuExit::Stopped`] soon, or at once when called next. Sticky until
    /// [`Kick::clear_stop`]. An instruction whose completion is pending is completed first.
    pub fn stop(&self) {
        self.requests.fetch_or(STOP, Ordering::SeqCst);
    }

    /// Lets the CPU run again.
    pub fn clear_stop(&self) {
        self.requests.fetch_and(!STOP, Ordering::SeqCst);
    }

    /// Makes the CPU ask its bus for an event ([`crate::Bus::take_event`]).
    pub fn raise_event(&self) {
        self.requests.fetch_or(EVENT, Ordering::SeqCst);
    }

    /// Asks the CPU to drop its translations, without waiting.
    pub fn request_flush(&self) {
        self.requests.fetch_or(FLUSH, Ordering::SeqCst);
    }

    /// Asks the CPU to drop some of its translations, without waiting. Not for signal handlers.
    pub fn request(&self, flush: Flush) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(flush);
        self.requests.fetch_or(PARTS, Ordering::SeqCst);
    }

    /// Asks the CPU to drop its translations and returns when it uses none of them any more.
    ///
    /// The caller holds the lock of step 1 above.
    pub fn flush_and_wait(&self) {
        self.request_flush();
        let mut patience = Patience::default();
        let mut spins = 0_u32;
        while self.requests.load(Ordering::SeqCst) & FLUSH != 0 && self.running.load(Ordering::SeqCst) {
            spins += 1;
            if spins < 100 {
                std::hint::spin_loop();
            } else {
                patience.wait();
            }
        }
    }

    /// From here on the CPU may use host pointers, once it has looked at its requests.
    pub(crate) fn enter(&self) {
        // SeqCst, with the loads of `requests` after it: either this CPU sees the flush request, or
        // the requester sees that it runs.
        self.running.store(true, Ordering::SeqCst);
    }

    /// The CPU uses no host pointer any more until it enters again.
    pub(crate) fn leave(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    /// Whether anything is requested; cheap enough for every block.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn stop_requested(&self) -> bool {
        self.requests.load(Ordering::SeqCst) & STOP != 0
    }

    /// Whether a flush is requested; the caller flushes before its next access, having taken the
    /// request.
    pub(crate) fn take_flush(&self) -> bool {
        self.take(FLUSH)
    }

    /// What else is to be dropped.
    pub(crate) fn take_parts(&self) -> Vec<Flush> {
        if !self.take(PARTS) {
            return Vec::new();
        }
        std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn take_event(&self) -> bool {
        self.take(EVENT)
    }

    fn take(&self, bit: u32) -> bool {
        self.requests.load(Ordering::SeqCst) & bit != 0 && self.requests.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }
}
