//! The architectural state of a CPU, as plain data: KVM_GET_* and KVM_SET_* are served from it.

use serde::{Deserialize, Serialize};

use crate::bus::Encryption;
use crate::config::Config;
use crate::exception::Exception;
use crate::flags;
use crate::fpu::FpuState;
use crate::segment::{LDT, Seg, Segment, TSS_BUSY, Table};

/// Indices of the general registers, as instructions encode them.
#[expect(missing_docs, reason = "the names of the registers say it")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
}

/// Bits of CR0.
#[expect(missing_docs, reason = "the names of the bits say it")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4.
#[expect(missing_docs, reason = "the names of the bits say it")]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
    /// What a guest may set on every x86-64 processor, whatever its CPUID says.
    pub const BASELINE: u64 = VME | PVI | TSD | DE | PSE | PAE | MCE | PGE | PCE | OSFXSR | OSXMMEXCPT;
}

/// Bits of EFER.
#[expect(missing_docs, reason = "the names of the bits say it")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const FFXSR: u64 = 1 << 14;
}

/// Interrupts held off for one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Shadow {
    /// None.
    #[default]
    None,
    /// After STI.
    Sti,
    /// After MOV SS or POP SS.
    MovSs,
}

/// An event that is to be delivered before the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Injection {
    /// An exception, faulting at the current RIP.
    Exception(Exception),
    /// An external interrupt.
    Interrupt(u8),
    /// INT n, with RIP already behind it.
    SoftInterrupt(u8),
    /// INT3 or INTO, with RIP already behind it.
    SoftException(u8),
    /// A non-maskable interrupt.
    Nmi,
}

/// Whose translations the CPU uses: the host's, or one guest's (an ASID, or a VPID with its EPT).
///
/// Translations of each world are kept apart, and a switch drops none: who switches flushes what has to go
/// ([`crate::Kick`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Serialize, Deserialize)]
pub struct World(pub u32);

impl World {
    /// The world after RESET, in which the hypervisor runs.
    pub const HOST: World = World(0);
}

/// Everything that the architecture keeps in a logical processor.
///
/// Change it only while the CPU is not running, or in a [`crate::Bus`] method that is given it.
/// After a change of control registers, EFER or the encryption from outside `run`, the CPU notices by
/// itself when it runs again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15 (see [`gpr`]).
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS (see [`Seg`]); in long mode the bases of FS and GS are the MSRs'.
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Control register 0 (see [`cr0`]).
    pub cr0: u64,
    /// Address of the last page fault.
    pub cr2: u64,
    /// Page table root.
    pub cr3: u64,
    /// Control register 4 (see [`cr4`]).
    pub cr4: u64,
    /// Task priority, 0 to 15.
    pub cr8: u64,
    /// Extended features (see [`efer`]).
    pub efer: u64,
    /// Enabled XSAVE components.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// x87, SSE, AVX and PKRU.
    pub fpu: FpuState,
    /// MSR 0xC0000081.
    pub star: u64,
    /// MSR 0xC0000082.
    pub lstar: u64,
    /// MSR 0xC0000083.
    pub cstar: u64,
    /// MSR 0xC0000084.
    pub sfmask: u64,
    /// MSR 0xC0000102.
    pub kernel_gs_base: u64,
    /// MSR 0xC0000103.
    pub tsc_aux: u64,
    /// MSR 0x174.
    pub sysenter_cs: u64,
    /// MSR 0x175.
    pub sysenter_esp: u64,
    /// MSR 0x176.
    pub sysenter_eip: u64,
    /// MSR 0x277.
    pub pat: u64,
    /// MSR 0x1B: read by the CPU, written through the bus, whose local APIC it is.
    pub apic_base: u64,
    /// MSR 0xDA0.
    pub xss: u64,
    /// To be delivered before the next instruction.
    pub injection: Option<Injection>,
    /// Interrupts are held off until the next instruction has executed.
    pub shadow: Shadow,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: bool,
    /// What is being delivered, while the bus is asked something during that: a guest's exit then has to tell it.
    pub vectoring: Option<Injection>,
    /// Whose translations are in use.
    pub world: World,
    /// How page tables tell private from shared in this world.
    pub encryption: Encryption,
    /// How many of the upper bits of [`crate::Config::physical_bits`] are a KeyID in this world, which page tables may
    /// not have: in a guest with EPT none.
    pub keyid_bits: u8,
    /// How many instructions have retired (a repeated one with its last iteration, and once for every 1024 before),
    /// events were delivered and worlds entered: none of these takes no time.
    pub instructions: u64,
    /// `run` ends with [`crate::CpuExit::Turn`] behind the block in which `instructions` gets here.
    pub turn_ends: u64,
}

impl Default for CpuState {
    fn default() -> CpuState {
        CpuState::reset()
    }
}

impl CpuState {
    /// The state after RESET: real mode at 0xFFFFFFF0 (SDM volume 3, table 10-1), with RDX as KVM sets
    /// it (family 6).
    #[must_use]
    pub fn reset() -> CpuState {
        let mut state = CpuState {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: flags::RESERVED_ONE,
            segments: [Segment::real_mode(0, false); 6],
            tr: Segment { limit: 0xffff, kind: TSS_BUSY, present: true, ..Segment::default() },
            ldtr: Segment { limit: 0xffff, kind: LDT, present: true, ..Segment::default() },
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            fpu: FpuState::default(),
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            apic_base: 0xfee0_0900,
            xss: 0,
            injection: None,
            shadow: Shadow::None,
            nmi_blocked: false,
            vectoring: None,
            world: World::HOST,
            encryption: Encryption::None,
            keyid_bits: 0,
            instructions: 0,
            turn_ends: u64::MAX,
        };
        state.gpr[gpr::RDX] = 0x600;
        state.segments[Seg::Cs as usize] =
            Segment { base: 0xffff_0000, selector: 0xf000, ..Segment::real_mode(0, true) };
        state
    }

    /// The width of physical addresses that page tables may have.
    pub(crate) fn physical_bits(&self, config: &Config) -> u8 {
        config.physical_bits.saturating_sub(self.keyid_bits)
    }

    /// One segment register.
    #[must_use]
    pub fn segment(&self, seg: Seg) -> &Segment {
        &self.segments[seg as usize]
    }

    /// Current privilege level: the DPL of SS.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.segments[Seg::Ss as usize].dpl
    }

    /// In long mode (64-bit or compatibility submode).
    #[must_use]
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// In the 64-bit submode of long mode.
    #[must_use]
    pub fn code64(&self) -> bool {
        self.long_mode() && self.segments[Seg::Cs as usize].long
    }

    /// In protected mode (long mode included).
    #[must_use]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Linear address of the next instruction.
    #[must_use]
    pub fn linear_rip(&self) -> u64 {
        if self.code64() {
            self.rip
        } else {
            (self.segments[Seg::Cs as usize].base.wrapping_add(self.rip)) & 0xffff_ffff
        }
    }
}
