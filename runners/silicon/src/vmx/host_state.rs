//! The host-state area: what VM exit loads (SDM volume 3, 28.5).

use privet_cpu::segment::{TSS_BUSY, Table};
use privet_cpu::state::{Shadow, World, cr0, efer, gpr};
use privet_cpu::{CpuState, Encryption, Seg, Segment, flags};

use super::controls::{Controls, exit};
use super::field;
use super::vmcs::Vmcs;

const TSS_LIMIT: u32 = 0x67;

/// Gives a processor back to the host.
pub(super) fn load(vmcs: &Vmcs, controls: &Controls, state: &mut CpuState) {
    let long = controls.exit(exit::HOST_64);
    let kept = cr0::CD | cr0::NW;
    state.cr0 = vmcs.get(field::HOST_CR0) & !kept | state.cr0 & kept | cr0::ET;
    state.cr3 = vmcs.get(field::HOST_CR3);
    state.cr4 = vmcs.get(field::HOST_CR4);
    let mode = efer::LMA | efer::LME;
    state.efer = match (controls.exit(exit::LOAD_EFER), long) {
        (true, _) => vmcs.get(field::HOST_EFER),
        (false, true) => state.efer | mode,
        (false, false) => state.efer & !mode,
    };
    if controls.exit(exit::LOAD_PAT) {
        state.pat = vmcs.get(field::HOST_PAT);
    }
    load_segments(vmcs, long, state);
    state.gdtr = Table { base: vmcs.get(field::HOST_GDTR_BASE), limit: 0xffff };
    state.idtr = Table { base: vmcs.get(field::HOST_IDTR_BASE), limit: 0xffff };
    state.sysenter_cs = vmcs.get(field::HOST_SYSENTER_CS);
    state.sysenter_esp = vmcs.get(field::HOST_SYSENTER_ESP);
    state.sysenter_eip = vmcs.get(field::HOST_SYSENTER_EIP);
    state.gpr[gpr::RSP] = vmcs.get(field::HOST_RSP);
    state.rip = vmcs.get(field::HOST_RIP);
    state.rflags = flags::RESERVED_ONE;
    state.dr7 = 0x400;
    state.shadow = Shadow::None;
    state.injection = None;
    state.vectoring = None;
    state.world = World::HOST;
    state.encryption = Encryption::None;
}

/// Flat segments at privilege level 0 (28.5.2).
fn load_segments(vmcs: &Vmcs, long: bool, state: &mut CpuState) {
    let bases = [(Seg::Fs, field::HOST_FS_BASE), (Seg::Gs, field::HOST_GS_BASE)];
    for (segment, selector) in state.segments.iter_mut().zip(field::HOST_SELECTORS) {
        let selector = vmcs.get(selector) as u16;
        *segment = if selector == 0 { Segment::null(0) } else { Segment::data(selector) };
    }
    for (seg, base) in bases {
        state.segments[seg as usize].base = vmcs.get(base);
    }
    let cs = vmcs.get(field::HOST_CS) as u16;
    state.segments[Seg::Cs as usize] = if long { Segment::code64(cs) } else { Segment::code32(cs) };
    state.tr = Segment {
        base: vmcs.get(field::HOST_TR_BASE),
        limit: TSS_LIMIT,
        selector: vmcs.get(field::HOST_TR) as u16,
        kind: TSS_BUSY,
        present: true,
        ..Segment::default()
    };
    state.ldtr = Segment::null(0);
}
