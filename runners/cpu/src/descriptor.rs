//! Loading segment registers from descriptor tables (SDM volume 3, chapter 3).

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::segment::{Seg, Segment};
use crate::state::cr0;

impl Core<'_> {
    /// Reads the descriptor that a non-null selector names; returns the segment and the descriptor's
    /// linear address. `outside` is raised if the selector is beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16, outside: Exception) -> Result<(Segment, u64), Abort> {
        let (base, limit) = if selector & 4 == 0 {
            (self.s.gdtr.base, u32::from(self.s.gdtr.limit))
        } else if self.s.ldtr.unusable {
            return self.raise(outside);
        } else {
            (self.s.ldtr.base, self.s.ldtr.limit)
        };
        let offset = selector & !7;
        if u32::from(offset) + 7 > limit {
            return self.raise(outside);
        }
        let at = base.wrapping_add(u64::from(offset));
        let raw = self.read_system::<u64>(at)?;
        Ok((Segment::from_descriptor(selector, raw), at))
    }

    /// Sets the accessed bit of a descriptor in memory, as the processor does when it loads one.
    pub(crate) fn set_accessed(&mut self, segment: &mut Segment, at: u64) -> Result<(), Abort> {
        if segment.kind & 1 == 0 {
            segment.kind |= 1;
            let byte = self.read_system::<u8>(at.wrapping_add(5))?;
            self.write_system::<u8>(at.wrapping_add(5), byte | 1)?;
        }
        Ok(())
    }

    /// MOV or POP to a segment register other than CS.
    pub(crate) fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<(), Abort> {
        if self.s.cr0 & cr0::PE == 0 {
            let segment = &mut self.s.segments[seg as usize];
            segment.selector = selector;
            segment.base = u64::from(selector) << 4;
            return Ok(());
        }
        let segment = self.checked_data_segment(seg, selector)?;
        self.s.segments[seg as usize] = segment;
        Ok(())
    }

    fn checked_data_segment(&mut self, seg: Seg, selector: u16) -> Result<Segment, Abort> {
        let cpl = self.s.cpl();
        let rpl = (selector & 3) as u8;
        let code = u32::from(selector & !3);
        if selector & !3 == 0 {
            if seg != Seg::Ss {
                return Ok(Segment::null(selector));
            }
            // A null SS is what 64-bit code runs with below CPL 3.
            if self.bits == 64 && cpl != 3 && rpl == cpl {
                return Ok(Segment { dpl: cpl, ..Segment::null(selector) });
            }
            return self.raise(Exception::gp(0));
        }
        let (mut segment, at) = self.descriptor(selector, Exception::gp(code))?;
        let fits = if seg == Seg::Ss {
            rpl == cpl && segment.dpl == cpl && segment.is_writable()
        } else {
            segment.is_readable() && (segment.is_conforming() || cpl.max(rpl) <= segment.dpl)
        };
        if !fits {
            return self.raise(Exception::gp(code));
        }
        if !segment.present {
            let vector = if seg == Seg::Ss { vector::SS } else { vector::NP };
            return self.raise(Exception::with_code(vector, code));
        }
        self.set_accessed(&mut segment, at)?;
        Ok(segment)
    }

    /// The code segment for a far JMP, CALL or return to `selector`; `cpl` is the level after it.
    pub(crate) fn code_segment(&mut self, selector: u16, returning: bool) -> Result<Segment, Abort> {
        let cpl = self.s.cpl();
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            return self.raise(Exception::gp(0));
        }
        let code = u32::from(selector & !3);
        let (mut segment, at) = self.descriptor(selector, Exception::gp(code))?;
        if !segment.is_code() {
            return self.raise(Exception::gp(code));
        }
        let target = if returning { rpl } else { cpl };
        let fits = if returning && rpl < cpl {
            false
        } else if segment.is_conforming() {
            segment.dpl <= target
        } else {
            segment.dpl == target && (returning || rpl <= cpl)
        };
        if !fits || self.s.long_mode() && segment.long && segment.db {
            return self.raise(Exception::gp(code));
        }
        if !segment.present {
            return self.raise(Exception::with_code(vector::NP, code));
        }
        self.set_accessed(&mut segment, at)?;
        segment.selector = selector & !3 | u16::from(target);
        Ok(segment)
    }
}
