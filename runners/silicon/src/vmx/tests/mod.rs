//! A host in VMX operation and a guest in a little memory, for tests of one rule each.

mod events;
mod exits;
mod extended_page_tables;
mod instructions;
mod random;
mod refused_entries;
mod switch;
mod virtual_apic;

use privet_cpu::state::{Shadow, cr0, cr4, efer};
use privet_cpu::{
    CpuState, Intercept, Intercepted, OperandPlace, Operands, Seg, Segment, VmxAnswer, VmxCall, VmxInstruction, flags,
};

use super::capability::{ENTRY_FIXED, EXIT_FIXED, PIN_DEFAULT1, PROC_FIXED};
use super::controls::{entry, exit, pin, proc, proc2};
use super::field::Field;
use super::{Features, Vmx, field, vmcs};
use crate::memory::{PhysicalMemory, read_u32, write_u32, write_u64};
use crate::test_board::TestBoard;

pub(crate) const VMXON_REGION: u64 = 0x1000;
pub(crate) const VMCS: u64 = 0x2000;
pub(crate) const HOST_RIP: u64 = 0xffff_8000_0000_1000;
/// Where the host goes on after an exit.
pub(crate) const EXIT_RIP: u64 = 0xffff_8000_0000_2000;
pub(crate) const GUEST_RIP: u64 = 0x40_0000;
pub(crate) const MSR_BITMAP: u64 = 0x4000;
pub(crate) const IO_BITMAPS: [u64; 2] = [0x5000, 0x6000];
pub(crate) const VIRTUAL_APIC: u64 = 0x7000;
pub(crate) const APIC_ACCESS: u64 = 0x8000;
pub(crate) const DESCRIPTOR: u64 = 0x9000;
pub(crate) const MSR_LIST: u64 = 0xb000;
pub(crate) const LOG: u64 = 0xc000;
pub(crate) const EPT: u64 = 0x10_0000;
/// A page that the EPT of [`Bench::with_ept`] maps, and where.
pub(crate) const GPA: u64 = 0x7654_3000;
pub(crate) const PAGE: u64 = 0x14_0000;

/// What a test works with.
pub(crate) struct Bench {
    pub(crate) vmx: Vmx,
    pub(crate) state: CpuState,
    pub(crate) board: TestBoard,
}

impl Bench {
    /// A host in long mode that could execute VMXON, and two regions of this processor's revision.
    pub(crate) fn before_vmxon() -> Bench {
        let mut bench = Bench { vmx: Vmx::new(Features::current()), state: host(), board: TestBoard::new() };
        for region in [VMXON_REGION, VMCS] {
            write_u32(&mut bench.board, region, vmcs::REVISION);
        }
        bench
    }

    /// A host in VMX operation, without a current VMCS.
    pub(crate) fn in_operation() -> Bench {
        let mut bench = Bench::before_vmxon();
        bench.succeeds(VmxCall::Vmxon(VMXON_REGION));
        bench
    }

    /// Likewise, with a current VMCS.
    pub(crate) fn with_vmcs() -> Bench {
        let mut bench = Bench::in_operation();
        bench.succeeds(VmxCall::Vmclear(VMCS));
        bench.succeeds(VmxCall::Vmptrld(VMCS));
        bench
    }

    /// Whether an instruction may be executed.
    pub(crate) fn permit(&mut self, instruction: VmxInstruction) -> Intercepted {
        let operands = Operands { register: 0, place: OperandPlace::Nothing };
        let what = Intercept::Vmx { instruction, operands };
        self.vmx.intercept(&mut self.board, &mut self.state, what, 3)
    }

    pub(crate) fn call(&mut self, call: VmxCall) -> VmxAnswer {
        self.vmx.vmx(&mut self.board, &mut self.state, call)
    }

    /// An instruction that has to end in VMsucceed.
    pub(crate) fn succeeds(&mut self, call: VmxCall) -> VmxAnswer {
        let answer = self.call(call);
        assert_eq!(self.state.rflags & (flags::CF | flags::ZF), 0, "{call:x?}");
        answer
    }

    /// How an instruction fails: `Some(0)` for VMfailInvalid, the error of VMfailValid, `None` if it does not.
    pub(crate) fn failure(&mut self, call: VmxCall) -> Option<u64> {
        self.call(call);
        match self.state.rflags & (flags::CF | flags::ZF) {
            0 => None,
            flags::CF => Some(0),
            _ => Some(self.get(field::INSTRUCTION_ERROR)),
        }
    }

    /// A VMCS of a guest in long mode that VM entry accepts, with no exit but those that all guests have.
    pub(crate) fn ready() -> Bench {
        let mut bench = Bench::with_vmcs();
        bench.set(field::PIN, (PIN_DEFAULT1 | pin::EXTERNAL_INTERRUPT | pin::NMI).into());
        bench.set(field::PROC, (PROC_FIXED | proc::MSR_BITMAPS | proc::SECONDARY).into());
        bench.set(field::PROC2, 0);
        bench.set(field::EXIT, (EXIT_FIXED | exit::HOST_64 | exit::ACKNOWLEDGE | exit::LOAD_EFER).into());
        bench.set(field::ENTRY, (ENTRY_FIXED | entry::IA32E | entry::LOAD_EFER).into());
        let pages = [
            (field::MSR_BITMAP, MSR_BITMAP),
            (field::IO_BITMAP_A, IO_BITMAPS[0]),
            (field::IO_BITMAP_B, IO_BITMAPS[1]),
            (field::VIRTUAL_APIC, VIRTUAL_APIC),
            (field::APIC_ACCESS, APIC_ACCESS),
            (field::POSTED_DESCRIPTOR, DESCRIPTOR),
            (field::PML_ADDRESS, LOG),
            (field::EPTP, EPT | 0x1e),
            (field::VPID, 5),
            (field::LINK, u64::MAX),
            (field::TSC_MULTIPLIER, 1 << 48),
        ];
        let host = bench.state.clone();
        let registers = [
            (field::HOST_CR0, host.cr0),
            (field::HOST_CR3, host.cr3),
            (field::HOST_CR4, host.cr4),
            (field::HOST_EFER, host.efer),
            (field::HOST_CS, 0x10),
            (field::HOST_SS, 0x18),
            (field::HOST_TR, 0x40),
            (field::HOST_RIP, EXIT_RIP),
            (field::HOST_RSP, 0xffff_8000_0000_8000),
            (field::GUEST_CR0, host.cr0),
            (field::GUEST_CR3, 0x9000),
            (field::GUEST_CR4, host.cr4),
            (field::GUEST_EFER, efer::LME | efer::LMA),
            (field::GUEST_RIP, GUEST_RIP),
            (field::GUEST_RSP, 0x7000),
            (field::GUEST_RFLAGS, 2),
            (field::GUEST_DR7, 0x400),
            (field::TR_RIGHTS, 0x8b),
            (field::TR_LIMIT, 0x67),
            (field::LDTR_RIGHTS, 1 << 16),
        ];
        for (field, value) in pages.into_iter().chain(registers) {
            bench.set(field, value);
        }
        for fields in field::SEGMENTS {
            bench.set(fields.rights, 0xc093);
            bench.set(fields.limit, 0xffff_ffff);
        }
        bench.set(field::CS_RIGHTS, 0xa09b);
        bench
    }

    /// Likewise, with EPT, which maps [`GPA`] with these bits in the last entry.
    pub(crate) fn with_ept(leaf: u64) -> Bench {
        let mut bench = Bench::ready();
        bench.add(field::PROC2, proc2::EPT);
        for (level, table) in (1..=4).rev().zip([EPT, EPT + 0x1000, EPT + 0x2000, EPT + 0x3000]) {
            let at = table + (GPA >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
            write_u64(&mut bench.board, at, if level == 1 { leaf } else { (table + 0x1000) | 7 });
        }
        bench
    }

    /// Sets bits of a field.
    pub(crate) fn add(&mut self, field: Field, bits: u32) {
        let value = self.get(field);
        self.set(field, value | u64::from(bits));
    }

    /// Clears bits of a field.
    pub(crate) fn remove(&mut self, field: Field, bits: u32) {
        let value = self.get(field);
        self.set(field, value & !u64::from(bits));
    }

    /// VMLAUNCH that has to enter the guest.
    pub(crate) fn enter(&mut self) {
        assert_eq!(self.call(VmxCall::Vmlaunch), VmxAnswer::Switched, "error {}", self.get(field::INSTRUCTION_ERROR));
        assert!(self.vmx.in_guest(), "the entry has failed with {:#x}", self.get(field::EXIT_REASON));
    }

    /// The guest's next instruction, of 3 bytes.
    pub(crate) fn instruction(&mut self, what: Intercept) -> Intercepted {
        self.vmx.intercept(&mut self.board, &mut self.state, what, 3)
    }

    /// Exit reason, qualification and instruction length of an exit that has happened.
    pub(crate) fn exit(&mut self) -> [u64; 3] {
        assert!(!self.vmx.in_guest(), "the guest still runs");
        assert_eq!(self.state.rip, EXIT_RIP);
        [field::EXIT_REASON, field::QUALIFICATION, field::INSTRUCTION_LENGTH].map(|field| self.get(field))
    }

    /// A field of the VMCS.
    pub(crate) fn get(&mut self, field: Field) -> u64 {
        vmcs::get(&mut self.board, VMCS, field)
    }

    /// Sets a field of the VMCS.
    pub(crate) fn set(&mut self, field: Field, value: u64) {
        vmcs::set(&mut self.board, VMCS, field, value);
    }
}

fn host() -> CpuState {
    let mut state = CpuState::reset();
    state.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP;
    state.cr3 = 0xa000;
    state.cr4 = cr4::PAE | cr4::VMXE;
    state.efer = efer::LME | efer::LMA | efer::NXE;
    state.rip = HOST_RIP;
    state.segments[Seg::Cs as usize] = Segment::code64(0x10);
    state.segments[Seg::Ss as usize] = Segment::data(0x18);
    state
}
