//! The instructions of SVM (APM volume 3; volume 2, 15.5.1, 15.13, 15.17).

use privet_cpu::state::gpr;
use privet_cpu::{Call, CpuState, Exception, Intercepted, flags};

use super::Svm;
use super::exit::Exit;
use super::intercepts::Code;
use super::save;
use super::vmcb::SAVE;
use crate::Rule;
use crate::board::{Board, Flush};
use crate::rmp::{self, PageSize};
use privet_cpu::state::World;

impl Svm {
    /// An instruction of SVM, at RIP and `length` bytes long; `None` for one of something else.
    pub(super) fn call(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        call: Call,
        length: u8,
    ) -> Option<Intercepted> {
        let code = match call {
            Call::Vmrun => Code::VMRUN,
            Call::Vmload => Code::VMLOAD,
            Call::Vmsave => Code::VMSAVE,
            Call::Stgi => Code::STGI,
            Call::Clgi => Code::CLGI,
            Call::Invlpga => Code::INVLPGA,
            Call::Skinit => Code::SKINIT,
            Call::Vmmcall => Code::VMMCALL,
            Call::Rsm => Code::RSM,
            _ => return self.snp_call(board, state, call, length),
        };
        if let Err(exception) = self.permitted(state, call) {
            return Some(Intercepted::Reflect(exception));
        }
        if self.intercepts(code) {
            let exit = Exit::instruction(code, 0, 0, next_rip(state, length));
            return Some(self.switch(board, state, exit));
        }
        Some(self.execute(board, state, call, length))
    }

    /// Exceptions come before intercepts (15.7): SVM not enabled, real mode, CPL, and the address in rAX.
    fn permitted(&self, state: &CpuState, call: Call) -> Result<(), Exception> {
        match call {
            // VMMCALL is a guest's at any CPL; it is its intercept that makes it an instruction.
            Call::Vmmcall | Call::Rsm => return Ok(()),
            // Reported by no CPUID here, and in need of EFER.SVME only otherwise.
            Call::Skinit if !self.intercepts(Code::SKINIT) => return Err(Exception::ud()),
            _ => {}
        }
        if !Svm::enabled(state) || !state.protected() || state.rflags & flags::VM != 0 {
            return Err(Exception::ud());
        }
        if state.cpl() != 0 {
            return Err(Exception::gp(0));
        }
        match call {
            Call::Vmrun | Call::Vmload | Call::Vmsave if !self.is_vmcb_address(address(state)) => Err(Exception::gp(0)),
            _ => Ok(()),
        }
    }

    fn is_vmcb_address(&self, pa: u64) -> bool {
        pa & 0xfff == 0 && pa >> self.features.physical_bits == 0
    }

    fn execute(&mut self, board: &mut impl Board, state: &mut CpuState, call: Call, length: u8) -> Intercepted {
        match call {
            Call::Vmrun if self.holds(Rule::VmcbOwned) && !hypervisor_owns(board, address(state)) => {
                return Intercepted::Reflect(Exception::gp(0));
            }
            // Software has to name one first (15.30.4 and 15.36.16).
            Call::Vmrun if self.hsave_pa == 0 && self.holds(Rule::SaveAreaNamed) => {
                return Intercepted::Reflect(Exception::gp(0));
            }
            Call::Vmrun => {
                self.vmrun(board, state, address(state), next_rip(state, length));
                return Intercepted::Switched;
            }
            Call::Vmload => save::load_additional(board, address(state) + SAVE, state),
            Call::Vmsave => save::store_additional(board, address(state) + SAVE, state),
            Call::Stgi => {
                self.gif = true;
                board.raise_event();
            }
            Call::Clgi => self.gif = false,
            Call::Invlpga => {
                let asid = state.gpr[gpr::RCX] as u32;
                board.flush(Flush::Page(World(asid), address(state)));
            }
            // VMMCALL that nobody intercepts, SKINIT, and RSM outside of system management mode.
            _ => return Intercepted::Reflect(Exception::ud()),
        }
        Intercepted::Done
    }
}

/// With SNP enabled a VMCB and the host save area have to be the hypervisor's pages (15.36.16 and table 15-41).
pub(super) fn hypervisor_owns(board: &mut impl Board, pa: u64) -> bool {
    board.rmp().is_none_or(|rmp| rmp::may_write_shared(&rmp, board, pa, PageSize::Size4K))
}

/// rAX as wide as addresses are.
fn address(state: &CpuState) -> u64 {
    if state.code64() { state.gpr[gpr::RAX] } else { state.gpr[gpr::RAX] & 0xffff_ffff }
}

/// The address of the instruction behind the one at RIP.
pub(super) fn next_rip(state: &CpuState, length: u8) -> u64 {
    let next = state.rip.wrapping_add(u64::from(length));
    if state.code64() { next } else { next & 0xffff_ffff }
}
