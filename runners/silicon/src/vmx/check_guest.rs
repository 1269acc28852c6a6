//! What VM entry checks of the guest-state area (SDM volume 3, 27.3.1): a rule that is broken ends the entry with exit
//! reason 33.

use privet_cpu::state::{cr0, cr4, efer};
use privet_cpu::{Seg, Segment, flags};

use super::capability::{CR0_FIXED_ONES, CR4_FIXED_ONES};
use super::check_host::is_pat;
use super::controls::{Controls, entry, pin, proc2};
use super::features::Features;
use super::field::{self, Field};
use super::invalidate::is_canonical;
use super::non_register_state::{activity, blocking};
use super::segments::{reserved_rights, segment};
use super::vmcs::Vmcs;
use crate::Rule as Switch;
use crate::event::{KIND_INTERRUPT, KIND_NMI, VALID};

/// Qualifications of exit reason 33.
pub(super) mod why {
    pub(crate) const OTHER: u64 = 0;
    pub(crate) const PDPTES: u64 = 2;
    pub(crate) const NMI: u64 = 3;
    pub(crate) const LINK: u64 = 4;
}

/// What is checked, and the processor that it is checked against.
pub(super) struct Checked<'a> {
    pub(super) vmcs: &'a Vmcs,
    pub(super) controls: &'a Controls,
    pub(super) features: &'a Features,
}

/// The first rule that the guest state breaks, and the qualification that goes with it.
pub(super) fn violated(checked: &Checked) -> Option<(&'static str, u64)> {
    if !checked.features.rules.hold(Switch::GuestState) {
        return None;
    }
    RULES.iter().find(|(.., broken)| broken(checked)).map(|(name, why, _)| (*name, *why))
}

type Rule = (&'static str, u64, fn(&Checked) -> bool);

const RULES: [Rule; 30] = [
    ("a bit of CR0 that VMX operation does not allow", why::OTHER, cr0_bits),
    ("paging without protection", why::OTHER, paging_without_protection),
    ("a bit of CR4 that VMX operation does not allow", why::OTHER, cr4_bits),
    ("a reserved bit of DEBUGCTL", why::OTHER, debugctl),
    ("long mode without paging or PAE", why::OTHER, long_mode),
    ("PCIDs outside of long mode", why::OTHER, pcid),
    ("a CR3 that is too wide", why::OTHER, wide_cr3),
    ("the upper half of DR7", why::OTHER, dr7),
    ("a SYSENTER address that is not canonical", why::OTHER, sysenter),
    ("a type of memory in the PAT that there is not", why::OTHER, pat),
    ("a reserved bit of EFER, or one of another mode", why::OTHER, efer_bits),
    ("a selector of TR, LDTR or SS that it cannot have", why::OTHER, selectors),
    ("virtual-8086 segments that are none", why::OTHER, vm86_segments),
    ("a base that is not canonical, or too wide", why::OTHER, bases),
    ("a CS that is none", why::OTHER, code_segment),
    ("an SS that is none", why::OTHER, stack_segment),
    ("a data segment that is none", why::OTHER, data_segments),
    ("a segment's reserved bits, or that it is not present", why::OTHER, rights),
    ("a segment's limit that does not go with its granularity", why::OTHER, limits),
    ("a TR that is none", why::OTHER, task_register),
    ("an LDTR that is none", why::OTHER, ldt_register),
    ("a descriptor table that is none", why::OTHER, tables),
    ("an RIP that the mode does not have", why::OTHER, rip),
    ("RFLAGS that there are not", why::OTHER, rflags),
    ("an activity state that there is not", why::OTHER, activity_state),
    ("an activity state that does not go with the rest", why::OTHER, activity_with_rest),
    ("an interruptibility state that cannot be", why::OTHER, interruptibility),
    ("blocking that does not go with the event to inject", why::NMI, blocked_nmi),
    ("a link pointer", why::LINK, link_pointer),
    ("a PDPTE with a reserved bit", why::PDPTES, pdptes),
];

impl Checked<'_> {
    fn get(&self, field: Field) -> u64 {
        self.vmcs.get(field)
    }

    fn unrestricted(&self) -> bool {
        self.controls.proc2(proc2::UNRESTRICTED)
    }

    fn long(&self) -> bool {
        self.controls.entry(entry::IA32E)
    }

    fn vm86(&self) -> bool {
        self.get(field::GUEST_RFLAGS) & flags::VM != 0
    }

    fn protected(&self) -> bool {
        self.get(field::GUEST_CR0) & cr0::PE != 0
    }

    fn seg(&self, seg: Seg) -> Segment {
        segment(self.vmcs, field::SEGMENTS[seg as usize])
    }

    fn canonical(&self, field: Field) -> bool {
        is_canonical(self.get(field), self.get(field::GUEST_CR4))
    }

    /// The event to inject, if there is one: its kind and vector.
    fn event(&self) -> Option<(u32, u8)> {
        let word = self.vmcs.get32(field::ENTRY_EVENT);
        (word & VALID != 0).then_some((word >> 8 & 7, word as u8))
    }
}

fn cr0_bits(it: &Checked) -> bool {
    let value = it.get(field::GUEST_CR0);
    let free = if it.unrestricted() { cr0::PE | cr0::PG } else { 0 };
    let needed = CR0_FIXED_ONES & !free;
    value & needed != needed || value >> 32 != 0
}

fn paging_without_protection(it: &Checked) -> bool {
    let value = it.get(field::GUEST_CR0);
    value & cr0::PG != 0 && value & cr0::PE == 0
}

fn cr4_bits(it: &Checked) -> bool {
    let value = it.get(field::GUEST_CR4);
    value & CR4_FIXED_ONES != CR4_FIXED_ONES || value & !it.features.cr4 != 0
}

/// There is nothing that IA32_DEBUGCTL could switch on.
fn debugctl(it: &Checked) -> bool {
    it.controls.entry(entry::LOAD_DEBUG) && it.get(field::GUEST_DEBUGCTL) != 0
}

fn long_mode(it: &Checked) -> bool {
    it.long() && (it.get(field::GUEST_CR0) & cr0::PG == 0 || it.get(field::GUEST_CR4) & cr4::PAE == 0)
}

fn pcid(it: &Checked) -> bool {
    !it.long() && it.get(field::GUEST_CR4) & cr4::PCIDE != 0
}

/// With EPT it is a guest-physical address, in which no KeyID is.
fn wide_cr3(it: &Checked) -> bool {
    let features = it.features;
    let bits = if it.controls.proc2(proc2::EPT) { features.physical_bits } else { features.address_bits() };
    it.get(field::GUEST_CR3) >> bits != 0
}

fn dr7(it: &Checked) -> bool {
    it.controls.entry(entry::LOAD_DEBUG) && it.get(field::GUEST_DR7) >> 32 != 0
}

fn sysenter(it: &Checked) -> bool {
    !it.canonical(field::GUEST_SYSENTER_ESP) || !it.canonical(field::GUEST_SYSENTER_EIP)
}

fn pat(it: &Checked) -> bool {
    it.controls.entry(entry::LOAD_PAT) && !is_pat(it.get(field::GUEST_PAT))
}

fn efer_bits(it: &Checked) -> bool {
    let value = it.get(field::GUEST_EFER);
    let (lma, lme) = (value & efer::LMA != 0, value & efer::LME != 0);
    let paging = it.get(field::GUEST_CR0) & cr0::PG != 0;
    it.controls.entry(entry::LOAD_EFER) && (value & !it.features.efer != 0 || lma != it.long() || paging && lma != lme)
}

fn selectors(it: &Checked) -> bool {
    let (tr, ldtr) = (it.get(field::GUEST_TR), segment(it.vmcs, field::LDTR));
    let (cs, ss) = (it.seg(Seg::Cs), it.seg(Seg::Ss));
    let ss_privilege = !it.vm86() && !it.unrestricted() && ss.selector & 3 != cs.selector & 3;
    tr & 4 != 0 || !ldtr.unusable && ldtr.selector & 4 != 0 || ss_privilege
}

fn vm86_segments(it: &Checked) -> bool {
    const RIGHTS: u64 = 0xf3;
    it.vm86()
        && field::SEGMENTS.iter().any(|fields| {
            it.get(fields.base) != it.get(fields.selector) << 4
                || it.get(fields.limit) != 0xffff
                || it.get(fields.rights) != RIGHTS
        })
}

fn bases(it: &Checked) -> bool {
    let canonical = |fields: field::SegmentFields| it.canonical(fields.base);
    let ldtr_usable = !segment(it.vmcs, field::LDTR).unusable;
    let narrow = [Seg::Es, Seg::Ss, Seg::Ds];
    !canonical(field::TR)
        || !canonical(field::SEGMENTS[Seg::Fs as usize])
        || !canonical(field::SEGMENTS[Seg::Gs as usize])
        || ldtr_usable && !canonical(field::LDTR)
        || it.seg(Seg::Cs).base >> 32 != 0
        || narrow.into_iter().any(|seg| !it.seg(seg).unusable && it.seg(seg).base >> 32 != 0)
}

/// Type, S, DPL and the two sizes of CS.
fn code_segment(it: &Checked) -> bool {
    if it.vm86() {
        return false;
    }
    let (cs, ss) = (it.seg(Seg::Cs), it.seg(Seg::Ss));
    let dpl = match cs.kind {
        3 if it.unrestricted() => cs.dpl == 0,
        9 | 11 => cs.dpl == ss.dpl,
        13 | 15 => cs.dpl <= ss.dpl,
        _ => false,
    };
    !dpl || !cs.code_or_data || cs.unusable || it.long() && cs.long && cs.db
}

fn stack_segment(it: &Checked) -> bool {
    if it.vm86() {
        return false;
    }
    let (cs, ss) = (it.seg(Seg::Cs), it.seg(Seg::Ss));
    let kind = ss.unusable || matches!(ss.kind, 3 | 7) && ss.code_or_data;
    let privilege = it.unrestricted() || ss.dpl == (ss.selector & 3) as u8;
    let real = cs.kind != 3 && it.protected() || ss.dpl == 0;
    !(kind && privilege && real)
}

fn data_segments(it: &Checked) -> bool {
    !it.vm86()
        && [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs].into_iter().map(|seg| it.seg(seg)).any(|segment| {
            let kind = segment.kind & 1 != 0 && (segment.kind & 8 == 0 || segment.kind & 2 != 0);
            let privilege = it.unrestricted() || segment.kind >= 12 || segment.dpl >= (segment.selector & 3) as u8;
            !(segment.unusable || kind && privilege && segment.code_or_data)
        })
}

fn rights(it: &Checked) -> bool {
    !it.vm86()
        && field::SEGMENTS.iter().any(|fields| {
            let segment = segment(it.vmcs, *fields);
            !segment.unusable && (!segment.present || reserved_rights(it.get(fields.rights)))
        })
}

fn limits(it: &Checked) -> bool {
    !it.vm86() && field::SEGMENTS.iter().map(|fields| segment(it.vmcs, *fields)).any(|segment| !limit_fits(&segment))
}

/// With granularity the low 12 bits of a limit are ones, without it the high ones are zero.
fn limit_fits(segment: &Segment) -> bool {
    segment.unusable
        || (segment.limit & 0xfff == 0xfff || !segment.granularity) && (segment.limit >> 20 == 0 || segment.granularity)
}

fn task_register(it: &Checked) -> bool {
    let tr = segment(it.vmcs, field::TR);
    let kind = tr.kind == 11 || tr.kind == 3 && !it.long();
    !kind
        || tr.code_or_data
        || !tr.present
        || tr.unusable
        || reserved_rights(it.get(field::TR.rights))
        || !limit_fits(&tr)
}

fn ldt_register(it: &Checked) -> bool {
    let ldtr = segment(it.vmcs, field::LDTR);
    !ldtr.unusable
        && (ldtr.kind != 2
            || ldtr.code_or_data
            || !ldtr.present
            || reserved_rights(it.get(field::LDTR.rights))
            || !limit_fits(&ldtr))
}

fn tables(it: &Checked) -> bool {
    !it.canonical(field::GDTR_BASE)
        || !it.canonical(field::IDTR_BASE)
        || it.get(field::GDTR_LIMIT) >> 16 != 0
        || it.get(field::IDTR_LIMIT) >> 16 != 0
}

fn rip(it: &Checked) -> bool {
    let value = it.get(field::GUEST_RIP);
    if it.long() && it.seg(Seg::Cs).long { !is_canonical(value, it.get(field::GUEST_CR4)) } else { value >> 32 != 0 }
}

fn rflags(it: &Checked) -> bool {
    let value = it.get(field::GUEST_RFLAGS);
    let vm86 = it.vm86() && (it.long() || !it.protected());
    let masked = it.event().is_some_and(|(kind, _)| kind == KIND_INTERRUPT) && value & flags::IF == 0;
    value & flags::RESERVED_ONE == 0 || value & !(flags::ALL | flags::RESERVED_ONE) != 0 || vm86 || masked
}

fn activity_state(it: &Checked) -> bool {
    it.get(field::ACTIVITY) > activity::HLT
}

fn activity_with_rest(it: &Checked) -> bool {
    let halted = it.get(field::ACTIVITY) == activity::HLT;
    let blocked = it.get(field::INTERRUPTIBILITY) & (blocking::STI | blocking::MOV_SS) != 0;
    // Of what can be injected, interrupts, NMIs and the debug and machine-check exceptions wake.
    let asleep = it.event().is_some_and(|(kind, vector)| match kind {
        KIND_INTERRUPT | KIND_NMI => false,
        crate::event::KIND_EXCEPTION => !matches!(vector, 1 | 18),
        _ => true,
    });
    halted && (it.seg(Seg::Ss).dpl != 0 || blocked || asleep)
}

fn interruptibility(it: &Checked) -> bool {
    let value = it.get(field::INTERRUPTIBILITY);
    let (sti, mov_ss) = (value & blocking::STI != 0, value & blocking::MOV_SS != 0);
    let interrupts = it.get(field::GUEST_RFLAGS) & flags::IF != 0;
    let injects_interrupt = it.event().is_some_and(|(kind, _)| kind == KIND_INTERRUPT);
    value & !blocking::KNOWN != 0
        || sti && mov_ss
        || sti && !interrupts
        || (sti || mov_ss) && injects_interrupt
        || value & blocking::SMI != 0
}

fn blocked_nmi(it: &Checked) -> bool {
    let value = it.get(field::INTERRUPTIBILITY);
    let virtual_nmi = it.controls.pin(pin::VIRTUAL_NMI) && value & blocking::NMI != 0;
    it.event().is_some_and(|(kind, _)| kind == KIND_NMI) && (value & blocking::MOV_SS != 0 || virtual_nmi)
}

/// There are no shadow VMCSs that it could lead to.
fn link_pointer(it: &Checked) -> bool {
    it.get(field::LINK) != u64::MAX
}

/// Section 27.3.1.6, with EPT. Without, the entries are in memory, and a walk finds what is wrong with them.
fn pdptes(it: &Checked) -> bool {
    const PRESENT: u64 = 1;
    let pae = it.get(field::GUEST_CR0) & cr0::PG != 0 && it.get(field::GUEST_CR4) & cr4::PAE != 0 && !it.long();
    let reserved = 0x1e6 | !(u64::MAX >> (64 - it.features.physical_bits));
    let broken = |entry: u64| entry & PRESENT != 0 && entry & reserved != 0;
    pae && it.controls.proc2(proc2::EPT) && field::GUEST_PDPTES.into_iter().any(|entry| broken(it.get(entry)))
}
