//! What each vCPU has of its own: its stacks, its descriptor tables and its state.
#![expect(unsafe_code, reason = "shares static memory between vCPUs and derives references from addresses")]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::{Fault, GuestMailbox, MAX_VCPUS, Words};

use crate::descriptor_tables::DescriptorTables;
use crate::ghcb::Ghcb;

/// Bytes of static memory that each vCPU has.
pub(crate) const AREA_BYTES: usize = 8192;

/// Memory for a stack, which grows down from [`Stack::top`].
#[repr(C, align(16))]
struct Stack<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

impl<const BYTES: usize> Stack<BYTES> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; BYTES]))
    }

    fn top(&self) -> u64 {
        self.0.get() as u64 + BYTES as u64
    }
}

/// The static memory of one vCPU. The main stack is last, so that the end of the area is its top and that an
/// overflow runs into the exception stack, not into another vCPU.
#[repr(C, align(64))]
pub(crate) struct Area {
    vcpu: Vcpu,
    tables: DescriptorTables,
    /// For #DF, NMI and #MC, which may come while another handler runs.
    urgent_stack: Stack<2048>,
    exception_stack: Stack<2048>,
    main_stack: Stack<3296>,
}

const _: () = assert!(size_of::<Area>() == AREA_BYTES);

// SAFETY: the state consists of atomics. Tables and stacks are only touched by the vCPU whose area it is: each
// vCPU is given another index by the host, and `_start` and `current` use no other area.
unsafe impl Sync for Area {}

/// The areas of all vCPUs: all zeros, hence .bss.
pub(crate) static AREAS: [Area; MAX_VCPUS] = [const {
    Area {
        vcpu: Vcpu::new(),
        tables: DescriptorTables::new(),
        urgent_stack: Stack::new(),
        exception_stack: Stack::new(),
        main_stack: Stack::new(),
    }
}; MAX_VCPUS];

/// The area of the vCPU that executes this: the one that RSP points into.
fn current() -> &'static Area {
    let rsp: usize;
    // SAFETY: only reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    &AREAS[(rsp - AREAS.as_ptr() as usize) / AREA_BYTES]
}

/// The state of one vCPU. Exception handlers see it in the middle of anything, hence atomics throughout.
#[repr(C)]
pub struct Vcpu {
    mailbox: AtomicU64,
    /// Sequence number of the request that is being executed.
    pub(crate) sequence: AtomicU64,
    /// 1 while a request is being executed.
    pub(crate) busy: AtomicU64,
    /// 1 once this vCPU has failed: a second failure must not hide the first.
    pub(crate) failed: AtomicU64,
    /// The last fault that a probe caught.
    fault: [AtomicU64; 4],
    /// For `probe::execute`: RSP where it goes on if the code that it calls faults, 0 if it calls nothing; and
    /// what that code returned.
    pub(crate) execute: [AtomicU64; 2],
    /// The TLB generation that this vCPU has flushed for, see `tlb`.
    pub(crate) flushed: AtomicU64,
    /// 1 while this vCPU looks at the TLB generation again and again.
    pub(crate) flushes_promptly: AtomicU64,
    /// While an exception is handled: one more than its vector.
    pub(crate) handling: AtomicU64,
    /// Where its GHCB is; 0 if it has none, or not yet.
    ghcb: AtomicU64,
    /// How many #VC and #VE it has handled.
    reflected: AtomicU64,
    /// 1 in a TD, which leaves by TDCALL.
    in_td: AtomicU64,
}

impl Vcpu {
    const fn new() -> Self {
        Self {
            mailbox: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            fault: [const { AtomicU64::new(0) }; 4],
            execute: [const { AtomicU64::new(0) }; 2],
            flushed: AtomicU64::new(0),
            flushes_promptly: AtomicU64::new(0),
            handling: AtomicU64::new(0),
            ghcb: AtomicU64::new(0),
            reflected: AtomicU64::new(0),
            in_td: AtomicU64::new(0),
        }
    }

    /// The vCPU that executes this.
    pub fn current() -> &'static Self {
        &current().vcpu
    }

    /// All vCPUs that there may be.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        AREAS.iter().map(|area| &area.vcpu)
    }

    /// First thing on a vCPU: remembers its mailbox and makes exceptions arrive, each at its `stub`.
    ///
    /// # Safety
    /// To be called once on each vCPU, on its own main stack. `mailbox` is a page that stays mapped and that
    /// nobody uses but as this vCPU's mailbox.
    #[cfg_attr(not(privet_payload), expect(dead_code, reason = "only payloads have an entry point"))]
    pub(crate) unsafe fn start(mailbox: u64, stub: fn(usize) -> u64) -> &'static Self {
        let area = current();
        area.vcpu.mailbox.store(mailbox, Relaxed);
        area.tables.load(stub, area.exception_stack.top(), area.urgent_stack.top());
        &area.vcpu
    }

    /// This vCPU's mailbox.
    pub fn mailbox(&self) -> GuestMailbox<'static> {
        // SAFETY: `start` was called first thing on this vCPU, and its caller promised that this is a
        // mailbox for good; a page is aligned for words, and `Words` are atomics, so the host may write too.
        GuestMailbox::new(unsafe { &*(self.mailbox.load(Relaxed) as *const Words) })
    }

    /// From now on this vCPU has a GHCB there.
    ///
    /// # Safety
    /// A page that is mapped at its GPA as shared memory, for good, and that nobody uses but as this vCPU's GHCB.
    pub(crate) unsafe fn set_ghcb(&self, gpa: u64) {
        self.ghcb.store(gpa, Relaxed);
    }

    /// The GHCB of this vCPU, which is the one that executes this, if it has one.
    pub fn ghcb(&self) -> Option<Ghcb> {
        match self.ghcb.load(Relaxed) {
            0 => None,
            // SAFETY: `set_ghcb`'s caller has promised all that is needed.
            gpa => Some(unsafe { Ghcb::at(gpa) }),
        }
    }

    /// From now on this vCPU leaves by TDCALL.
    pub(crate) fn set_in_td(&self) {
        self.in_td.store(1, Relaxed);
    }

    /// Whether this vCPU leaves by TDCALL.
    pub(crate) fn is_in_td(&self) -> bool {
        self.in_td.load(Relaxed) == 1
    }

    /// One more #VC or #VE is handled.
    pub(crate) fn count_reflected(&self) {
        self.reflected.fetch_add(1, Relaxed);
    }

    /// How many #VC and #VE it has handled so far.
    pub fn reflected(&self) -> u64 {
        self.reflected.load(Relaxed)
    }

    /// Stores the fault that a probe caught.
    pub(crate) fn set_fault(&self, fault: Fault) {
        for (slot, value) in self.fault.iter().zip([fault.vector, fault.error_code, fault.rip, fault.cr2]) {
            slot.store(value, Relaxed);
        }
    }

    /// The last fault that a probe caught.
    pub(crate) fn fault(&self) -> Fault {
        let [vector, error_code, rip, cr2] = [0, 1, 2, 3].map(|i| self.fault[i].load(Relaxed));
        Fault { vector, error_code, rip, cr2 }
    }
}
