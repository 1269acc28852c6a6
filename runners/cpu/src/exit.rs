//! Why [`crate::Cpu::run`] returned.

use crate::exception::Exception;

/// Up to this many bytes of an instruction are reported.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// The data of one MMIO access or port access: 1 to 8 bytes, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datum {
    /// The bytes; those from `len` on are zero.
    pub bytes: [u8; 8],
    /// How many there are.
    pub len: u8,
}

impl Datum {
    /// The bytes of the access.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// At most 8 bytes as a datum; more are cut off.
    #[must_use]
    pub fn from_slice(data: &[u8]) -> Datum {
        let len = data.len().min(8);
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&data[..len]);
        Datum { bytes, len: len as u8 }
    }
}

/// Why the CPU stopped. All exits are resumable: [`crate::Cpu::run`] goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuExit {
    /// IN, INS: answer with [`crate::Cpu::complete_port_in`]. RIP is at the instruction; if the
    /// caller moves it before running on, the completion is forgotten (KVM: `complete_fast_pio_in`).
    PortIn {
        /// Port number.
        port: u16,
        /// Bytes per element: 1, 2 or 4.
        size: u8,
        /// Elements wanted: 1, or for REP INS as many as KVM reads ahead (at most 1024 bytes).
        count: u32,
    },
    /// OUT: RIP is at the instruction, which completes when `run` is called again with RIP
    /// unmoved. OUTS: one element, registers already advanced, as KVM's emulator does.
    PortOut {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes.
        data: Datum,
    },
    /// A read of MMIO, or one fragment of it (at most 8 bytes, in one page): answer with
    /// [`crate::Cpu::complete_mmio_read`]. RIP is at the instruction.
    MmioRead {
        /// Guest-physical address, encryption bit removed.
        gpa: u64,
        /// 1 to 8 bytes.
        len: u8,
    },
    /// A write of MMIO, or one fragment of it. The registers are those after the instruction
    /// (REP: after the iteration), as KVM's emulator does.
    MmioWrite {
        /// Guest-physical address, encryption bit removed.
        gpa: u64,
        /// 1 to 8 bytes.
        data: Datum,
    },
    /// HLT; RIP is behind it. Running on goes on there.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The bus said [`crate::Resolve::Exit`] or [`crate::Intercepted::Exit`]; it knows why.
    Bus,
    /// An instruction that this CPU does not implement; nothing of it was executed.
    UnknownInstruction {
        /// Its address (RIP; add CS base outside long mode).
        rip: u64,
        /// What is there.
        bytes: [u8; MAX_INSTRUCTION_BYTES],
        /// How many of `bytes` could be fetched.
        len: u8,
    },
    /// Instructions cannot be fetched from, or page tables walked in, MMIO at `gpa`.
    NoMemory {
        /// Guest-physical address of the page.
        gpa: u64,
    },
    /// A debug exception or breakpoint that [`crate::DebugControl`] keeps for the host.
    Debug {
        /// #DB or #BP.
        exception: Exception,
        /// Linear address of the instruction (#BP) or of the next one (#DB traps).
        pc: u64,
        /// DR6 with the causes.
        dr6: u64,
        /// DR7 in force.
        dr7: u64,
    },
    /// [`crate::Kick::stop`] was called.
    Stopped,
    /// [`crate::CpuState::instructions`] has reached [`crate::CpuState::turn_ends`].
    Turn,
}
