//! The register state in which a vCPU enters a payload: 64-bit mode with paging on (Intel SDM vol. 3, 10.8.5).

use kvm_bindings::{CpuId, kvm_regs, kvm_segment, kvm_sregs};

use crate::errno;
use crate::outcome::{Outcome, Stop};
use crate::units::Gpa;
use crate::vcpu::Vcpu;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;

const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
const RFLAGS_IF: u64 = 1 << 9;

/// Selector of the ring-0 code segment; the payload loads a GDT of its own that has one there.
pub(crate) const CODE_SELECTOR: u16 = 0x08;
/// Selector of the ring-0 data segment, likewise.
pub(crate) const DATA_SELECTOR: u16 = 0x10;

/// Puts a fresh vCPU into 64-bit mode, ring 0, interrupts off, with page tables at `cr3`.
///
/// # Errors
/// [`Stop::Fail`] if KVM refuses a part of the state.
pub fn enter(vcpu: &Vcpu, cpuid: &CpuId, cr3: Gpa, registers: &kvm_regs) -> Outcome {
    let refused = |ioctl: &'static str| {
        move |error| Stop::Fail(format!("{ioctl} of vCPU {}: {:?}", vcpu.id(), errno::of_kvm(error)))
    };
    let kvm = vcpu.kvm()?;
    kvm.set_cpuid2(cpuid).map_err(refused("KVM_SET_CPUID2"))?;
    let mut sregs = kvm.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    set_sregs(&mut sregs, cr3);
    kvm.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
    kvm.set_regs(registers).map_err(refused("KVM_SET_REGS"))
}

/// The special registers of a vCPU in that state whose others are those of a reset.
pub(crate) fn after_reset(cr3: Gpa) -> kvm_sregs {
    let system = |type_| kvm_segment { type_, present: 1, limit: 0xffff, ..Default::default() };
    let mut sregs = kvm_sregs { tr: system(0xb), ldt: system(0x2), ..Default::default() };
    (sregs.gdt.limit, sregs.idt.limit) = (0xffff, 0xffff);
    set_sregs(&mut sregs, cr3);
    sregs
}

/// SSE is on because the first Rust instruction may already use it.
fn set_sregs(sregs: &mut kvm_sregs, cr3: Gpa) {
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = cr3.0;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs.efer = EFER_LME | EFER_LMA | EFER_NXE;
    sregs.cs = segment(CODE_SELECTOR, 0xb, true);
    let data = segment(DATA_SELECTOR, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

/// The registers at the entry point: `rdi` and `rsi` are its two arguments. Interrupts are enabled, though no
/// guest gets any: emulated VMX (Bochs 2.7) never interrupts a guest that has them disabled, which leaves the
/// host hanging until the guest exits by itself.
pub fn registers(entry: u64, rdi: u64, rsi: u64) -> kvm_regs {
    kvm_regs { rip: entry, rdi, rsi, rflags: RFLAGS_RESERVED | RFLAGS_IF, ..Default::default() }
}

fn segment(selector: u16, kind: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
