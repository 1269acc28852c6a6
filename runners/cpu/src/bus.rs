//! What a CPU is plugged into: memory, devices, CPUID, MSRs, time, interrupts and intercepts.
//!
//! A [`Bus`] is one processor's handle to its VM or board. The CPU calls it on its own thread only, and never
//! while it holds a host pointer: a bus may block (on the VM's memory lock, say) for as long as it
//! likes without delaying another vCPU's invalidation (see [`crate::Kick`]).
//!
//! There are two ways to build one. KVM's leaves `run` for each access to a device ([`Resolve::Mmio`], ports) and
//! has the CPU complete the instruction later. A board answers in place ([`Resolve::Device`], [`Bus::port_read`]),
//! and puts another world under the CPU where a hypervisor's silicon does: see [`crate::state::World`].

use serde::{Deserialize, Serialize};

use crate::exception::Exception;
use crate::segment::Seg;
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
    /// The linear address that the instruction or the processor accesses; of a page walk, the one that is
    /// translated.
    pub linear: u64,
    /// Read, write or fetch. A page walk that sets accessed or dirty bits is a write.
    pub kind: AccessKind,
    /// Where in the page it begins.
    pub offset: u16,
    /// Bytes of the page that the guest's own tables map it with; those of a small page without paging, and of a walk.
    pub size: u64,
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
    /// Where execution goes on after the instruction whose data this is; 0 where it is no instruction's: of a
    /// fetch, of a page walk, of the delivery of an event.
    pub next_rip: u64,
}

/// How a guest tells private from shared in its page tables. The bit is never part of the `gpa`
/// that a [`Bus`] sees: [`Access::private`] carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
    /// No memory but registers, at this system-physical address: the CPU makes the access at once through
    /// [`Bus::device_read`] or [`Bus::device_write`], and remembers nothing. For a fetch or a page walk it is
    /// [`Resolve::Mmio`].
    Device(u64),
    /// The guest gets this exception in place of the access (#VC, #VE).
    Reflect(Exception),
    /// The access has ended in another world: see [`Intercepted::Switched`].
    Switched,
}

/// An instruction that only means something to the VMM, to firmware, or to the silicon below a hypervisor.
///
/// The bus makes all of its checks, those of privilege included.
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
    /// RMPUPDATE: RAX system-physical address, RCX linear address of the new entry. Result in RAX.
    Rmpupdate,
    /// RMPQUERY: RAX linear address, RCX VMPL. Result in RAX, RCX, RDX.
    Rmpquery,
    /// RMPREAD: RAX system-physical address, RCX linear address of where the entry goes. Result in RAX.
    Rmpread,
    /// PSMASH: RAX system-physical address. Result in RAX.
    Psmash,
    /// VMRUN: rAX system-physical address of the VMCB.
    Vmrun,
    /// VMLOAD: rAX system-physical address of the VMCB.
    Vmload,
    /// VMSAVE: rAX system-physical address of the VMCB.
    Vmsave,
    /// STGI.
    Stgi,
    /// CLGI.
    Clgi,
    /// INVLPGA: rAX linear address, ECX ASID.
    Invlpga,
    /// SKINIT: EAX system-physical address.
    Skinit,
    /// RSM.
    Rsm,
    /// SEAMCALL.
    Seamcall,
}

/// An instruction of VMX, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the instructions say it")]
pub enum VmxInstruction {
    Vmxon,
    Vmxoff,
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmwrite,
    Vmlaunch,
    Vmresume,
    Invept,
    Invvpid,
}

/// An instruction of VMX that is carried out, with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmxCall {
    /// VMXON with the physical address of the VMXON region.
    Vmxon(u64),
    /// VMXOFF.
    Vmxoff,
    /// VMCLEAR with the physical address of a VMCS.
    Vmclear(u64),
    /// VMPTRLD with the physical address of a VMCS.
    Vmptrld(u64),
    /// VMPTRST: the answer is stored.
    Vmptrst,
    /// VMREAD of a field: the answer is stored.
    Vmread {
        /// Its encoding.
        field: u64,
    },
    /// VMWRITE of a field.
    Vmwrite {
        /// Its encoding.
        field: u64,
        /// Its new value.
        value: u64,
    },
    /// VMLAUNCH.
    Vmlaunch,
    /// VMRESUME.
    Vmresume,
    /// INVEPT.
    Invept {
        /// The type.
        kind: u64,
        /// The descriptor: the EPT pointer in its low half.
        descriptor: u128,
    },
    /// INVVPID.
    Invvpid {
        /// The type.
        kind: u64,
        /// The descriptor: the VPID in its low half, a linear address in its high half.
        descriptor: u128,
    },
}

/// What becomes of an instruction of VMX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmxAnswer {
    /// It is done, flags included.
    Done,
    /// Likewise, and this is its result: the CPU stores it.
    Value(u64),
    /// As [`Intercepted::Switched`].
    Switched,
    /// As [`Intercepted::Reflect`].
    Reflect(Exception),
}

/// A memory operand as an instruction encodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOperand {
    /// The general register that is added, if one is.
    pub base: Option<u8>,
    /// The general register that is added shifted, if one is.
    pub index: Option<u8>,
    /// By how many bits.
    pub scale: u8,
    /// The displacement; relative to RIP, the address.
    pub displacement: u64,
    /// Bytes of an address: 2, 4 or 8.
    pub address_size: u8,
    /// The segment that it is relative to.
    pub segment: Seg,
}

/// What the ModR/M byte of an instruction names, for hypervisors that have to decode it no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operands {
    /// The field `reg`: a general register.
    pub register: u8,
    /// The field `r/m`.
    pub place: OperandPlace,
}

/// What the field `r/m` of an instruction names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperandPlace {
    /// Nothing: there is no such operand.
    Nothing,
    /// A general register.
    Register(u8),
    /// Memory.
    Memory(MemoryOperand),
}

/// How an instruction accesses a control register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV from or to this general register.
    Mov(u8),
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw,
    /// SMSW.
    Smsw,
}

/// A descriptor-table register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableRegister {
    /// LGDT, SGDT.
    Gdtr,
    /// LIDT, SIDT.
    Idtr,
    /// LLDT, SLDT.
    Ldtr,
    /// LTR, STR.
    Tr,
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
        /// Bytes of an address: 2, 4 or 8.
        address_size: u8,
        /// Where the memory operand of INS or OUTS is.
        segment: Seg,
        /// The port is named by the instruction itself.
        immediate: bool,
        /// Linear address of the memory operand of INS or OUTS.
        linear: u64,
    },
    /// HLT.
    Hlt,
    /// PAUSE.
    Pause,
    /// IRET, whichever width.
    Iret,
    /// PUSHF, whichever width.
    Pushf,
    /// POPF, whichever width.
    Popf,
    /// INT n with its vector; INT3 and INTO are exceptions ([`Bus::exception`]).
    SoftwareInterrupt(u8),
    /// INT1, before the #DB that it raises.
    Icebp,
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
    /// A read of a control register.
    ReadCr {
        /// Its number.
        cr: u8,
        /// The instruction.
        by: CrAccess,
    },
    /// A write of a control register, before its value is checked.
    WriteCr {
        /// Its number.
        cr: u8,
        /// What it would become.
        value: u64,
        /// The instruction.
        by: CrAccess,
    },
    /// MOV from a debug register.
    ReadDr {
        /// Its number; 6 and 7 for their aliases, too.
        dr: u8,
        /// The general register.
        register: u8,
    },
    /// MOV to a debug register, before its value is checked.
    WriteDr {
        /// Its number; 6 and 7 for their aliases, too.
        dr: u8,
        /// The general register.
        register: u8,
        /// What is in it.
        value: u64,
    },
    /// XSETBV of EDX:EAX to ECX.
    Xsetbv,
    /// INVLPG.
    Invlpg {
        /// The linear address.
        linear: u64,
    },
    /// INVPCID, before its descriptor is read.
    Invpcid {
        /// The type, 0 to 3 if it is valid.
        kind: u64,
        /// Linear address of the descriptor.
        descriptor: u64,
        /// How the instruction names both.
        operands: Operands,
    },
    /// RDPID.
    Rdpid,
    /// XSAVES or XRSTORS.
    Xsaves,
    /// A descriptor-table register is read (SGDT ...) or written (LGDT ...).
    Table {
        /// Which.
        register: TableRegister,
        /// Written.
        write: bool,
    },
    /// A call, and its relatives. Without a bus that takes it, #UD.
    Call(Call),
    /// An instruction of VMX with CR4.VMXE set, before its operands are read and its privilege is checked: natively
    /// the bus carries it out ([`Bus::vmx`]).
    Vmx {
        /// Which.
        instruction: VmxInstruction,
        /// What it is about.
        operands: Operands,
    },
}

/// What an instruction has done, for hypervisors that are told afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// Control register `0`, 4 or 8 was written.
    WriteCr(u8),
    /// EFER was written.
    WriteEfer,
}

/// What becomes of an intercepted instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intercepted {
    /// The CPU does what the instruction does on bare metal, with the bus' CPUID, MSRs and time.
    Native,
    /// Likewise, with this value in place of the control register that is read, or of the value that is written.
    Value(u64),
    /// The bus has done it, state included: go on behind the instruction.
    Done,
    /// The bus has put another world's state in place of this one (a guest was entered, or left). The CPU drops
    /// what it was doing, and goes on at the new state's RIP.
    Switched,
    /// `run` ends with [`crate::CpuExit::Bus`], RIP at the instruction. Unless the caller moves RIP
    /// ([`crate::Cpu::skip_instruction`]) it runs again.
    Exit,
    /// The guest gets this exception in place of the instruction, RIP at the instruction.
    Reflect(Exception),
    /// These bytes are stored over the instruction, as the guest itself could at its CPL (or it gets the page
    /// fault), but by the emulator; then what is there runs.
    Rewrite([u8; 3]),
}

/// What a bus makes of something that is no instruction's to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// The CPU does what happens on bare metal.
    Native,
    /// As [`Intercepted::Switched`].
    Switched,
}

/// Something from outside the instruction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Non-maskable interrupt.
    Nmi,
    /// External interrupt with its vector; taking it acknowledged it.
    Interrupt(u8),
    /// It was for another world, in which the CPU goes on: see [`Intercepted::Switched`].
    Switched,
    /// Nothing but that the processor waits, as after HLT: [`crate::CpuExit::Halt`].
    Halted,
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

/// One processor's way to everything outside the CPU.
pub trait Bus {
    /// What the page at `gpa` (page aligned, without the encryption bit) is to `access`.
    ///
    /// How often it is asked depends on what the CPU remembers, so the answer must not depend on that.
    fn resolve(&mut self, state: &mut CpuState, gpa: u64, access: Access) -> Resolve;

    /// Reads registers of a device: 1 to 32 bytes at a system-physical address, in one page.
    ///
    /// Only a bus that answers [`Resolve::Device`] is asked.
    fn device_read(&mut self, state: &mut CpuState, address: u64, data: &mut [u8]) {
        let _ = (state, address);
        data.fill(0xff);
    }

    /// Writes registers of a device, likewise.
    fn device_write(&mut self, state: &mut CpuState, address: u64, data: &[u8]) {
        let _ = (state, address, data);
    }

    /// Reads `size` (1, 2 or 4) bytes from a port; `None` has `run` end in [`crate::CpuExit::PortIn`].
    fn port_read(&mut self, state: &mut CpuState, port: u16, size: u8) -> Option<u32> {
        let _ = (state, port, size);
        None
    }

    /// Writes `size` (1, 2 or 4) bytes to a port; false has `run` end in [`crate::CpuExit::PortOut`].
    fn port_write(&mut self, state: &mut CpuState, port: u16, size: u8, value: u32) -> bool {
        let _ = (state, port, size, value);
        false
    }

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
    fn tsc(&mut self, state: &CpuState) -> u64;

    /// An instruction that may be intercepted is about to execute (after its privilege checks).
    /// `state.rip` is at the instruction, `length` its bytes.
    fn intercept(&mut self, state: &mut CpuState, what: Intercept, length: u8) -> Intercepted {
        let _ = (state, what, length);
        Intercepted::Native
    }

    /// Carries out an instruction of VMX, whose operands were read; `state.rip` is at the instruction.
    fn vmx(&mut self, state: &mut CpuState, call: VmxCall) -> VmxAnswer {
        let _ = (state, call);
        VmxAnswer::Reflect(Exception::ud())
    }

    /// An instruction has done something; `state.rip` is behind it.
    fn after(&mut self, state: &mut CpuState, what: Trap) -> Reaction {
        let _ = (state, what);
        Reaction::Native
    }

    /// Some instructions are about to be executed one after the other from RIP on, so many and so many bytes of them.
    /// Only with [`crate::DebugControl::records`], and never an answer to anything.
    fn entered(&mut self, state: &CpuState, instructions: usize, bytes: u64) {
        let _ = (state, instructions, bytes);
    }

    /// An instruction has accessed memory with LOCK. Only with [`crate::DebugControl::tells_locked`].
    fn locked(&mut self, state: &mut CpuState) {
        let _ = state;
    }

    /// Of those that were told last, so many at the end, from `rip` on, were not executed: an exception came before the
    /// one there had completed, or it is executed in another way.
    fn cut_short(&mut self, rip: u64, instructions: usize) {
        let _ = (rip, instructions);
    }

    /// An exception was raised, and nothing of it is delivered yet; `state.rip` is where it came from,
    /// [`CpuState::vectoring`] what was being delivered. Asked once for each exception that is raised, and again
    /// for the double fault that it makes together with the one that was being delivered. Not asked for
    /// [`CpuState::injection`].
    fn exception(&mut self, state: &mut CpuState, exception: Exception) -> Reaction {
        let _ = (state, exception);
        Reaction::Native
    }

    /// A triple fault, which ends in [`crate::CpuExit::Shutdown`] natively.
    fn shutdown(&mut self, state: &mut CpuState) -> Reaction {
        let _ = state;
        Reaction::Native
    }

    /// Takes the next event that the CPU can accept now; asked after [`crate::Kick::raise_event`], when `run`
    /// begins, in a new world, and again whenever the guest opens a window that was closed then.
    fn take_event(&mut self, state: &mut CpuState, interrupts_open: bool, nmis_open: bool) -> Option<Event> {
        let _ = (state, interrupts_open, nmis_open);
        None
    }

    /// CR8 was written: the task priority of the local APIC.
    fn set_task_priority(&mut self, state: &mut CpuState, cr8: u64) {
        let _ = (state, cr8);
    }
}
