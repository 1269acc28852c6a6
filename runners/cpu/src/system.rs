//! System instructions without a family of their own: TLB, CPUID, MSRs, time, HLT, calls to the
//! hypervisor.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::{Call, Intercept, Trap};
use crate::core::{Abort, Core};
use crate::decode;
use crate::exception::Exception;
use crate::exit::CpuExit;
use crate::intercept::Outcome;
use crate::memory::is_canonical;
use crate::op::{FLAT, Handler, Op};
use crate::state::cr4;
use crate::state::gpr::{RAX, RBX, RCX, RDX};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Cpuid => cpuid,
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpid => rdpid,
        M::Rdpmc => rdpmc,
        M::Hlt => hlt,
        M::Pause => pause,
        M::Wbinvd | M::Wbnoinvd => |core, op| privileged_nop(core, op, Intercept::Wbinvd),
        M::Invd => |core, op| privileged_nop(core, op, Intercept::Invd),
        M::Monitor => |core, op| privileged_nop(core, op, Intercept::Monitor),
        M::Mwait => |core, op| privileged_nop(core, op, Intercept::Mwait),
        M::Clflush | M::Clflushopt | M::Clwb => clflush,
        M::Rdpkru => rdpkru,
        M::Wrpkru => wrpkru,
        M::Vmcall => |core, op| call(core, op, Call::Vmcall),
        M::Vmmcall => |core, op| call(core, op, Call::Vmmcall),
        M::Vmgexit => |core, op| call(core, op, Call::Vmgexit),
        M::Tdcall => |core, op| call(core, op, Call::Tdcall),
        M::Pvalidate => |core, op| call(core, op, Call::Pvalidate),
        M::Rmpadjust => |core, op| call(core, op, Call::Rmpadjust),
        M::Rmpupdate => |core, op| call(core, op, Call::Rmpupdate),
        M::Rmpquery => |core, op| call(core, op, Call::Rmpquery),
        M::Psmash => |core, op| call(core, op, Call::Psmash),
        M::Vmrun => |core, op| call(core, op, Call::Vmrun),
        M::Vmload => |core, op| call(core, op, Call::Vmload),
        M::Vmsave => |core, op| call(core, op, Call::Vmsave),
        M::Stgi => |core, op| call(core, op, Call::Stgi),
        M::Clgi => |core, op| call(core, op, Call::Clgi),
        M::Invlpga => |core, op| call(core, op, Call::Invlpga),
        M::Skinit => |core, op| call(core, op, Call::Skinit),
        M::Rsm => |core, op| call(core, op, Call::Rsm),
        M::Seamcall => |core, op| call(core, op, Call::Seamcall),
        M::Vmfunc | M::Getsec | M::Encls | M::Enclu | M::Enclv | M::Seamret | M::Seamops => decode::undefined,
        _ => return None,
    })
}

impl Core<'_> {
    /// Stores 64 bits in EDX:EAX.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.s.gpr[RAX] = value & 0xffff_ffff;
        self.s.gpr[RDX] = value >> 32;
    }

    /// The 64 bits in EDX:EAX.
    pub(crate) fn edx_eax(&self) -> u64 {
        self.s.gpr[RAX] & 0xffff_ffff | self.s.gpr[RDX] << 32
    }
}

fn invlpg(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    let offset = core.offset(&op.mem);
    let linear =
        if op.mem.seg == FLAT { offset } else { core.s.segments[usize::from(op.mem.seg)].base.wrapping_add(offset) };
    if core.intercept(op, Intercept::Invlpg { linear })? != Outcome::Done {
        core.tlbs.flush_page(linear);
    }
    Ok(())
}

fn invpcid(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    let kind = core.get::<u64>(op, op.a)?;
    let linear = core.linear(&op.mem, 16, false)?;
    let operands = core.operands(op);
    if core.intercept(op, Intercept::Invpcid { kind, descriptor: linear, operands })? == Outcome::Done {
        return Ok(());
    }
    let descriptor = core.read_wide(linear)?;
    let address = (descriptor >> 64) as u64;
    if kind > 3 || descriptor >> 12 & 0xf_ffff_ffff_ffff != 0 || kind == 0 && !is_canonical(address, core.s.cr4) {
        return core.raise(Exception::gp(0));
    }
    let pcid = descriptor as u16 & 0xfff;
    if kind < 2 && pcid != 0 && core.s.cr4 & cr4::PCIDE == 0 {
        return core.raise(Exception::gp(0));
    }
    match kind {
        0 => core.tlbs.flush_page(address),
        1 => core.tlbs.flush_pcid(pcid),
        // With the global pages or without: there is no difference here.
        _ => core.tlbs.flush_world(),
    }
    Ok(())
}

fn cpuid(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.intercept(op, Intercept::Cpuid)? == Outcome::Done {
        return Ok(());
    }
    let (leaf, subleaf) = (core.s.gpr[RAX] as u32, core.s.gpr[RCX] as u32);
    let result = core.with_bus(|core| core.bus.cpuid(core.s, leaf, subleaf));
    for (register, value) in [(RAX, result.eax), (RBX, result.ebx), (RCX, result.ecx), (RDX, result.edx)] {
        core.s.gpr[register] = u64::from(value);
    }
    Ok(())
}

fn rdmsr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    if core.intercept(op, Intercept::Rdmsr)? == Outcome::Done {
        return Ok(());
    }
    let index = core.s.gpr[RCX] as u32;
    let value = match core.s.own_msr(index) {
        Some(value) => value,
        None => match core.with_bus(|core| core.bus.rdmsr(core.s, index)) {
            Ok(value) => value,
            Err(exception) => return core.raise(exception),
        },
    };
    core.set_edx_eax(value);
    Ok(())
}

fn wrmsr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    if core.intercept(op, Intercept::Wrmsr)? == Outcome::Done {
        return Ok(());
    }
    let index = core.s.gpr[RCX] as u32;
    let value = core.edx_eax();
    let written = match core.s.set_own_msr(&core.config, index, value) {
        Some(written) => written,
        None => core.with_bus(|core| core.bus.wrmsr(core.s, index, value)),
    };
    if let Err(exception) = written {
        return core.raise(exception);
    }
    if index == crate::msr::EFER {
        core.tlbs.flush_world();
        return core.after(Trap::WriteEfer);
    }
    Ok(())
}

fn check_tsc(core: &mut Core<'_>) -> Result<(), Abort> {
    if core.s.cr4 & cr4::TSD != 0 { core.require_cpl0() } else { Ok(()) }
}

fn rdtsc(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    check_tsc(core)?;
    if core.intercept(op, Intercept::Rdtsc)? != Outcome::Done {
        let tsc = core.with_bus(|core| core.bus.tsc(core.s));
        core.set_edx_eax(tsc);
    }
    Ok(())
}

fn rdtscp(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    check_tsc(core)?;
    if core.intercept(op, Intercept::Rdtscp)? != Outcome::Done {
        let tsc = core.with_bus(|core| core.bus.tsc(core.s));
        core.set_edx_eax(tsc);
        core.s.gpr[RCX] = core.s.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

fn rdpid(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.intercept(op, Intercept::Rdpid)?;
    let value = core.s.tsc_aux;
    core.set_register::<u64>(op.a, value);
    Ok(())
}

fn rdpmc(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.s.cr4 & cr4::PCE == 0 {
        core.require_cpl0()?;
    }
    if core.intercept(op, Intercept::Rdpmc)? != Outcome::Done {
        // No counters.
        return core.raise(Exception::gp(0));
    }
    Ok(())
}

fn hlt(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    if core.intercept(op, Intercept::Hlt)? != Outcome::Done {
        core.exit_after(CpuExit::Halt);
    }
    Ok(())
}

/// The guest waits for another vCPU, whose thread may need this core. The scheduler may take its time:
/// nobody has to wait for this CPU's translations meanwhile.
fn pause(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.intercept(op, Intercept::Pause)? != Outcome::Done {
        core.with_bus(|core| core.patience.wait());
    }
    Ok(())
}

fn privileged_nop(core: &mut Core<'_>, op: &Op, what: Intercept) -> Result<(), Abort> {
    core.require_cpl0()?;
    core.intercept(op, what)?;
    Ok(())
}

/// A cache flush touches its operand as a read does, and does nothing else that can be seen.
fn clflush(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let linear = core.linear(&op.mem, 1, false)?;
    core.prepare_read(linear, 1)
}

fn rdpkru(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    check_pkru(core)?;
    let value = u64::from(core.s.fpu.pkru);
    core.set_edx_eax(value);
    Ok(())
}

fn wrpkru(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    check_pkru(core)?;
    if core.s.gpr[RDX] as u32 != 0 {
        return core.raise(Exception::gp(0));
    }
    core.s.fpu.pkru = core.s.gpr[RAX] as u32;
    Ok(())
}

fn check_pkru(core: &mut Core<'_>) -> Result<(), Abort> {
    if core.s.cr4 & cr4::PKE == 0 {
        return core.raise(Exception::ud());
    }
    if core.s.gpr[RCX] as u32 != 0 { core.raise(Exception::gp(0)) } else { Ok(()) }
}

/// RMPREAD.
pub(crate) fn rmpread(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    call(core, op, Call::Rmpread)
}

/// Calls that mean something to the bus only.
fn call(core: &mut Core<'_>, op: &Op, call: Call) -> Result<(), Abort> {
    match core.intercept(op, Intercept::Call(call))? {
        Outcome::Done => Ok(()),
        Outcome::Native | Outcome::Instead(_) => core.raise(Exception::ud()),
    }
}
