//! Hypercalls of guests with plain registers.
//!
//! Source: `arch/x86/kvm/x86.c:____kvm_emulate_hypercall`.

use privet_cpu::CpuState;
use privet_cpu::state::gpr;

use crate::defect::Defect;
use crate::host_memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::log;
use crate::options::Options;
use crate::run_page::{self, RunPage, reason};

const VAPIC_POLL_IRQ: u64 = 1;
const SCHED_YIELD: u64 = 11;
const MAP_GPA_RANGE: u64 = 12;

const EPERM: i64 = 1;
const EINVAL: i64 = 22;
const ENOSYS: i64 = 1000;

/// `hypercall.ret`, from the start of `kvm_run`.
pub(crate) const RET: usize = run_page::EXIT + 56;

/// What becomes of a hypercall.
pub(crate) enum Answer {
    /// The guest gets this in RAX.
    Return(u64),
    /// User space is asked; the exit is in `kvm_run`.
    Exit,
}

/// Whether the guest's registers count in full.
pub(crate) fn is_64_bit(state: &CpuState) -> bool {
    state.code64()
}

/// A hypercall. `enabled` are those that exit.
pub(crate) fn handle(state: &CpuState, run: &RunPage, enabled: u64, options: &Options) -> Answer {
    let long = is_64_bit(state);
    let argument = |index: usize| if long { state.gpr[index] } else { state.gpr[index] & 0xffff_ffff };
    let number = argument(gpr::RAX);
    let [a0, a1, a2] = [gpr::RBX, gpr::RCX, gpr::RDX].map(argument);
    let error = |errno: i64| {
        let ret = -errno as u64;
        run.set(RET, ret);
        Answer::Return(if long { ret } else { ret & 0xffff_ffff })
    };
    if state.cpl() != 0 && !options.has(Defect::HypercallFromUserMode) {
        return error(EPERM);
    }
    match number {
        // The vCPUs are threads of the host's scheduler, which is not told to yield.
        VAPIC_POLL_IRQ | SCHED_YIELD => error(0),
        MAP_GPA_RANGE => {
            if enabled & 1 << MAP_GPA_RANGE == 0 && !options.has(Defect::HypercallAlwaysExits) {
                return error(ENOSYS);
            }
            let first = a0 >> PAGE_SHIFT;
            if !a0.is_multiple_of(PAGE_SIZE) || first.wrapping_add(a1) <= first {
                return error(EINVAL);
            }
            let args = if options.has(Defect::HypercallArgsSwapped) { [a1, a0, a2] } else { [a0, a1, a2] };
            run.set(run_page::EXIT_REASON, reason::HYPERCALL);
            run.set(run_page::EXIT, MAP_GPA_RANGE);
            for (index, argument) in args.into_iter().enumerate() {
                run.set(run_page::EXIT + 8 + index * 8, argument);
            }
            run.set(RET, 0u64);
            run.set(RET + 8, u64::from(long));
            Answer::Exit
        }
        unknown => {
            log::once(|| format!("hypercall {unknown} of a guest: the model does not have it"));
            error(ENOSYS)
        }
    }
}
