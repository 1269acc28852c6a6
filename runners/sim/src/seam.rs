//! SEAMCALL: a processor calls Intel's TDX module, which the board has loaded.

use privet_cpu::state::gpr::RAX;
use privet_cpu::{CpuState, Exception, Intercepted, flags};
use privet_silicon::tdx::{HostLeaf, Registers, Surroundings};

use crate::wiring::Wiring;

/// RAX of a call of the P-SEAM loader, by which hosts replace the module.
const SEAM_LOADER: u64 = 1 << 63;

/// The arithmetic flags, in which instructions of VMX tell how they ended.
const ARITHMETIC: u64 = flags::CF | flags::PF | flags::AF | flags::ZF | flags::SF | flags::OF;

impl Wiring<'_> {
    /// SEAMCALL of a host (SDM volume 3, SEAMCALL): #UD outside of VMX operation, #GP outside of ring 0. A loader that is not there
    /// is VMfailInvalid.
    pub(crate) fn seamcall(&mut self, state: &mut CpuState) -> Intercepted {
        if self.board.tdx.is_none() || !self.board.virtualization[self.cpu].in_vmx_operation() || !state.code64() {
            return Intercepted::Reflect(Exception::ud());
        }
        if state.cpl() != 0 {
            return Intercepted::Reflect(Exception::gp(0));
        }
        state.rflags &= !ARITHMETIC;
        let rax = state.gpr[RAX];
        if rax & SEAM_LOADER != 0 {
            state.rflags |= flags::CF;
            return Intercepted::Done;
        }
        if rax as u16 == HostLeaf::VpEnter as u16 {
            let cpu = self.cpu;
            let Some((tdx, mut surroundings)) = self.module(state) else { return Intercepted::Done };
            return tdx.vp_enter(&mut surroundings, state, cpu);
        }
        let Some(module) = &mut self.board.tdx else { return Intercepted::Done };
        let (processors, cpu, cpus) = (self.board.processors, self.cpu, self.board.lapics.len());
        let snapshot = &*state;
        let cpuid = |leaf, subleaf| processors.cpuid(cpu, cpus, snapshot, leaf, subleaf);
        let mut around = Surroundings {
            memory: self.memory,
            processor: cpu,
            tsc: self.board.clock.at(state.instructions),
            cpuid: &cpuid,
        };
        let mut registers = Registers::of(state);
        state.gpr[RAX] = module.seamcall(&mut around, rax, &mut registers);
        registers.store(state);
        Intercepted::Done
    }
}
