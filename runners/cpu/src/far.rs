//! Control transfers that load CS: far JMP, CALL and RET, IRET, INT n.

use iced_x86::{Code, Instruction};

use crate::bus::Intercept;
use crate::core::{Abort, Core};
use crate::decode;
use crate::exception::{Exception, vector};
use crate::flags;
use crate::gate::Target;
use crate::intercept::Outcome;
use crate::memory::is_canonical;
use crate::op::{Handler, Op, Operand};
use crate::segment::{Seg, Segment};
use crate::state::{Injection, cr0, gpr};
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 => jump::<u16>,
        Code::Jmp_ptr1632 | Code::Jmp_m1632 => jump::<u32>,
        Code::Jmp_m1664 => jump::<u64>,
        Code::Call_ptr1616 | Code::Call_m1616 => call::<u16>,
        Code::Call_ptr1632 | Code::Call_m1632 => call::<u32>,
        Code::Call_m1664 => call::<u64>,
        Code::Retfw | Code::Retfw_imm16 => far_return::<u16>,
        Code::Retfd | Code::Retfd_imm16 => far_return::<u32>,
        Code::Retfq | Code::Retfq_imm16 => far_return::<u64>,
        Code::Iretw => interrupt_return::<u16>,
        Code::Iretd => interrupt_return::<u32>,
        Code::Iretq => interrupt_return::<u64>,
        Code::Int_imm8 => int_n,
        Code::Int3 => int3,
        Code::Int1 => int1,
        Code::Into => into,
        Code::Ud0_r16_rm16
        | Code::Ud0_r32_rm32
        | Code::Ud0_r64_rm64
        | Code::Ud1_r16_rm16
        | Code::Ud1_r32_rm32
        | Code::Ud1_r64_rm64
        | Code::Ud2 => decode::undefined,
        _ => return None,
    })
}

/// Selector and offset of a far pointer operand.
fn far_pointer<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(u16, u64), Abort> {
    if op.a != Operand::Mem {
        return Ok(((op.imm >> 32) as u16, op.imm & 0xffff_ffff & T::MASK));
    }
    let linear = core.linear(&op.mem, T::BYTES + 2, false)?;
    let offset = core.read::<T>(linear)?;
    let selector = core.read::<u16>(linear.wrapping_add(T::BYTES as u64))?;
    Ok((selector as u16, offset))
}

/// Checks a new RIP against the code segment it is for.
fn check_target(core: &mut Core<'_>, segment: &Segment, rip: u64) -> Result<(), Abort> {
    let good = if core.s.long_mode() && segment.long {
        is_canonical(rip, core.s.cr4)
    } else {
        rip <= u64::from(segment.limit)
    };
    if good { Ok(()) } else { core.raise(Exception::gp(0)) }
}

fn real_mode_cs(core: &mut Core<'_>, selector: u16) {
    let cs = &mut core.s.segments[Seg::Cs as usize];
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
}

fn jump<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let (selector, offset) = far_pointer::<T>(core, op)?;
    if core.s.cr0 & cr0::PE == 0 {
        real_mode_cs(core, selector);
        core.next_rip = offset;
        return Ok(());
    }
    match core.far_target(selector, false)? {
        Target::Code(segment) => {
            check_target(core, &segment, offset)?;
            core.s.segments[Seg::Cs as usize] = segment;
            core.next_rip = offset;
        }
        Target::Gate(gate) => {
            core.s.segments[Seg::Cs as usize] = gate.segment;
            core.next_rip = gate.offset;
        }
    }
    Ok(())
}

fn call<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let (selector, offset) = far_pointer::<T>(core, op)?;
    let segment = if core.s.cr0 & cr0::PE == 0 {
        None
    } else {
        match core.far_target(selector, true)? {
            Target::Code(segment) => {
                check_target(core, &segment, offset)?;
                Some(segment)
            }
            Target::Gate(gate) => {
                core.call_through(&gate, core.next_rip)?;
                core.s.segments[Seg::Cs as usize] = gate.segment;
                core.next_rip = gate.offset;
                return Ok(());
            }
        }
    };
    let rsp = core.s.gpr[gpr::RSP];
    let old = u64::from(core.s.segment(Seg::Cs).selector);
    core.push::<T>(old)?;
    if let Err(abort) = core.push::<T>(core.next_rip) {
        core.s.gpr[gpr::RSP] = rsp;
        return Err(abort);
    }
    match segment {
        Some(segment) => core.s.segments[Seg::Cs as usize] = segment,
        None => real_mode_cs(core, selector),
    }
    core.next_rip = offset;
    Ok(())
}

fn far_return<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let width = T::BYTES as u64;
    let rip = core.stack_read::<T>(0)?;
    let selector = core.stack_read::<T>(width)? as u16;
    if core.s.cr0 & cr0::PE == 0 {
        real_mode_cs(core, selector);
    } else {
        let segment = core.code_segment(selector, true)?;
        check_target(core, &segment, rip)?;
        if segment.selector & 3 != u16::from(core.s.cpl()) {
            let rsp = core.stack_read::<T>(2 * width + op.imm)?;
            let ss = core.stack_read::<T>(3 * width + op.imm)? as u16;
            return to_outer_level(core, segment, rip, rsp.wrapping_add(op.imm), ss);
        }
        core.s.segments[Seg::Cs as usize] = segment;
    }
    core.next_rip = rip;
    core.release_stack(2 * width + op.imm);
    Ok(())
}

/// Finishes a return to a less privileged level.
fn to_outer_level(core: &mut Core<'_>, cs: Segment, rip: u64, rsp: u64, ss: u16) -> Result<(), Abort> {
    let cpl = (cs.selector & 3) as u8;
    let stack = return_stack(core, &cs, ss)?;
    core.s.segments[Seg::Cs as usize] = cs;
    core.s.segments[Seg::Ss as usize] = stack;
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        // Data segments that the outer level could not have loaded itself are taken away.
        let segment = &mut core.s.segments[seg as usize];
        if !segment.unusable && segment.dpl < cpl && !segment.is_conforming() {
            *segment = Segment { base: segment.base, ..Segment::null(0) };
        }
    }
    core.s.gpr[gpr::RSP] = if cs.long { rsp } else { rsp & 0xffff_ffff };
    core.next_rip = rip;
    Ok(())
}

/// The stack segment of a return that also loads SS.
fn return_stack(core: &mut Core<'_>, cs: &Segment, ss: u16) -> Result<Segment, Abort> {
    let cpl = (cs.selector & 3) as u8;
    let code = u32::from(ss & !3);
    if ss & !3 == 0 {
        if cs.long && core.s.long_mode() && cpl != 3 && ss & 3 == u16::from(cpl) {
            return Ok(Segment { dpl: cpl, ..Segment::null(ss) });
        }
        return core.raise(Exception::gp(0));
    }
    let (mut segment, at) = core.descriptor(ss, Exception::gp(code))?;
    if ss & 3 != u16::from(cpl) || segment.dpl != cpl || !segment.is_writable() {
        return core.raise(Exception::gp(code));
    }
    if !segment.present {
        return core.raise(Exception::ss(code));
    }
    core.set_accessed(&mut segment, at)?;
    Ok(segment)
}

fn interrupt_return<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.intercept(op, Intercept::Iret)? == Outcome::Done {
        return Ok(());
    }
    let width = T::BYTES as u64;
    let rip = core.stack_read::<T>(0)?;
    let selector = core.stack_read::<T>(width)? as u16;
    let new_flags = core.stack_read::<T>(2 * width)?;
    if core.s.cr0 & cr0::PE == 0 {
        real_mode_cs(core, selector);
        core.next_rip = rip;
        core.release_stack(3 * width);
        core.load_flags::<T>(new_flags, 0);
        core.s.nmi_blocked = false;
        return Ok(());
    }
    if core.s.rflags & flags::NT != 0 {
        // Task return: #GP in long mode; elsewhere hardware task switching, which does not exist here.
        return if core.s.long_mode() { core.raise(Exception::gp(0)) } else { decode::unknown(core, op) };
    }
    let cpl = core.s.cpl();
    if new_flags & flags::VM != 0 && T::BITS == 32 && cpl == 0 && !core.s.long_mode() {
        // Virtual-8086 mode does not exist here.
        return decode::unknown(core, op);
    }
    let segment = core.code_segment(selector, true)?;
    check_target(core, &segment, rip)?;
    if core.bits == 64 || segment.selector & 3 != u16::from(cpl) {
        let rsp = core.stack_read::<T>(3 * width)?;
        let ss = core.stack_read::<T>(4 * width)? as u16;
        if segment.selector & 3 == u16::from(cpl) {
            let stack = return_stack(core, &segment, ss)?;
            core.s.segments[Seg::Cs as usize] = segment;
            core.s.segments[Seg::Ss as usize] = stack;
            core.s.gpr[gpr::RSP] = rsp;
            core.next_rip = rip;
        } else {
            to_outer_level(core, segment, rip, rsp, ss)?;
        }
    } else {
        core.s.segments[Seg::Cs as usize] = segment;
        core.next_rip = rip;
        core.release_stack(3 * width);
    }
    core.load_flags::<T>(new_flags, cpl);
    core.s.nmi_blocked = false;
    Ok(())
}

fn int_n(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let vector = op.imm as u8;
    if core.intercept(op, Intercept::SoftwareInterrupt(vector))? == Outcome::Done {
        return Ok(());
    }
    core.deliver_behind(Injection::SoftInterrupt(vector))
}

fn int3(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    if core.debug.software_breakpoints {
        return core.raise(Exception::plain(vector::BP));
    }
    core.offer(Exception::plain(vector::BP))?;
    core.deliver_behind(Injection::SoftException(vector::BP))
}

fn into(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    if !core.flag(flags::OF) {
        return Ok(());
    }
    core.offer(Exception::plain(vector::OF))?;
    core.deliver_behind(Injection::SoftException(vector::OF))
}

fn int1(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.intercept(op, Intercept::Icebp)? == Outcome::Done {
        return Ok(());
    }
    core.offer(Exception::db(0))?;
    core.deliver_behind(Injection::Exception(Exception::db(0)))
}
