//! The save area of a vCPU as KVM encrypts it (arch/x86/kvm/svm/sev.c: sev_es_sync_vmsa; AMD APM vol. 2, table B-4).

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};

use crate::errno;
use crate::outcome::{Outcome, Stop};
use crate::units::PAGE_SIZE;
use crate::vcpu::Vcpu;

/// What is on in the guest beside its encryption (SEV_FEATURES).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SevFeatures(pub u64);

impl SevFeatures {
    /// Those of a SEV-ES guest that asked for none.
    pub const NONE: SevFeatures = SevFeatures(0);
    /// Those of an SNP guest that asked for none: KVM sets SNP_ACTIVE.
    pub const SNP: SevFeatures = SevFeatures(1 << 0);
}

/// EFER.SVME, which KVM sets in every save area.
const SVME: u64 = 1 << 12;
/// CR4.MCE, which is on in a guest where it is on in the host.
const MCE: u64 = 1 << 6;
/// Bits of CR0 that KVM does not let guests have (KVM_X86_QUIRK_CD_NW_CLEARED).
const CD_NW: u64 = 0b11 << 29;

/// After reset (AMD APM vol. 2, table 14-1).
const DR6: u64 = 0xffff_0ff0;
const DR7: u64 = 0x400;
const G_PAT: u64 = 0x0007_0406_0007_0406;
const XCR0: u64 = 1;
const FCW: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Where MXCSR and the upper halves are in an XSAVE area (AMD APM vol. 2, 11.5).
const MXCSR_WORD: usize = 24 / 4;
const YMM: std::ops::Range<usize> = 576..576 + 256;

/// The registers of a vCPU that has not run. CR2 is not among them: KVM gives it to the processor when it runs the vCPU,
/// and does not encrypt it. Those that are not here have the values of a reset.
#[derive(Clone, Debug)]
pub struct VcpuState {
    /// As of KVM_SET_REGS.
    pub registers: kvm_regs,
    /// As of KVM_SET_SREGS.
    pub special: kvm_sregs,
    /// As of KVM_SET_FPU, and MXCSR.
    pub floating_point: kvm_fpu,
    /// The upper halves of the YMM registers.
    pub ymm_high: [[u8; 16]; 16],
}

impl VcpuState {
    /// That of a vCPU, as long as it can be read.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM refuses.
    pub fn of(vcpu: &Vcpu) -> Outcome<VcpuState> {
        let kvm = vcpu.kvm()?;
        let refused = |ioctl: &'static str| {
            move |error| Stop::Fail(format!("{ioctl} of vCPU {}: {:?}", vcpu.id(), errno::of_kvm(error)))
        };
        let xsave = kvm.get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
        let area: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (registers, _) = area[YMM].as_chunks::<16>();
        Ok(VcpuState {
            registers: kvm.get_regs().map_err(refused("KVM_GET_REGS"))?,
            special: kvm.get_sregs().map_err(refused("KVM_GET_SREGS"))?,
            // KVM_GET_FPU leaves MXCSR out.
            floating_point: kvm_fpu {
                mxcsr: xsave.region[MXCSR_WORD],
                ..kvm.get_fpu().map_err(refused("KVM_GET_FPU"))?
            },
            ymm_high: std::array::from_fn(|index| registers[index]),
        })
    }

    /// These registers, and the floating-point state of a reset.
    pub fn with_fresh_fpu(registers: kvm_regs, special: kvm_sregs) -> VcpuState {
        let floating_point = kvm_fpu { fcw: FCW, mxcsr: MXCSR, ..Default::default() };
        VcpuState { registers, special, floating_point, ymm_high: [[0; 16]; 16] }
    }

    /// The page that is encrypted and measured.
    pub fn vmsa(&self, features: SevFeatures) -> [u8; PAGE_SIZE as usize] {
        let VcpuState { registers: r, special: s, floating_point: f, ymm_high } = self;
        let mut page = Page([0; PAGE_SIZE as usize]);
        for (offset, segment) in [
            (0x00, &s.es),
            (0x10, &s.cs),
            (0x20, &s.ss),
            (0x30, &s.ds),
            (0x40, &s.fs),
            (0x50, &s.gs),
            (0x70, &s.ldt),
            (0x90, &s.tr),
        ] {
            page.segment(offset, segment);
        }
        for (offset, table) in [(0x60, &s.gdt), (0x80, &s.idt)] {
            page.put(offset + 4, u32::from(table.limit).to_le_bytes());
            page.put(offset + 8, table.base.to_le_bytes());
        }
        page.put(0xcb, [s.ss.dpl & 3]);
        for (offset, value) in [
            (0xd0, s.efer | SVME),
            (0x148, s.cr4 | MCE),
            (0x150, s.cr3),
            (0x158, s.cr0 & !CD_NW),
            (0x160, DR7),
            (0x168, DR6),
            (0x170, r.rflags),
            (0x178, r.rip),
            (0x1d8, r.rsp),
            (0x1f8, r.rax),
            (0x268, G_PAT),
            (0x308, r.rcx),
            (0x310, r.rdx),
            (0x318, r.rbx),
            (0x328, r.rbp),
            (0x330, r.rsi),
            (0x338, r.rdi),
            (0x340, r.r8),
            (0x348, r.r9),
            (0x350, r.r10),
            (0x358, r.r11),
            (0x360, r.r12),
            (0x368, r.r13),
            (0x370, r.r14),
            (0x378, r.r15),
            (0x3b0, features.0),
            (0x3e8, XCR0),
            (0x400, f.last_dp),
        ] {
            page.put(offset, value.to_le_bytes());
        }
        page.put(0x408, f.mxcsr.to_le_bytes());
        for (offset, word) in [(0x40c, u16::from(f.ftwx)), (0x40e, f.fsw), (0x410, f.fcw), (0x412, f.last_opcode)] {
            page.put(offset, word.to_le_bytes());
        }
        page.put(0x418, f.last_ip.to_le_bytes());
        // All mantissas, then all exponents.
        for (index, register) in f.fpr.iter().enumerate() {
            page.put::<8>(0x420 + 8 * index, std::array::from_fn(|at| register[at]));
            page.put(0x460 + 2 * index, [register[8], register[9]]);
        }
        for (index, register) in f.xmm.iter().enumerate() {
            page.put(0x470 + 16 * index, *register);
        }
        for (index, register) in ymm_high.iter().enumerate() {
            page.put(0x570 + 16 * index, *register);
        }
        page.0
    }
}

struct Page([u8; PAGE_SIZE as usize]);

impl Page {
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }

    /// Selector, attributes, limit and base (AMD APM vol. 2, table B-4 and 4.7.1).
    fn segment(&mut self, offset: usize, segment: &kvm_segment) {
        let flag = |value: u8, bit: u32| u16::from(value & 1) << bit;
        let attributes = u16::from(segment.type_ & 15)
            | flag(segment.s, 4)
            | u16::from(segment.dpl & 3) << 5
            | flag(segment.present & !segment.unusable, 7)
            | flag(segment.avl, 8)
            | flag(segment.l, 9)
            | flag(segment.db, 10)
            | flag(segment.g, 11);
        self.put(offset, segment.selector.to_le_bytes());
        self.put(offset + 2, attributes.to_le_bytes());
        self.put(offset + 4, segment.limit.to_le_bytes());
        self.put(offset + 8, segment.base.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(page: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(page[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn registers_are_where_the_processor_looks_for_them() {
        let registers = kvm_regs { rax: 1, rcx: 2, r15: 3, rip: 4, rsp: 5, rflags: 2, ..Default::default() };
        let mut special = kvm_sregs { cr0: 0xe000_0011, cr3: 6, cr4: 0x20, efer: 0x500, ..Default::default() };
        special.cs = kvm_segment { selector: 8, type_: 0xb, s: 1, present: 1, l: 1, g: 1, limit: 7, ..special.cs };
        special.ss = kvm_segment { selector: 16, dpl: 3, present: 1, unusable: 1, ..special.ss };
        special.gdt.limit = 9;
        let page = VcpuState::with_fresh_fpu(registers, special).vmsa(SevFeatures::SNP);
        for (offset, value) in [
            (0x10, 7 << 32 | 0xa9b << 16 | 8),
            (0x20, 0x60 << 16 | 16),
            (0x60, 9 << 32),
            (0xd0, 0x1500),
            (0x148, 0x60),
            (0x150, 6),
            (0x158, 0x8000_0011),
            (0x178, 4),
            (0x1d8, 5),
            (0x1f8, 1),
            (0x308, 2),
            (0x378, 3),
            (0x3b0, 1),
            (0x3e8, 1),
            (0x408, 0x1f80),
            (0x410, 0x37f),
        ] {
            assert_eq!(word(&page, offset), value, "{offset:#x}");
        }
        assert_eq!(page[0xcb], 3);
        assert!(page[0x670..].iter().all(|byte| *byte == 0));
    }
}
