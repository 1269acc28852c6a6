//! A host in VMX operation and a guest in a little memory, for tests of one rule each.

mod instructions;

use privet_cpu::state::{cr0, cr4, efer};
use privet_cpu::{
    CpuState, Intercept, Intercepted, OperandPlace, Operands, Seg, Segment, VmxAnswer, VmxCall, VmxInstruction, flags,
};

use super::field::Field;
use super::{Features, Vmx, field, vmcs};
use crate::memory::write_u32;
use crate::test_board::TestBoard;

pub(crate) const VMXON_REGION: u64 = 0x1000;
pub(crate) const VMCS: u64 = 0x2000;
pub(crate) const HOST_RIP: u64 = 0xffff_8000_0000_1000;

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

    /// A field of the VMCS.
    pub(crate) fn get(&mut self, field: Field) -> u64 {
        vmcs::get(&mut self.board, VMCS, field)
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
