//! x87 and SSE registers: `kvm_fpu`, the XSAVE image, and XCR0.

use kvm_bindings::{kvm_fpu, kvm_xcr, kvm_xcrs};
use nix::errno::Errno;
use privet_cpu::fpu::{self, FpuState, MXCSR_MASK};

use crate::capability::XSAVE_BYTES;
use crate::cpuid::XCR0_SUPPORTED;
use crate::user::zeroed;

/// `KVM_GET_FPU`.
pub(crate) fn get_fpu(state: &FpuState) -> kvm_fpu {
    kvm_fpu {
        fpr: state.st.map(u128::to_le_bytes),
        fcw: state.fcw,
        fsw: state.fsw,
        ftwx: state.ftw,
        last_opcode: state.fop,
        last_ip: state.fip,
        last_dp: state.fdp,
        xmm: state.xmm.map(u128::to_le_bytes),
        mxcsr: state.mxcsr,
        ..zeroed()
    }
}

/// `KVM_SET_FPU`; like the kernel, it does not set MXCSR.
pub(crate) fn set_fpu(state: &mut FpuState, fpu: &kvm_fpu) {
    state.st = fpu.fpr.map(|register| u128::from_le_bytes(register) & ((1 << 80) - 1));
    (state.fcw, state.fsw, state.ftw) = (fpu.fcw, fpu.fsw, fpu.ftwx);
    (state.fop, state.fip, state.fdp) = (fpu.last_opcode & 0x7ff, fpu.last_ip, fpu.last_dp);
    state.xmm = fpu.xmm.map(u128::from_le_bytes);
}

/// `KVM_GET_XSAVE`.
pub(crate) fn get_xsave(state: &FpuState) -> Box<[u8; XSAVE_BYTES]> {
    state.xsave(XCR0_SUPPORTED)
}

/// `KVM_SET_XSAVE` (kernel: `fpu_copy_uabi_to_guest_fpstate`).
///
/// # Errors
/// EINVAL for components that the guest cannot have and for reserved bits of MXCSR.
pub(crate) fn set_xsave(state: &mut FpuState, image: &[u8; XSAVE_BYTES]) -> Result<(), Errno> {
    let word = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    let (mxcsr, components) = (word(24), word(fpu::XSAVE_HEADER));
    if mxcsr & !MXCSR_MASK != 0 || u64::from(components) & !XCR0_SUPPORTED != 0 {
        return Err(Errno::EINVAL);
    }
    state.load_xsave(image, XCR0_SUPPORTED).map_err(|_| Errno::EINVAL)
}

/// `KVM_GET_XCRS`.
pub(crate) fn get_xcrs(xcr0: u64) -> kvm_xcrs {
    let mut xcrs: kvm_xcrs = zeroed();
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: xcr0, ..Default::default() };
    xcrs
}

/// The XCR0 that `KVM_SET_XCRS` asks for, if it does.
///
/// # Errors
/// EINVAL.
pub(crate) fn new_xcr0(xcrs: &kvm_xcrs) -> Result<Option<u64>, Errno> {
    if xcrs.nr_xcrs as usize > xcrs.xcrs.len() || xcrs.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let Some(xcr) = xcrs.xcrs[..xcrs.nr_xcrs as usize].iter().find(|xcr| xcr.xcr == 0) else { return Ok(None) };
    if xcr.value & fpu::XCR0_X87 == 0 || xcr.value & !XCR0_SUPPORTED != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(xcr.value))
}
