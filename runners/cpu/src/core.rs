//! The CPU while it runs: what instruction handlers work on.

use crate::bus::Bus;
use crate::code::{CodePages, Seen};
use crate::completion::Completion;
use crate::config::{Config, DebugControl};
use crate::exception::Exception;
use crate::exit::CpuExit;
use crate::flags;
use crate::kick::{Kick, Patience};
use crate::op::{FLAT, Mem, Op, Operand};
use crate::paging::View;
use crate::segment::Seg;
use crate::state::{CpuState, Shadow, cr0, cr4, gpr};
use crate::tlb::{Context, Tlbs};
use crate::word::Word;

/// The instruction did not complete; [`Core::why`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abort;

/// What became of an instruction that did not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Exception(Exception),
    /// A non-canonical address: #GP(0), or #SS(0) if it was relative to the stack.
    NonCanonical,
    /// `run` returns; RIP is at the instruction.
    Exit(CpuExit),
    /// It met MMIO at this guest-physical address: it starts again in the emulator.
    Emulate(u64),
    /// The bus has put another world in its place.
    Switched,
}

/// A running CPU, taken apart so that its parts can be borrowed one by one.
pub(crate) struct Core<'a> {
    pub(crate) s: &'a mut CpuState,
    pub(crate) tlbs: &'a mut Tlbs,
    pub(crate) bus: &'a mut dyn Bus,
    pub(crate) completion: &'a mut Completion,
    pub(crate) kick: &'a Kick,
    /// Whose writes to code are told, see [`CodePages`]; without, each block is compared with memory.
    pub(crate) code: Option<&'a CodePages>,
    pub(crate) seen_code: &'a mut Seen,
    pub(crate) config: Config,
    pub(crate) debug: DebugControl,
    /// Where execution goes on after the current instruction.
    pub(crate) next_rip: u64,
    /// Why the last [`Abort`] was.
    pub(crate) why: Why,
    /// The bus has put another world under the CPU, and was not asked for its events yet.
    pub(crate) new_world: bool,
    /// Something happened that the loop must see to after this instruction.
    pub(crate) attention: bool,
    /// `run` returns this after the current instruction has completed.
    pub(crate) exit_after: Option<CpuExit>,
    /// The next instruction is the emulator's: see [`crate::Access::emulated`].
    pub(crate) emulate_next: bool,
    /// The emulator is at work, with its own translations.
    pub(crate) emulating: bool,
    /// Who accesses memory; follows CPL, CR4.SMAP and EFLAGS.AC.
    pub(crate) view: View,
    /// Bits of the code segment: 16, 32 or 64.
    pub(crate) bits: u8,
    /// Only one instruction, or one iteration of a repeated one, at a time.
    pub(crate) stepping: bool,
    /// Data breakpoints are set: every access goes the slow way.
    pub(crate) watches_memory: bool,
    /// Bits of DR6 that the current instruction's accesses have set.
    pub(crate) watch_hits: u64,
    /// The current instruction holds interrupts off for one more.
    pub(crate) casts_shadow: bool,
    /// The current instruction was an interrupt: the handler is not single stepped.
    pub(crate) delivered: bool,
    /// For a guest that waits for another CPU.
    pub(crate) patience: Patience,
}

impl Core<'_> {
    /// Gives up the instruction with an exception.
    #[cold]
    pub(crate) fn raise<T>(&mut self, exception: Exception) -> Result<T, Abort> {
        self.why = Why::Exception(exception);
        Err(Abort)
    }

    /// Gives up the instruction and leaves `run`; it starts again when `run` is called again.
    #[cold]
    pub(crate) fn exit<T>(&mut self, exit: CpuExit) -> Result<T, Abort> {
        self.why = Why::Exit(exit);
        Err(Abort)
    }

    /// The current instruction has yet to do the rest: it is the next one again, and has not retired.
    pub(crate) fn stay(&mut self) {
        self.next_rip = self.s.rip;
        self.s.instructions = self.s.instructions.wrapping_sub(1);
    }

    /// Hands the instruction over to the emulator, or back to the processor.
    pub(crate) fn set_emulating(&mut self, emulating: bool) {
        if self.emulating != emulating {
            self.emulating = emulating;
            self.select_context();
        }
    }

    /// Uses the translations of the current world, address space and emulator.
    pub(crate) fn select_context(&mut self) {
        let pcid = if self.s.cr4 & cr4::PCIDE != 0 { (self.s.cr3 & 0xfff) as u16 } else { 0 };
        let context = Context { world: self.s.world, pcid, emulated: self.emulating };
        if self.tlbs.context() != context {
            self.tlbs.select(context);
        }
    }

    /// Leaves `run` once the current instruction has completed.
    pub(crate) fn exit_after(&mut self, exit: CpuExit) {
        self.exit_after = Some(exit);
        self.attention = true;
    }

    /// Raises #GP(0) unless the CPL is 0.
    pub(crate) fn require_cpl0(&mut self) -> Result<(), Abort> {
        if self.s.cpl() != 0 { self.raise(Exception::gp(0)) } else { Ok(()) }
    }

    /// Holds interrupts off for the next instruction.
    pub(crate) fn cast_shadow(&mut self, shadow: Shadow) {
        self.s.shadow = shadow;
        self.casts_shadow = true;
    }

    /// Recomputes what depends on CS, SS, EFER, CR4 and EFLAGS.AC.
    pub(crate) fn update_mode(&mut self) {
        self.view = if self.s.cpl() == 3 {
            View::User
        } else if self.s.rflags & flags::AC != 0 && self.s.cr4 & cr4::SMAP != 0 {
            View::SupervisorAc
        } else {
            View::Supervisor
        };
        let cs = self.s.segment(Seg::Cs);
        self.bits = if self.s.long_mode() && cs.long {
            64
        } else if cs.db && self.s.cr0 & cr0::PE != 0 {
            32
        } else {
            16
        };
    }

    /// The offset that a memory operand names, within its segment.
    #[inline(always)]
    pub(crate) fn offset(&self, mem: &Mem) -> u64 {
        let base = self.s.gpr[usize::from(mem.base & 15)] & mem.base_width.mask();
        let index = self.s.gpr[usize::from(mem.index & 15)] & mem.index_width.mask();
        mem.disp.wrapping_add(base).wrapping_add(index << mem.scale) & mem.address_mask()
    }

    /// The linear address of a memory operand of `size` bytes.
    #[inline(always)]
    pub(crate) fn linear(&mut self, mem: &Mem, size: usize, write: bool) -> Result<u64, Abort> {
        let offset = self.offset(mem);
        if mem.seg == FLAT { Ok(offset) } else { self.in_segment(mem.seg, offset, size, write) }
    }

    /// The linear address of an offset in a segment, after the checks of the mode.
    pub(crate) fn in_segment(&mut self, seg: u8, offset: u64, size: usize, write: bool) -> Result<u64, Abort> {
        let segment = self.s.segments[usize::from(seg)];
        if self.bits == 64 {
            return Ok(if seg >= Seg::Fs as u8 { segment.base.wrapping_add(offset) } else { offset });
        }
        let last = offset.wrapping_add(size as u64 - 1);
        let inside = if segment.is_expand_down() {
            offset > u64::from(segment.limit) && last <= if segment.db { 0xffff_ffff } else { 0xffff }
        } else {
            last <= u64::from(segment.limit)
        };
        let permitted = self.s.cr0 & cr0::PE == 0 || if write { segment.is_writable() } else { segment.is_readable() };
        if segment.unusable || !inside || !permitted {
            let fault = if seg == Seg::Ss as u8 { Exception::ss(0) } else { Exception::gp(0) };
            return self.raise(fault);
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The value of an integer operand, zero extended.
    #[inline(always)]
    pub(crate) fn get<T: Word>(&mut self, op: &Op, operand: Operand) -> Result<u64, Abort> {
        match operand {
            Operand::Gpr(index) => Ok(self.s.gpr[usize::from(index & 15)] & T::MASK),
            Operand::Imm => Ok(op.imm & T::MASK),
            Operand::Mem => {
                let linear = self.linear(&op.mem, T::BYTES, false)?;
                self.read::<T>(linear)
            }
            Operand::High(index) => Ok(self.s.gpr[usize::from(index & 15)] >> 8 & 0xff),
            other => Ok(self.get_special(other) & T::MASK),
        }
    }

    #[cold]
    fn get_special(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Xmm(index) => self.s.fpu.xmm[usize::from(index & 15)] as u64,
            Operand::Seg(index) => u64::from(self.s.segments[usize::from(index)].selector),
            _ => 0,
        }
    }

    /// Stores into an integer operand.
    #[inline(always)]
    pub(crate) fn set<T: Word>(&mut self, op: &Op, operand: Operand, value: u64) -> Result<(), Abort> {
        match operand {
            Operand::Mem => {
                let linear = self.linear(&op.mem, T::BYTES, true)?;
                self.write::<T>(linear, value)
            }
            _ => {
                self.set_register::<T>(operand, value);
                Ok(())
            }
        }
    }

    /// The general register that an operand is known to be.
    #[inline(always)]
    pub(crate) fn low(&self, operand: Operand) -> u64 {
        if let Operand::Gpr(index) = operand { self.s.gpr[usize::from(index & 15)] } else { 0 }
    }

    /// Stores into the general register that an operand is known to be.
    #[inline(always)]
    pub(crate) fn set_low<T: Word>(&mut self, operand: Operand, value: u64) {
        if let Operand::Gpr(index) = operand {
            let register = &mut self.s.gpr[usize::from(index & 15)];
            *register = if T::BITS >= 32 { value & T::MASK } else { *register & !T::MASK | value & T::MASK };
        }
    }

    /// Stores into a register operand: 32 bits clear the upper half, fewer leave the rest alone.
    #[inline(always)]
    pub(crate) fn set_register<T: Word>(&mut self, operand: Operand, value: u64) {
        match operand {
            Operand::Gpr(_) => self.set_low::<T>(operand, value),
            Operand::High(index) => {
                let register = &mut self.s.gpr[usize::from(index & 15)];
                *register = *register & !0xff00 | (value & 0xff) << 8;
            }
            _ => {}
        }
    }

    /// Replaces an integer operand by `change` of it, atomically with LOCK; returns the old value.
    #[inline(always)]
    pub(crate) fn change<T: Word>(
        &mut self,
        op: &Op,
        operand: Operand,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Abort> {
        if operand == Operand::Mem {
            let linear = self.linear(&op.mem, T::BYTES, true)?;
            return self.modify::<T>(linear, op.lock, change);
        }
        let old = self.get::<T>(op, operand)?;
        self.set_register::<T>(operand, change(old));
        Ok(old)
    }

    /// Replaces the flags in `mask`.
    #[inline(always)]
    pub(crate) fn set_flags(&mut self, mask: u64, value: u64) {
        self.s.rflags = self.s.rflags & !mask | value & mask;
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub(crate) fn flag(&self, flag: u64) -> bool {
        self.s.rflags & flag != 0
    }

    /// Width of the stack pointer as a mask.
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.bits == 64 {
            u64::MAX
        } else if self.s.segment(Seg::Ss).db {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer as wide as the stack is.
    #[inline(always)]
    pub(crate) fn set_rsp(&mut self, value: u64) {
        let mask = self.stack_mask();
        let rsp = &mut self.s.gpr[gpr::RSP];
        *rsp = if mask == 0xffff { *rsp & !mask | value & mask } else { value & mask };
    }

    /// Reads from the stack, `offset` bytes above its top.
    #[inline(always)]
    pub(crate) fn stack_read<T: Word>(&mut self, offset: u64) -> Result<u64, Abort> {
        let address = self.s.gpr[gpr::RSP].wrapping_add(offset) & self.stack_mask();
        if self.bits == 64 {
            return self.read::<T>(address).map_err(|abort| self.stack_abort(abort));
        }
        let linear = self.in_segment(Seg::Ss as u8, address, T::BYTES, false)?;
        self.read::<T>(linear)
    }

    /// Pushes a value of `T`'s width.
    #[inline(always)]
    pub(crate) fn push<T: Word>(&mut self, value: u64) -> Result<(), Abort> {
        let top = self.s.gpr[gpr::RSP].wrapping_sub(T::BYTES as u64) & self.stack_mask();
        if self.bits == 64 {
            self.write::<T>(top, value).map_err(|abort| self.stack_abort(abort))?;
        } else {
            let linear = self.in_segment(Seg::Ss as u8, top, T::BYTES, true)?;
            self.write::<T>(linear, value)?;
        }
        self.set_rsp(top);
        Ok(())
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub(crate) fn release_stack(&mut self, bytes: u64) {
        self.set_rsp(self.s.gpr[gpr::RSP].wrapping_add(bytes));
    }

    /// A non-canonical stack address is #SS, not #GP.
    #[cold]
    fn stack_abort(&mut self, abort: Abort) -> Abort {
        if self.why == Why::NonCanonical {
            self.why = Why::Exception(Exception::ss(0));
        }
        abort
    }
}
