//! What a CPU is plugged into: memory, CPUID, MSRs, time, interrupts and intercepts.
//!
//! A [`Bus`] is one vCPU's handle to its VM. The CPU calls it on the vCPU's thread only, and never
//! while it holds a host pointer: a bus may block (on the VM's memory lock, say) for as long as it
//! likes without delaying another vCPU's invalidation (see [`crate::Kick`]).

use crate::exception::Exception;
use crate::state::CpuState;

/// Size of the pages that [`Bus::resolve`] deals in, bytes.
pub const PAGE_SIZE: u64 = 4096;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write, or the read half of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// One access to a guest-physical page, as much as a nested page table would see of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch. A page walk that sets accessed or dirty bits is a write.
    pub kind: AccessKind,
    /// Where in the page it begins.
    pub offset: u16,
    /// At CPL 3 (walks and implicit accesses to descriptor tables are supervisor accesses).
    pub user: bool,
    /// To a paging structure of the guest, not to the final page (bit 33, GUEST_PAGE, of an NPF).
    pub walk: bool,
    /// Private by the guest's own page tables: C-bit set or S-bit clear; see [`Encryption`].
    /// Always false with [`Encryption::None`].
    pub private: bool,
    /// Not the processor's: a part of the same instruction met MMIO, or the instruction is rewritten, so it is
    /// the hypervisor's emulator that executes it, with translations of its own.
    pub emulated: bool,
}

/// How a guest tells private from shared in its page tables. The bit is never part of the `gpa`
/// that a [`Bus`] sees: [`Access::private`] carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// It does not: the VMM decides, or nothing is private.
    #[default]
    None,
    /// SEV: this bit of a PTE set means private. Fetches and page walks are private always, and so
    /// are all accesses while paging is off.
    CBit(u8),
    /// TDX: this bit of a PTE set means shared. Page walks and accesses without paging are private.
    SharedBit(u8),
}

impl Encryption {
    /// The bit of a PTE that is no part of the address.
    #[must_use]
    pub fn mask(self) -> u64 {
        match self {
            Encryption::None => 0,
            Encryption::CBit(bit) | Encryption::SharedBit(bit) => 1 << bit,
        }
    }

    /// Whether an access through a leaf entry is private.
    pub(crate) fn is_private(self, entry: u64, kind: AccessKind) -> bool {
        match self {
            Encryption::None => false,
            Encryption::CBit(bit) => kind == AccessKind::Fetch || entry >> bit & 1 != 0,
            Encryption::SharedBit(bit) => entry >> bit & 1 == 0,
        }
    }

    /// Whether page walks, and accesses while paging is off, are private.
    pub(crate) fn walks_are_private(self) -> bool {
        self != Encryption::None
    }
}

/// The host's view of one guest page: 4096 readable bytes (and writable, if said so).
///
/// Making one is the promise on which all of the CPU's memory accesses rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPage {
    start: *mut u8,
    writable: bool,
}

impl HostPage {
    /// Names a page of host memory to the CPU.
    ///
    /// # Safety
    /// `start` is page aligned, and the 4096 bytes from it are mapped readable (and writable, if
    /// `writable`) until the CPU has acknowledged a flush that was requested through its
    /// [`crate::Kick`], or was dropped. The memory is only accessed through raw pointers or atomics
    /// by everyone else in this process meanwhile (no `&`/`&mut` of Rust to it is alive), because
    /// guest accesses race with it. If the memory can be truncated away under the mapping, the
    /// process has to catch the SIGBUS.
    #[must_use]
    #[expect(unsafe_code, reason = "the constructor is where the owner of the memory makes its promise")]
    pub unsafe fn new(start: *mut u8, writable: bool) -> HostPage {
        HostPage { start, writable }
    }

    /// Address of the first byte.
    #[must_use]
    pub fn start(self) -> *mut u8 {
        self.start
    }

    /// Whether the CPU may write.
    #[must_use]
    pub fn writable(self) -> bool {
        self.writable
    }
}

/// What a guest-physical page is to an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// Memory. The CPU remembers the page until a flush. A write that gets a page which is not
    /// writable is treated as [`Resolve::Mmio`] (KVM's read-only memslots).
    Page(HostPage),
    /// No memory. The instruction starts again in the emulator ([`Access::emulated`]), and what is MMIO there
    /// as well becomes [`crate::CpuExit::MmioRead`] or [`crate::CpuExit::MmioWrite`].
    /// A fetch or page walk that meets MMIO ends in
    /// [`crate::CpuExit::NoMemory`].
    Mmio,
    /// The access ends `run` with [`crate::CpuExit::Bus`]; the guest's state is as before the
    /// instruction, which runs again next time. What it means is the bus' to remember.
    Exit,
    /// The instruction is over without an effect, and `run` ends with [`crate::CpuExit::Bus`]. Only for data that an
    /// instruction accesses; where an event's delivery does, it is [`crate::CpuExit::NoMemory`].
    Skip,
    /// The guest gets this exception in place of the access (#VC, #VE).
    Reflect(Exception),
}

/// A hypercall or another instruction that only means something to the VMM or firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// VMCALL.
    Vmcall,
    /// VMMCALL.
    Vmmcall,
    /// VMGEXIT (`rep vmmcall`).
    Vmgexit,
    /// TDCALL.
    Tdcall,
    /// PVALIDATE: RAX linear address, ECX size, EDX validate. Result in RAX and CF.
    Pvalidate,
    /// RMPADJUST: RAX linear address, RCX size, RDX attributes. Result in RAX.
    Rmpadjust,
}

/// An instruction that a hypervisor may intercept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intercept {
    /// CPUID with its leaf and subleaf in EAX and ECX.
    Cpuid,
    /// RDMSR of ECX.
    Rdmsr,
    /// WRMSR of EDX:EAX to ECX.
    Wrmsr,
    /// IN or OUT, or one element of INS or OUTS.
    PortIo {
        /// Port number.
        port: u16,
        /// Bytes per element: 1, 2 or 4.
        size: u8,
        /// Into the guest (IN, INS).
        input: bool,
        /// INS or OUTS.
        string: bool,
        /// With a REP prefix.
        rep: bool,
    },
    /// HLT.
    Hlt,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC of ECX.
    Rdpmc,
    /// WBINVD or WBNOINVD.
    Wbinvd,
    /// INVD.
    Invd,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// MOV from this debug register.
    ReadDr(u8),
    /// MOV to this debug register.
    WriteDr(u8),
    /// A hypercall and its relatives. Without a bus that takes it, #UD.
    Call(Call),
}

/// What becomes of an intercepted instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intercepted {
    /// The CPU does what the instruction does on bare metal, with the bus' CPUID, MSRs and time.
    Native,
    /// The bus has done it, state included: go on behind the instruction.
    Done,
    /// `run` ends with [`crate::CpuExit::Bus`], RIP at the instruction. Unless the caller moves RIP
    /// ([`crate::Cpu::skip_instruction`]) it runs again.
    Exit,
    /// The guest gets this exception in place of the instruction, RIP at the instruction.
    Reflect(Exception),
    /// These bytes are stored over the instruction, as the guest itself could at its CPL (or it gets the page
    /// fault), but by the emulator; then what is there runs.
    Rewrite([u8; 3]),
}

/// Something from outside the instruction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Non-maskable interrupt.
    Nmi,
    /// External interrupt with its vector; taking it acknowledged it.
    Interrupt(u8),
}

/// Result of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names of the registers say it")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// One vCPU's way to everything outside the CPU.
pub trait Bus {
    /// What the page at `gpa` (page aligned, without the encryption bit) is to `access`.
    fn resolve(&mut self, gpa: u64, access: Access) -> Resolve;

    /// CPUID of this vCPU.
    fn cpuid(&mut self, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult;

    /// Reads an MSR that the CPU does not keep itself ([`crate::CpuState`] lists those).
    ///
    /// # Errors
    /// The exception that the guest gets, #GP(0) for an MSR that does not exist.
    fn rdmsr(&mut self, state: &CpuState, index: u32) -> Result<u64, Exception>;

    /// Writes an MSR that the CPU does not keep itself.
    ///
    /// # Errors
    /// The exception that the guest gets, #GP(0) for an MSR or a value that does not exist.
    fn wrmsr(&mut self, state: &mut CpuState, index: u32, value: u64) -> Result<(), Exception>;

    /// The time stamp counter.
    fn tsc(&mut self) -> u64;

    /// An instruction that may be intercepted is about to execute (after its privilege checks).
    /// `state.rip` is at the instruction, `length` its bytes.
    fn intercept(&mut self, state: &mut CpuState, what: Intercept, length: u8) -> Intercepted {
        let _ = (state, what, length);
        Intercepted::Native
    }

    /// Takes the next event that the CPU can accept now; asked after [`crate::Kick::raise_event`]
    /// and again whenever the guest opens a window that was closed then.
    fn take_event(&mut self, interrupts_open: bool, nmis_open: bool) -> Option<Event> {
        let _ = (interrupts_open, nmis_open);
        None
    }

    /// CR8 was written: the task priority of the local APIC.
    fn set_task_priority(&mut self, cr8: u64) {
        let _ = cr8;
    }
}
