//! The save area of a guest whose registers are encrypted (VMSA: APM volume 2, table B-4), and the host's beside it.
//!
//! A world switch of such a guest moves everything (15.35.8). Type A is what [`Swapped`] has, saved and restored for
//! both sides. Type B is the guest's in hardware, and the host's by software, which has stored it into the host save
//! area before VMRUN. Type C, the FPU, gets its reset values in the host.

use privet_cpu::CpuState;
use privet_cpu::fpu::FpuState;
use privet_cpu::state::gpr;

use super::save::{self, Swapped};
use super::vmcb::Area;
use crate::encryption::Key;
use crate::memory::{PhysicalMemory, write_u32, write_u64};
use crate::{KeyedMemory, read_u64};

/// SEV_FEATURES, what the guest wants of the silicon.
const SEV_FEATURES: u64 = 0x3b0;

const XSS: u64 = 0x140;
const PKRU: u64 = 0x2e8;
const XCR0: u64 = 0x3e8;

/// General registers but RAX and RSP, by number.
const REGISTERS: [(usize, u64); 14] = [
    (gpr::RCX, 0x308),
    (gpr::RDX, 0x310),
    (gpr::RBX, 0x318),
    (gpr::RBP, 0x328),
    (gpr::RSI, 0x330),
    (gpr::RDI, 0x338),
    (8, 0x340),
    (9, 0x348),
    (10, 0x350),
    (11, 0x358),
    (12, 0x360),
    (13, 0x368),
    (14, 0x370),
    (15, 0x378),
];

/// Memory with a guest's key.
struct Encrypted<'a, M: ?Sized>(&'a mut M, Key);

impl<M: KeyedMemory + ?Sized> PhysicalMemory for Encrypted<'_, M> {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        self.0.read_as(self.1, pa, bytes);
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        self.0.write_as(self.1, pa, bytes);
    }
}

/// A VMSA: its page, and the key that it is encrypted with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vmsa {
    pub(super) pa: u64,
    pub(super) key: Key,
}

impl Vmsa {
    /// SEV_FEATURES.
    pub(super) fn features(self, memory: &mut (impl KeyedMemory + ?Sized)) -> u64 {
        read_u64(&mut Encrypted(memory, self.key), self.pa + SEV_FEATURES)
    }

    /// The virtual machine privilege level.
    pub(super) fn vmpl(self, memory: &mut (impl KeyedMemory + ?Sized)) -> u8 {
        let mut vmpl = [0];
        memory.read_as(self.key, self.pa + 0xca, &mut vmpl);
        vmpl[0]
    }

    /// The part of type A.
    pub(super) fn swapped(self, memory: &mut (impl KeyedMemory + ?Sized)) -> Swapped {
        Swapped::read(&mut Encrypted(memory, self.key), self.pa)
    }

    /// Gives a processor the rest, on VMRUN.
    pub(super) fn load_rest(self, memory: &mut (impl KeyedMemory + ?Sized), state: &mut CpuState) {
        let mut memory = Encrypted(memory, self.key);
        load_type_b(&mut memory, self.pa, state);
        load_fpu(&mut memory, self.pa, &mut state.fpu);
    }

    /// Stores all of a processor, on #VMEXIT.
    pub(super) fn store(self, memory: &mut (impl KeyedMemory + ?Sized), state: &CpuState) {
        let mut memory = Encrypted(memory, self.key);
        Swapped::of(state).write(&mut memory, self.pa);
        save::store_additional(&mut memory, self.pa, state);
        for (register, at) in REGISTERS {
            write_u64(&mut memory, self.pa + at, state.gpr[register]);
        }
        write_u64(&mut memory, self.pa + XCR0, state.xcr0);
        write_u64(&mut memory, self.pa + XSS, state.xss);
        write_u32(&mut memory, self.pa + PKRU, state.fpu.pkru);
        store_fpu(&mut memory, self.pa, &state.fpu);
    }
}

/// Gives the host back what is not of type A, on #VMEXIT.
pub(super) fn load_host(memory: &mut (impl PhysicalMemory + ?Sized), save_area: u64, state: &mut CpuState) {
    state.fpu = FpuState::default();
    load_type_b(memory, save_area, state);
}

/// FS, GS, TR, LDTR, the MSRs of system calls, general registers, XCR0, XSS and PKRU. DR0 to DR3 and TSC_AUX are not
/// among them: that takes features which no processor here has.
fn load_type_b(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, state: &mut CpuState) {
    save::load_additional(memory, pa, state);
    let area = Area::<0x3f0>::read(memory, pa);
    for (register, at) in REGISTERS {
        state.gpr[register] = area.u64(at as usize);
    }
    state.xcr0 = area.u64(XCR0 as usize);
    state.xss = area.u64(XSS as usize);
    state.fpu.pkru = area.u32(PKRU as usize);
}

fn load_fpu(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, fpu: &mut FpuState) {
    let area = Area::<0x670>::read(memory, pa);
    fpu.fdp = area.u64(0x400);
    fpu.mxcsr = area.u32(0x408);
    fpu.ftw = area.u8(0x40c);
    fpu.fsw = area.u16(0x40e);
    fpu.fcw = area.u16(0x410);
    fpu.fop = area.u16(0x412);
    fpu.fip = area.u64(0x418);
    for register in 0..8 {
        let (mantissa, exponent) = (area.u64(0x420 + register * 8), area.u16(0x460 + register * 2));
        fpu.st[register] = u128::from(exponent) << 64 | u128::from(mantissa);
    }
    for register in 0..16 {
        fpu.xmm[register] = area.u128(0x470 + register * 16);
        fpu.ymm_high[register] = area.u128(0x570 + register * 16);
    }
}

fn store_fpu(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, fpu: &FpuState) {
    let mut image = [0; 0x270];
    let mut put = |at: usize, bytes: &[u8]| image[at - 0x400..][..bytes.len()].copy_from_slice(bytes);
    put(0x400, &fpu.fdp.to_le_bytes());
    put(0x408, &fpu.mxcsr.to_le_bytes());
    put(0x40c, &u16::from(fpu.ftw).to_le_bytes());
    put(0x40e, &fpu.fsw.to_le_bytes());
    put(0x410, &fpu.fcw.to_le_bytes());
    put(0x412, &fpu.fop.to_le_bytes());
    put(0x418, &fpu.fip.to_le_bytes());
    for (register, st) in fpu.st.iter().enumerate() {
        let bytes = st.to_le_bytes();
        put(0x420 + register * 8, &bytes[..8]);
        put(0x460 + register * 2, &bytes[8..10]);
    }
    for register in 0..16 {
        put(0x470 + register * 16, &fpu.xmm[register].to_le_bytes());
        put(0x570 + register * 16, &fpu.ymm_high[register].to_le_bytes());
    }
    memory.write(pa + 0x400, &image);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::TestMemory;

    const VMSA: Vmsa = Vmsa { pa: 0x1000, key: Key::numbered(1) };

    #[test]
    fn all_that_a_guest_has_survives_an_exit_and_an_entry() {
        let mut memory = TestMemory::new(0x4000);
        let mut guest = CpuState::reset();
        guest.gpr = std::array::from_fn(|register| 0x1111 * register as u64);
        guest.fpu.st = std::array::from_fn(|register| 0x3fff_8000_0000_0000_0000 + register as u128);
        guest.fpu.xmm = std::array::from_fn(|register| u128::MAX - register as u128);
        guest.fpu.ymm_high = std::array::from_fn(|register| 7 + register as u128);
        (guest.fpu.fcw, guest.fpu.ftw, guest.fpu.fop, guest.fpu.pkru) = (0x27f, 0x81, 0x123, 5);
        (guest.xcr0, guest.lstar, guest.kernel_gs_base, guest.cr2) = (7, 0x1234, 0x5678, 0x9abc);
        VMSA.store(&mut memory, &guest);
        let mut state = CpuState::reset();
        VMSA.swapped(&mut memory).load_guest(&mut state, true);
        VMSA.load_rest(&mut memory, &mut state);
        assert_eq!(state.gpr, guest.gpr);
        assert_eq!(state.fpu, guest.fpu);
        assert_eq!((state.xcr0, state.lstar, state.kernel_gs_base, state.cr2), (7, 0x1234, 0x5678, 0x9abc));
    }

    /// arch/x86/include/asm/svm.h: struct sev_es_save_area.
    #[test]
    fn the_layout_is_the_one_that_linux_fills() {
        let mut memory = TestMemory::new(0x4000);
        let mut field = |at: u64, value: u64| {
            crate::KeyedMemory::write_as(&mut memory, VMSA.key, VMSA.pa + at, &value.to_le_bytes())
        };
        field(0x378, 15);
        field(0x3e8, 3);
        field(0x408, 0x1f80);
        field(0x410, 0x37f);
        field(0x420, 1 << 63);
        field(0x460, 0x3fff);
        field(0x570 + 15 * 16, 9);
        field(0x3b0, 1);
        let mut state = CpuState::reset();
        VMSA.load_rest(&mut memory, &mut state);
        assert_eq!((state.gpr[15], state.xcr0, state.fpu.mxcsr, state.fpu.fcw), (15, 3, 0x1f80, 0x37f));
        assert_eq!(state.fpu.st[0], 0x3fff_8000_0000_0000_0000);
        assert_eq!(state.fpu.ymm_high[15] as u64, 9);
        assert_eq!(VMSA.features(&mut memory), 1);
    }

    #[test]
    fn the_host_gets_back_what_software_has_saved_and_an_fpu_after_reset() {
        let mut memory = TestMemory::new(0x4000);
        write_u64(&mut memory, 0x2000 + 0x318, 0xb);
        write_u64(&mut memory, 0x2000 + 0x3e8, 7);
        let mut state = CpuState::reset();
        state.fpu.xmm[3] = 1;
        state.gpr[gpr::RAX] = 4;
        load_host(&mut memory, 0x2000, &mut state);
        assert_eq!((state.gpr[gpr::RBX], state.gpr[gpr::RAX], state.xcr0), (0xb, 4, 7));
        assert_eq!(state.fpu, FpuState::default());
    }
}
