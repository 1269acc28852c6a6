//! The state save area (APM volume 2, table B-2): what VMRUN and #VMEXIT swap, and what VMLOAD and VMSAVE move.

use privet_cpu::segment::Table;
use privet_cpu::state::{cr0, efer, gpr};
use privet_cpu::{CpuState, Seg, Segment, flags};

use super::vmcb::Area;
use crate::memory::{PhysicalMemory, write_u64};

const SWAPPED_SEGMENTS: [(Seg, usize); 4] = [(Seg::Es, 0x00), (Seg::Cs, 0x10), (Seg::Ss, 0x20), (Seg::Ds, 0x30)];

/// The part of a processor's state that a world switch swaps. All else (FS, GS, TR, LDTR, system call MSRs, general
/// registers but RAX and RSP, DR0 to DR3, the FPU) stays as it is: software swaps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Swapped {
    /// ES, CS, SS, DS.
    pub(crate) segments: [Segment; 4],
    pub(crate) gdtr: Table,
    pub(crate) idtr: Table,
    pub(crate) cpl: u8,
    pub(crate) efer: u64,
    pub(crate) cr4: u64,
    pub(crate) cr3: u64,
    pub(crate) cr0: u64,
    pub(crate) dr7: u64,
    pub(crate) dr6: u64,
    pub(crate) rflags: u64,
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) rax: u64,
    pub(crate) cr2: u64,
    pub(crate) pat: u64,
}

impl Swapped {
    /// Reads the save area at `pa`.
    pub(crate) fn read(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> Swapped {
        let area = Area::<0x270>::read(memory, pa);
        Swapped {
            segments: SWAPPED_SEGMENTS.map(|(_, at)| segment(&area, at)),
            gdtr: Table { base: area.u64(0x68), limit: area.u32(0x64) as u16 },
            idtr: Table { base: area.u64(0x88), limit: area.u32(0x84) as u16 },
            cpl: area.u8(0xcb) & 3,
            efer: area.u64(0xd0),
            cr4: area.u64(0x148),
            cr3: area.u64(0x150),
            cr0: area.u64(0x158),
            dr7: area.u64(0x160),
            dr6: area.u64(0x168),
            rflags: area.u64(0x170),
            rip: area.u64(0x178),
            rsp: area.u64(0x1d8),
            rax: area.u64(0x1f8),
            cr2: area.u64(0x240),
            pat: area.u64(0x268),
        }
    }

    /// Stores this into the save area at `pa`, and nothing else there.
    pub(crate) fn write(&self, memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) {
        for ((_, at), segment) in SWAPPED_SEGMENTS.iter().zip(&self.segments) {
            write_segment(memory, pa + *at as u64, segment);
        }
        write_table(memory, pa + 0x60, self.gdtr);
        write_table(memory, pa + 0x80, self.idtr);
        memory.write(pa + 0xcb, &[self.cpl]);
        let words = [
            (0xd0, self.efer),
            (0x148, self.cr4),
            (0x150, self.cr3),
            (0x158, self.cr0),
            (0x160, self.dr7),
            (0x168, self.dr6),
            (0x170, self.rflags),
            (0x178, self.rip),
            (0x1d8, self.rsp),
            (0x1f8, self.rax),
            (0x240, self.cr2),
            (0x268, self.pat),
        ];
        for (at, value) in words {
            write_u64(memory, pa + at, value);
        }
    }

    /// What a processor holds now.
    pub(crate) fn of(state: &CpuState) -> Swapped {
        Swapped {
            segments: SWAPPED_SEGMENTS.map(|(seg, _)| *state.segment(seg)),
            gdtr: state.gdtr,
            idtr: state.idtr,
            cpl: state.cpl(),
            efer: state.efer,
            cr4: state.cr4,
            cr3: state.cr3,
            cr0: state.cr0,
            dr7: state.dr7,
            dr6: state.dr6,
            rflags: state.rflags,
            rip: state.rip,
            rsp: state.gpr[gpr::RSP],
            rax: state.gpr[gpr::RAX],
            cr2: state.cr2,
            pat: state.pat,
        }
    }

    /// Makes a processor a guest's.
    ///
    /// What a processor cannot hold is not taken over: CR0.ET is one, bit 1 of RFLAGS is one, LMA follows LME and PG,
    /// the CPL is 0 in real mode and 3 in virtual-8086 mode (15.5.1). With nested paging the guest has a PAT of its
    /// own (15.25.1).
    pub(crate) fn load_guest(&self, state: &mut CpuState, nested_paging: bool) {
        self.load_common(state);
        state.cr0 |= cr0::ET;
        state.efer = self.efer & !efer::LMA | if self.in_long_mode() { efer::LMA } else { 0 };
        state.segments[Seg::Ss as usize].dpl = self.guest_cpl();
        state.dr6 = self.dr6;
        state.dr7 = self.dr7;
        state.cr2 = self.cr2;
        if nested_paging {
            state.pat = self.pat;
        }
    }

    /// Gives a processor back to the host: CPL 0, no breakpoints, CR2 and DR6 as the guest left them (15.6). Without
    /// nested paging so is the PAT, of which there is only one then.
    pub(crate) fn load_host(&self, state: &mut CpuState, nested_paging: bool) {
        self.load_common(state);
        if nested_paging {
            state.pat = self.pat;
        }
        state.segments[Seg::Ss as usize].dpl = 0;
        state.dr7 = 0x400;
        state.rflags &= !flags::VM;
        state.cr0 |= cr0::PE;
    }

    fn load_common(&self, state: &mut CpuState) {
        for ((seg, _), segment) in SWAPPED_SEGMENTS.iter().zip(self.segments) {
            state.segments[*seg as usize] = segment;
        }
        state.gdtr = self.gdtr;
        state.idtr = self.idtr;
        state.efer = self.efer;
        state.cr4 = self.cr4;
        state.cr3 = self.cr3;
        state.cr0 = self.cr0;
        state.rflags = self.rflags & flags::ALL | flags::RESERVED_ONE;
        state.rip = self.rip;
        state.gpr[gpr::RSP] = self.rsp;
        state.gpr[gpr::RAX] = self.rax;
    }

    /// LME and PG: what makes LMA.
    pub(crate) fn in_long_mode(&self) -> bool {
        self.efer & efer::LME != 0 && self.cr0 & cr0::PG != 0
    }

    fn guest_cpl(&self) -> u8 {
        if self.cr0 & cr0::PE == 0 {
            0
        } else if self.rflags & flags::VM != 0 {
            3
        } else {
            self.cpl
        }
    }
}

/// VMLOAD from the VMCB's save area at `pa`.
pub(crate) fn load_additional(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, state: &mut CpuState) {
    let area = Area::<0x240>::read(memory, pa);
    state.segments[Seg::Fs as usize] = segment(&area, 0x40);
    state.segments[Seg::Gs as usize] = segment(&area, 0x50);
    state.ldtr = segment(&area, 0x70);
    state.tr = segment(&area, 0x90);
    state.star = area.u64(0x200);
    state.lstar = area.u64(0x208);
    state.cstar = area.u64(0x210);
    state.sfmask = area.u64(0x218);
    state.kernel_gs_base = area.u64(0x220);
    state.sysenter_cs = area.u64(0x228);
    state.sysenter_esp = area.u64(0x230);
    state.sysenter_eip = area.u64(0x238);
}

/// VMSAVE into the save area at `pa`.
pub(crate) fn store_additional(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, state: &CpuState) {
    write_segment(memory, pa + 0x40, state.segment(Seg::Fs));
    write_segment(memory, pa + 0x50, state.segment(Seg::Gs));
    write_segment(memory, pa + 0x70, &state.ldtr);
    write_segment(memory, pa + 0x90, &state.tr);
    let words = [
        state.star,
        state.lstar,
        state.cstar,
        state.sfmask,
        state.kernel_gs_base,
        state.sysenter_cs,
        state.sysenter_esp,
        state.sysenter_eip,
    ];
    for (value, at) in words.into_iter().zip((pa + 0x200..).step_by(8)) {
        write_u64(memory, at, value);
    }
}

/// A segment register: selector, attributes (descriptor bits 55:52 and 47:40 joined to 12 bits), limit, base.
fn segment<const N: usize>(area: &Area<N>, at: usize) -> Segment {
    let attributes = area.u16(at + 2);
    let bit = |n: u32| attributes >> n & 1 != 0;
    Segment {
        selector: area.u16(at),
        limit: area.u32(at + 4),
        base: area.u64(at + 8),
        kind: (attributes & 0xf) as u8,
        code_or_data: bit(4),
        dpl: (attributes >> 5 & 3) as u8,
        present: bit(7),
        available: bit(8),
        long: bit(9),
        db: bit(10),
        granularity: bit(11),
        unusable: !bit(7),
    }
}

fn write_segment(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, segment: &Segment) {
    let bit = |set: bool, n: u32| u16::from(set) << n;
    let attributes = u16::from(segment.kind & 0xf)
        | bit(segment.code_or_data, 4)
        | u16::from(segment.dpl & 3) << 5
        | bit(segment.present && !segment.unusable, 7)
        | bit(segment.available, 8)
        | bit(segment.long, 9)
        | bit(segment.db, 10)
        | bit(segment.granularity, 11);
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&segment.selector.to_le_bytes());
    bytes[2..4].copy_from_slice(&attributes.to_le_bytes());
    bytes[4..8].copy_from_slice(&segment.limit.to_le_bytes());
    bytes[8..].copy_from_slice(&segment.base.to_le_bytes());
    memory.write(pa, &bytes);
}

fn write_table(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, table: Table) {
    memory.write(pa + 4, &u32::from(table.limit).to_le_bytes());
    write_u64(memory, pa + 8, table.base);
}
