//! The guest-state area: what VM entry loads (SDM volume 3, 27.3.2) and VM exit saves (28.3).

use privet_cpu::CpuState;
use privet_cpu::segment::Table;
use privet_cpu::state::{Injection, Shadow, cr0, cr4, efer, gpr};

use super::controls::{Controls, entry, exit};
use super::field;
use super::non_register_state::blocking;
use super::segments::{segment, set_segment};
use super::vmcs::Vmcs;

/// Bits of CR0 that entries and exits leave as they are: caching is not simulated, and ET is always one.
const CR0_KEPT: u64 = cr0::CD | cr0::NW;

/// Makes a processor the guest's.
pub(super) fn load(vmcs: &Vmcs, controls: &Controls, state: &mut CpuState) {
    let long = controls.entry(entry::IA32E);
    for (segment_state, fields) in state.segments.iter_mut().zip(field::SEGMENTS) {
        *segment_state = segment(vmcs, fields);
    }
    state.ldtr = segment(vmcs, field::LDTR);
    state.tr = segment(vmcs, field::TR);
    state.gdtr = table(vmcs, field::GDTR_BASE, field::GDTR_LIMIT);
    state.idtr = table(vmcs, field::IDTR_BASE, field::IDTR_LIMIT);
    state.cr0 = vmcs.get(field::GUEST_CR0) & !CR0_KEPT | state.cr0 & CR0_KEPT | cr0::ET;
    state.cr3 = vmcs.get(field::GUEST_CR3);
    state.cr4 = vmcs.get(field::GUEST_CR4);
    state.efer = if controls.entry(entry::LOAD_EFER) {
        vmcs.get(field::GUEST_EFER)
    } else {
        efer_of_mode(state.efer, long, state.cr0)
    };
    if controls.entry(entry::LOAD_PAT) {
        state.pat = vmcs.get(field::GUEST_PAT);
    }
    if controls.entry(entry::LOAD_DEBUG) {
        state.dr7 = vmcs.get(field::GUEST_DR7) & 0xffff_2fff | 0x400;
    }
    state.gpr[gpr::RSP] = vmcs.get(field::GUEST_RSP);
    state.rip = vmcs.get(field::GUEST_RIP);
    state.rflags = vmcs.get(field::GUEST_RFLAGS);
    state.sysenter_cs = vmcs.get(field::GUEST_SYSENTER_CS);
    state.sysenter_esp = vmcs.get(field::GUEST_SYSENTER_ESP);
    state.sysenter_eip = vmcs.get(field::GUEST_SYSENTER_EIP);
    let blocked = vmcs.get(field::INTERRUPTIBILITY);
    state.shadow = if blocked & blocking::STI != 0 {
        Shadow::Sti
    } else if blocked & blocking::MOV_SS != 0 {
        Shadow::MovSs
    } else {
        Shadow::None
    };
    state.nmi_blocked = blocked & blocking::NMI != 0;
}

/// EFER of a guest whose VMCS does not load it: LMA is the mode's, and LME follows it while paging is on.
fn efer_of_mode(host: u64, long: bool, cr0: u64) -> u64 {
    let mode = efer::LMA | efer::LME;
    match (long, cr0 & cr0::PG != 0) {
        (true, _) => host | mode,
        (false, true) => host & !mode,
        (false, false) => host & !efer::LMA,
    }
}

/// Puts what the guest has left in its VMCS.
pub(super) fn save(vmcs: &mut Vmcs, controls: &Controls, state: &CpuState) {
    for (segment_state, fields) in state.segments.iter().zip(field::SEGMENTS) {
        set_segment(vmcs, fields, segment_state);
    }
    set_segment(vmcs, field::LDTR, &state.ldtr);
    set_segment(vmcs, field::TR, &state.tr);
    let blocked = match state.shadow {
        Shadow::None => 0,
        Shadow::Sti => blocking::STI,
        Shadow::MovSs => blocking::MOV_SS,
    };
    // An NMI that could not be delivered blocks others all the same.
    let nmi_blocked = state.nmi_blocked || state.vectoring == Some(Injection::Nmi);
    let fields = [
        (field::GDTR_BASE, state.gdtr.base),
        (field::GDTR_LIMIT, state.gdtr.limit.into()),
        (field::IDTR_BASE, state.idtr.base),
        (field::IDTR_LIMIT, state.idtr.limit.into()),
        (field::GUEST_CR0, state.cr0),
        (field::GUEST_CR3, state.cr3),
        (field::GUEST_CR4, state.cr4),
        (field::GUEST_RSP, state.gpr[gpr::RSP]),
        (field::GUEST_RIP, state.rip),
        (field::GUEST_RFLAGS, state.rflags),
        (field::GUEST_SYSENTER_CS, state.sysenter_cs),
        (field::GUEST_SYSENTER_ESP, state.sysenter_esp),
        (field::GUEST_SYSENTER_EIP, state.sysenter_eip),
        (field::INTERRUPTIBILITY, blocked | if nmi_blocked { blocking::NMI } else { 0 }),
        (field::PENDING_DEBUG, 0),
    ];
    fields.into_iter().for_each(|(field, value)| vmcs.set(field, value));
    if controls.exit(exit::SAVE_DEBUG) {
        vmcs.set(field::GUEST_DR7, state.dr7);
        vmcs.set(field::GUEST_DEBUGCTL, 0);
    }
    if controls.exit(exit::SAVE_PAT) {
        vmcs.set(field::GUEST_PAT, state.pat);
    }
    if controls.exit(exit::SAVE_EFER) {
        vmcs.set(field::GUEST_EFER, state.efer);
    }
    let long = u64::from(state.efer & efer::LMA != 0) * u64::from(entry::IA32E);
    vmcs.set(field::ENTRY, u64::from(controls.entry & !entry::IA32E) | long);
}

/// Whether a state uses PAE paging, whose root is four registers.
pub(super) fn uses_pae(state: &CpuState) -> bool {
    state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0 && !state.long_mode()
}

fn table(vmcs: &Vmcs, base: field::Field, limit: field::Field) -> Table {
    Table { base: vmcs.get(base), limit: vmcs.get(limit) as u16 }
}
