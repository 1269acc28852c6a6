//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::decode;
use crate::exception::Exception;
use crate::flags::{ALL, RESERVED_ONE, RF, VM};
use crate::memory::is_canonical;
use crate::op::{Handler, Op};
use crate::segment::{Seg, Segment};
use crate::state::gpr::{R11, RCX, RDX, RSP};
use crate::state::{cr0, efer};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret => sysret32,
        Mnemonic::Sysretq => sysret64,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit => sysexit32,
        Mnemonic::Sysexitq => sysexit64,
        Mnemonic::Swapgs => swapgs,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            return segment_base(instruction);
        }
        _ => return None,
    })
}

fn segment_base(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Rdfsbase_r32 => |core, op| read_base(core, op, Seg::Fs, 0xffff_ffff),
        Code::Rdfsbase_r64 => |core, op| read_base(core, op, Seg::Fs, u64::MAX),
        Code::Rdgsbase_r32 => |core, op| read_base(core, op, Seg::Gs, 0xffff_ffff),
        Code::Rdgsbase_r64 => |core, op| read_base(core, op, Seg::Gs, u64::MAX),
        Code::Wrfsbase_r32 => |core, op| write_base(core, op, Seg::Fs, 0xffff_ffff),
        Code::Wrfsbase_r64 => |core, op| write_base(core, op, Seg::Fs, u64::MAX),
        Code::Wrgsbase_r32 => |core, op| write_base(core, op, Seg::Gs, 0xffff_ffff),
        Code::Wrgsbase_r64 => |core, op| write_base(core, op, Seg::Gs, u64::MAX),
        _ => return None,
    })
}

/// #UD unless CR4.FSGSBASE.
fn require_base_instructions(core: &mut Core<'_>) -> Result<(), Abort> {
    if core.s.cr4 & crate::state::cr4::FSGSBASE == 0 { core.raise(Exception::ud()) } else { Ok(()) }
}

fn read_base(core: &mut Core<'_>, op: &Op, seg: Seg, mask: u64) -> Result<(), Abort> {
    require_base_instructions(core)?;
    let base = core.s.segment(seg).base & mask;
    core.set_register::<u64>(op.a, base);
    Ok(())
}

fn write_base(core: &mut Core<'_>, op: &Op, seg: Seg, mask: u64) -> Result<(), Abort> {
    require_base_instructions(core)?;
    let base = core.get::<u64>(op, op.a)? & mask;
    if !is_canonical(base, core.s.cr4) {
        return core.raise(Exception::gp(0));
    }
    core.s.segments[seg as usize].base = base;
    Ok(())
}

/// Flat CS and SS for a fast transfer, without reading descriptors.
fn set_flat(core: &mut Core<'_>, cs: u16, ss: u16, cpl: u8, long: bool) {
    let code = if long { Segment::code64(cs) } else { Segment::code32(cs) };
    core.s.segments[Seg::Cs as usize] = Segment { dpl: cpl, ..code };
    core.s.segments[Seg::Ss as usize] = Segment { dpl: cpl, ..Segment::data(ss) };
}

fn syscall(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.s.efer & efer::SCE == 0 {
        return core.raise(Exception::ud());
    }
    if core.bits != 64 {
        // Compatibility and legacy mode: AMD only.
        return decode::unknown(core, op);
    }
    core.s.gpr[RCX] = core.next_rip;
    core.s.gpr[R11] = core.s.rflags & !RF;
    core.s.rflags = core.s.rflags & !core.s.sfmask & !RF | RESERVED_ONE;
    core.next_rip = core.s.lstar;
    let cs = (core.s.star >> 32) as u16 & !3;
    set_flat(core, cs, cs.wrapping_add(8), 0, true);
    Ok(())
}

fn sysret64(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    sysret(core, true)
}

fn sysret32(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    sysret(core, false)
}

fn sysret(core: &mut Core<'_>, long: bool) -> Result<(), Abort> {
    if core.s.efer & efer::SCE == 0 || core.bits != 64 {
        return core.raise(Exception::ud());
    }
    core.require_cpl0()?;
    let target = core.s.gpr[RCX];
    if long && !is_canonical(target, core.s.cr4) {
        return core.raise(Exception::gp(0));
    }
    core.s.rflags = core.s.gpr[R11] & ALL & !(RF | VM) | RESERVED_ONE;
    core.next_rip = if long { target } else { target & 0xffff_ffff };
    let base = (core.s.star >> 48) as u16;
    set_flat(core, base.wrapping_add(if long { 16 } else { 0 }) | 3, base.wrapping_add(8) | 3, 3, long);
    Ok(())
}

fn sysenter(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let cs = core.s.sysenter_cs as u16 & !3;
    if core.s.cr0 & cr0::PE == 0 || cs == 0 {
        return core.raise(Exception::gp(0));
    }
    let long = core.s.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    core.s.gpr[RSP] = core.s.sysenter_esp & mask;
    core.next_rip = core.s.sysenter_eip & mask;
    core.s.rflags &= !(crate::flags::IF | VM);
    set_flat(core, cs, cs.wrapping_add(8), 0, long);
    Ok(())
}

fn sysexit64(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    sysexit(core, true)
}

fn sysexit32(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    sysexit(core, false)
}

fn sysexit(core: &mut Core<'_>, long: bool) -> Result<(), Abort> {
    let base = core.s.sysenter_cs as u16 & !3;
    if core.s.cr0 & cr0::PE == 0 || base == 0 {
        return core.raise(Exception::gp(0));
    }
    core.require_cpl0()?;
    let (rip, rsp) = (core.s.gpr[RDX], core.s.gpr[RCX]);
    if long && !(is_canonical(rip, core.s.cr4) && is_canonical(rsp, core.s.cr4)) {
        return core.raise(Exception::gp(0));
    }
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    core.next_rip = rip & mask;
    core.s.gpr[RSP] = rsp & mask;
    let offset = if long { 32 } else { 16 };
    set_flat(core, base.wrapping_add(offset) | 3, base.wrapping_add(offset + 8) | 3, 3, long);
    Ok(())
}

fn swapgs(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    if core.bits != 64 {
        return core.raise(Exception::ud());
    }
    core.require_cpl0()?;
    std::mem::swap(&mut core.s.segments[Seg::Gs as usize].base, &mut core.s.kernel_gs_base);
    Ok(())
}
