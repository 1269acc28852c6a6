//! General, segment and control registers, between the ABI's structures and the CPU's state.
//!
//! Source: `arch/x86/kvm/regs.c`.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2};
use nix::errno::Errno;
use privet_cpu::segment::Table;
use privet_cpu::state::{cr0, cr4, efer};
use privet_cpu::{CpuState, Seg, Segment};

use crate::cpuid::GuestCpuid;
use crate::vcpu::State;

/// The order of `struct kvm_regs` in the order in which instructions encode registers.
const ORDER: [fn(&mut kvm_regs) -> &mut u64; 16] = [
    |r| &mut r.rax,
    |r| &mut r.rcx,
    |r| &mut r.rdx,
    |r| &mut r.rbx,
    |r| &mut r.rsp,
    |r| &mut r.rbp,
    |r| &mut r.rsi,
    |r| &mut r.rdi,
    |r| &mut r.r8,
    |r| &mut r.r9,
    |r| &mut r.r10,
    |r| &mut r.r11,
    |r| &mut r.r12,
    |r| &mut r.r13,
    |r| &mut r.r14,
    |r| &mut r.r15,
];

/// `KVM_GET_REGS`.
pub(crate) fn get_regs(state: &CpuState) -> kvm_regs {
    let mut regs = kvm_regs { rip: state.rip, rflags: state.rflags, ..Default::default() };
    for (field, value) in ORDER.iter().zip(state.gpr) {
        *field(&mut regs) = value;
    }
    regs
}

/// `KVM_SET_REGS`; an exception that is waiting is forgotten.
pub(crate) fn set_regs(state: &mut CpuState, mut regs: kvm_regs) {
    for (field, value) in ORDER.iter().zip(&mut state.gpr) {
        *value = *field(&mut regs);
    }
    state.rip = regs.rip;
    state.rflags = regs.rflags | privet_cpu::flags::RESERVED_ONE;
    if matches!(state.injection, Some(privet_cpu::state::Injection::Exception(_))) {
        state.injection = None;
    }
}

fn to_segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.granularity.into(),
        avl: segment.available.into(),
        unusable: segment.unusable.into(),
        padding: 0,
    }
}

fn from_segment(segment: &kvm_segment) -> Segment {
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        kind: segment.type_ & 0xf,
        present: segment.present != 0,
        dpl: segment.dpl & 3,
        db: segment.db != 0,
        code_or_data: segment.s != 0,
        long: segment.l != 0,
        granularity: segment.g != 0,
        available: segment.avl != 0,
        unusable: segment.unusable != 0,
    }
}

fn to_table(table: Table) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

/// `KVM_GET_SREGS`.
pub(crate) fn get_sregs(state: &State, cr8: u64) -> kvm_sregs {
    let cpu = &state.cpu.state;
    let segment = |seg| to_segment(cpu.segment(seg));
    let mut sregs = kvm_sregs {
        cs: segment(Seg::Cs),
        ds: segment(Seg::Ds),
        es: segment(Seg::Es),
        fs: segment(Seg::Fs),
        gs: segment(Seg::Gs),
        ss: segment(Seg::Ss),
        tr: to_segment(&cpu.tr),
        ldt: to_segment(&cpu.ldtr),
        gdt: to_table(cpu.gdtr),
        idt: to_table(cpu.idtr),
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        cr8,
        efer: cpu.efer,
        apic_base: cpu.apic_base,
        interrupt_bitmap: [0; 4],
    };
    if let Some(vector) = state.user_interrupt {
        sregs.interrupt_bitmap[usize::from(vector / 64)] = 1 << (vector % 64);
    }
    sregs
}

/// Whether the control registers go together (kernel: `kvm_is_valid_sregs`, `kvm_apic_set_base`).
fn is_valid(sregs: &kvm_sregs, cpuid: &GuestCpuid) -> bool {
    let config = cpuid.config();
    let above_physical = !0 << cpuid.physical_bits();
    let mode_fits = if sregs.efer & efer::LME != 0 && sregs.cr0 & cr0::PG != 0 {
        sregs.cr4 & cr4::PAE != 0 && sregs.efer & efer::LMA != 0 && sregs.cr3 & above_physical == 0
    } else {
        sregs.efer & efer::LMA == 0 && sregs.cs.l == 0
    };
    let (x2apic, apic_enabled) = (1 << 10, 1 << 11);
    let reserved_in_apic_base = above_physical | 0x2ff | if cpuid.has_x2apic() { 0 } else { x2apic };
    mode_fits
        && sregs.cr4 & !config.cr4_allowed == 0
        && sregs.cr0 >> 32 == 0
        && (sregs.cr0 & cr0::NW == 0 || sregs.cr0 & cr0::CD != 0)
        && (sregs.cr0 & cr0::PG == 0 || sregs.cr0 & cr0::PE != 0)
        && sregs.efer & !config.efer_allowed == 0
        && sregs.apic_base & reserved_in_apic_base == 0
        && (sregs.apic_base & x2apic == 0 || sregs.apic_base & apic_enabled != 0)
}

/// `KVM_SET_SREGS`, without the interrupt and CR8.
///
/// # Errors
/// EINVAL; nothing is changed.
pub(crate) fn set_sregs(state: &mut State, sregs: &kvm_sregs) -> Result<(), Errno> {
    if !is_valid(sregs, &state.cpuid) {
        return Err(Errno::EINVAL);
    }
    let cpu = &mut state.cpu.state;
    let segments = [
        (Seg::Cs, &sregs.cs),
        (Seg::Ds, &sregs.ds),
        (Seg::Es, &sregs.es),
        (Seg::Fs, &sregs.fs),
        (Seg::Gs, &sregs.gs),
        (Seg::Ss, &sregs.ss),
    ];
    for (seg, segment) in segments {
        cpu.segments[seg as usize] = from_segment(segment);
    }
    cpu.tr = from_segment(&sregs.tr);
    cpu.ldtr = from_segment(&sregs.ldt);
    cpu.gdtr = Table { base: sregs.gdt.base, limit: sregs.gdt.limit };
    cpu.idtr = Table { base: sregs.idt.base, limit: sregs.idt.limit };
    (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    (cpu.cr8, cpu.efer, cpu.apic_base) = (sregs.cr8 & 0xf, sregs.efer, sregs.apic_base);
    Ok(())
}

/// The part of `struct kvm_sregs2` that `struct kvm_sregs` has too.
pub(crate) fn from_sregs2(sregs: &kvm_sregs2) -> kvm_sregs {
    let &kvm_sregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = sregs;
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap: [0; 4],
    }
}

/// The reverse; page directory pointers are not cached by the model, and read as not valid.
pub(crate) fn to_sregs2(sregs: &kvm_sregs) -> kvm_sregs2 {
    let &kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = sregs;
    kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags: 0,
        pdptrs: [0; 4],
    }
}
