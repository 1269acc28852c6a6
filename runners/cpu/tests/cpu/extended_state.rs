//! x87, AVX and XSAVE: what they raise, and what they store besides results.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use privet_cpu::fpu::{COMPACTED, FpuState, XCR0_AVX, XCR0_SSE, XCR0_X87, compacted_size, standard_size, status};
use privet_cpu::state::{cr0, cr4, gpr};
use privet_cpu::{CpuExit, vector};

use crate::descriptor_tables::HANDLERS;
use crate::exceptions::{CODE, Machine, PAGED};

const UD: u64 = vector::UD as u64;
const NM: u64 = vector::NM as u64;
const GP: u64 = vector::GP as u64;
const PF: u64 = vector::PF as u64;
const MF: u64 = vector::MF as u64;
const XM: u64 = vector::XM as u64;
/// Memory that is not used for anything else.
const AREA: u64 = 0x2_0000;

/// A machine with everything enabled.
fn machine(cpl: u16) -> Machine {
    let mut machine = Machine::new(cpl);
    machine.cpu.state.cr4 |= cr4::OSXSAVE;
    machine.cpu.state.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    machine.cpu.state.gpr[gpr::RBX] = AREA;
    machine
}

/// Runs a program that ends well.
fn complete(machine: &mut Machine, assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    machine.cpu.state.rip = CODE;
    let exit = machine.run(|a| {
        assemble(a)?;
        a.vmcall()
    });
    assert_eq!(exit, CpuExit::Bus);
    let rip = machine.cpu.state.rip;
    assert!(!(HANDLERS..HANDLERS + 0x1000).contains(&rip), "vector {}", (rip - HANDLERS) / 16);
    machine.cpu.state.rip = CODE;
}

#[test]
fn x87_is_not_available_while_it_is_emulated_or_switched_lazily() {
    for bit in [cr0::EM, cr0::TS] {
        let mut machine = machine(3);
        machine.cpu.state.cr0 |= bit;
        assert_eq!(machine.vector(|a| a.fld1()), NM);
    }
}

#[test]
fn mmx_does_not_exist_while_x87_is_emulated() {
    let mut machine = machine(3);
    machine.cpu.state.cr0 |= cr0::EM;
    assert_eq!(machine.vector(|a| a.emms()), UD);
}

#[test]
fn an_unmasked_x87_exception_is_reported_by_the_next_waiting_instruction() {
    let mut machine = machine(3);
    machine.cpu.state.fpu.fcw &= !status::ZE;
    let vector = machine.vector(|a| {
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        // These do not wait.
        a.fnstsw(ax)?;
        a.fnstcw(word_ptr(rbx))?;
        a.fld1()
    });
    assert_eq!(vector, MF);
    let fpu = &machine.cpu.state.fpu;
    assert_eq!(machine.cpu.state.gpr[gpr::RAX] as u16 & (status::ZE | status::PENDING), status::ZE | status::PENDING);
    assert_eq!(fpu.fsw & status::PENDING, status::PENDING);
    assert_eq!((fpu.fip, fpu.fop), (CODE + 4, 0x6f9), "of FDIVP, DE F9");
}

#[test]
fn an_unmasked_exception_stores_nothing_in_memory() {
    let mut machine = machine(3);
    machine.cpu.state.fpu.fcw &= !status::OE;
    machine.cpu.state.gpr[gpr::RCX] = AREA + 16;
    // Twice the largest number of 64 bits, in 80 bits.
    machine.ram.write(AREA, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x43]);
    machine.ram.write_u64(AREA + 16, 0x1234);
    let vector = machine.vector(|a| {
        a.fld(tbyte_ptr(rbx))?;
        a.fstp(qword_ptr(rcx))?;
        a.wait()
    });
    assert_eq!(vector, MF);
    assert_eq!(machine.ram.read_u64(AREA + 16), 0x1234);
    assert_eq!(machine.cpu.state.fpu.ftw.count_ones(), 1, "nothing is popped");
    assert_eq!(machine.cpu.state.fpu.fdp, AREA + 16);
}

#[test]
fn a_store_that_faults_leaves_the_stack_as_it_was() {
    let mut machine = machine(3);
    machine.pte(5, 0);
    machine.cpu.state.gpr[gpr::RCX] = PAGED + 0x5000 - 4;
    let fault = machine.page_fault(|a| {
        a.fldpi()?;
        a.fstp(qword_ptr(rcx))
    });
    assert_eq!(fault, (6, PAGED + 0x5000));
    assert_eq!(machine.cpu.state.fpu.ftw, 0x80);
    assert_eq!(machine.ram.read_u64(0x4ff8) >> 32, 0, "no half of it was stored");
}

#[test]
fn environments_tell_the_last_instruction() {
    let mut machine = machine(3);
    machine.cpu.state.gpr[gpr::RCX] = AREA + 0x100;
    complete(&mut machine, |a| {
        a.nop()?;
        a.fld(dword_ptr(rcx))?;
        a.fnstenv(ptr(rbx))?;
        a.fnsave(ptr(rbx + 0x80))?;
        a.fldenv(ptr(rbx))
    });
    for at in [AREA, AREA + 0x80] {
        let tags = u64::from(u16::from_le_bytes([machine.ram.read(at + 8, 1)[0], machine.ram.read(at + 9, 1)[0]]));
        assert_eq!(tags, 0x7fff, "a zero in the last register");
        assert_eq!(machine.ram.read_u64(at + 12) as u32, CODE as u32 + 1);
        assert_eq!(machine.ram.read_u64(at + 20) as u32, AREA as u32 + 0x100);
    }
    let fpu = &machine.cpu.state.fpu;
    assert_eq!((fpu.fip, fpu.fdp, fpu.ftw), (CODE + 1, AREA + 0x100, 0x80));
}

#[test]
fn fincstp_turns_the_stack() {
    let mut machine = machine(3);
    complete(&mut machine, |a| {
        a.fld1()?;
        a.fldz()?;
        a.fincstp()
    });
    assert_eq!(machine.cpu.state.fpu.st[0], 0x3fff << 64 | 1 << 63);
    assert_eq!(machine.cpu.state.fpu.fsw >> 11 & 7, 7);
}

#[test]
fn vex_needs_xcr0_and_protected_mode() {
    let vaddps = |a: &mut CodeAssembler| a.vaddps(ymm0, ymm1, ymm2);
    let mut without = machine(3);
    without.cpu.state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(without.vector(vaddps), UD);
    let mut without = machine(3);
    without.cpu.state.xcr0 = XCR0_X87 | XCR0_SSE;
    assert_eq!(without.vector(vaddps), UD);
    let mut lazily = machine(3);
    lazily.cpu.state.cr0 |= cr0::TS;
    assert_eq!(lazily.vector(vaddps), NM);
    // BMI is VEX too, and needs none of it.
    let mut bits = machine(3);
    bits.cpu.state.xcr0 = XCR0_X87;
    complete(&mut bits, |a| a.andn(eax, ecx, edx));
}

#[test]
fn only_the_aligned_moves_and_legacy_operands_need_alignment() {
    let mut misaligned = machine(3);
    misaligned.cpu.state.gpr[gpr::RBX] = AREA + 16;
    assert_eq!(misaligned.vector(|a| a.vmovdqa(ymm0, ymmword_ptr(rbx))), GP);
    let mut misaligned = machine(3);
    misaligned.cpu.state.gpr[gpr::RBX] = AREA + 8;
    assert_eq!(misaligned.vector(|a| a.aesenc(xmm0, xmmword_ptr(rbx))), GP);
    let mut misaligned = machine(3);
    misaligned.cpu.state.gpr[gpr::RBX] = AREA + 8;
    complete(&mut misaligned, |a| {
        a.vmovdqu(ymm0, ymmword_ptr(rbx))?;
        a.vaddps(ymm0, ymm1, ymmword_ptr(rbx))?;
        a.vaesenc(xmm0, xmm1, xmmword_ptr(rbx))?;
        a.pcmpistri(xmm0, xmmword_ptr(rbx), 0)
    });
}

#[test]
fn an_unmasked_simd_exception_leaves_the_target_alone() {
    let mut machine = machine(3);
    machine.cpu.state.fpu.mxcsr &= !(1 << 9);
    machine.cpu.state.fpu.xmm[1] = 0x3f80_0000;
    machine.cpu.state.fpu.ymm_high[0] = 7;
    assert_eq!(machine.vector(|a| a.vdivss(xmm0, xmm1, xmm2)), XM);
    assert_eq!(machine.cpu.state.fpu.ymm_high[0], 7);
    assert_eq!(machine.cpu.state.fpu.mxcsr & 0x3f, 4, "division by zero");
}

#[test]
fn a_masked_move_touches_selected_elements_only() {
    let mut machine = machine(3);
    machine.pte(5, 0);
    machine.ram.write_u64(0x4ff8, 0x2222_2222_1111_1111);
    machine.cpu.state.gpr[gpr::RCX] = PAGED + 0x5000 - 8;
    machine.cpu.state.fpu.xmm[1] = 1 << 63;
    complete(&mut machine, |a| {
        a.vmaskmovps(ymm0, ymm1, ymmword_ptr(rcx))?;
        a.vmaskmovps(ymmword_ptr(rcx - 4), ymm1, ymm0)
    });
    assert_eq!(machine.cpu.state.fpu.xmm[0], 0x2222_2222 << 32);
    assert_eq!(machine.ram.read_u64(0x4ff8), 0x2222_2222_2222_2222);

    machine.cpu.state.fpu.xmm[1] |= 1 << 127;
    assert_eq!(machine.page_fault(|a| a.vmaskmovps(ymmword_ptr(rcx - 4), ymm1, ymm1)), (6, PAGED + 0x5000));
    assert_eq!(machine.ram.read_u64(0x4ff8), 0x2222_2222_2222_2222, "all or nothing");
}

#[test]
fn a_gather_that_faults_has_done_what_comes_before() {
    let mut machine = machine(3);
    machine.pte(5, 0);
    machine.ram.write_u64(0x4ff8, 0x2222_2222_1111_1111);
    machine.cpu.state.gpr[gpr::RCX] = PAGED + 0x5000;
    let fpu = &mut machine.cpu.state.fpu;
    fpu.xmm[0] = u128::MAX;
    fpu.xmm[1] = u128::MAX;
    // Elements -2, -1, 0 and 1.
    fpu.xmm[2] = 1_u128 << 96 | 0xffff_ffff_ffff_fffe;
    // VPGATHERDD xmm0, [rcx + xmm2 * 4], xmm1; below with xmm0 as its own mask.
    let fault = machine.page_fault(|a| a.db(&[0xc4, 0xe2, 0x71, 0x90, 0x04, 0x91]));
    assert_eq!(fault, (4, PAGED + 0x5000));
    assert_eq!(machine.cpu.state.fpu.xmm[0], u128::MAX << 64 | 0x2222_2222_1111_1111);
    assert_eq!(machine.cpu.state.fpu.xmm[1], u128::MAX << 64);
    machine.cpu.state.rip = CODE;
    assert_eq!(machine.vector(|a| a.db(&[0xc4, 0xe2, 0x79, 0x90, 0x04, 0x91])), UD);
}

#[test]
fn upper_halves_are_zeroed() {
    let mut machine = machine(3);
    machine.cpu.state.fpu.xmm = [3; 16];
    machine.cpu.state.fpu.ymm_high = [3; 16];
    complete(&mut machine, |a| a.vpaddb(xmm1, xmm2, xmm3));
    assert_eq!((machine.cpu.state.fpu.xmm[1], machine.cpu.state.fpu.ymm_high[1]), (6, 0));
    complete(&mut machine, |a| a.pclmulqdq(xmm2, xmm3, 0));
    assert_eq!((machine.cpu.state.fpu.xmm[2], machine.cpu.state.fpu.ymm_high[2]), (5, 3));
    complete(&mut machine, |a| a.vzeroupper());
    assert_eq!((machine.cpu.state.fpu.xmm[15], machine.cpu.state.fpu.ymm_high), (3, [0; 16]));
    complete(&mut machine, |a| a.vzeroall());
    assert_eq!(machine.cpu.state.fpu.xmm, [0; 16]);
}

/// Registers of which every part differs from its initial state.
fn in_use() -> FpuState {
    let mut fpu = FpuState { fcw: 0x27f, fsw: 0x3800, ftw: 0x80, mxcsr: 0x3f80, ..FpuState::default() };
    for index in 0..16_u8 {
        fpu.st[usize::from(index & 7)] = (u128::from(index) + 1) | 0x3fff << 64;
        fpu.xmm[usize::from(index)] = u128::from(index) + 0x100;
        fpu.ymm_high[usize::from(index)] = u128::from(index) + 0x200;
    }
    fpu
}

/// Saves with `save`, clears everything, restores with `restore`; what is requested comes back.
fn there_and_back(
    cpl: u16,
    save: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    restore: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Machine {
    let mut machine = machine(cpl);
    machine.cpu.state.gpr[gpr::RAX] = 7;
    machine.cpu.state.fpu = in_use();
    complete(&mut machine, save);
    machine.cpu.state.fpu = FpuState::default();
    complete(&mut machine, restore);
    assert_eq!(machine.cpu.state.fpu, in_use());
    machine
}

#[test]
fn what_is_saved_is_restored() {
    there_and_back(3, |a| a.xsave64(ptr(rbx)), |a| a.xrstor64(ptr(rbx)));
    there_and_back(3, |a| a.xsaveopt64(ptr(rbx)), |a| a.xrstor64(ptr(rbx)));
    there_and_back(3, |a| a.xsavec64(ptr(rbx)), |a| a.xrstor64(ptr(rbx)));
    let machine = there_and_back(0, |a| a.xsaves64(ptr(rbx)), |a| a.xrstors64(ptr(rbx)));
    assert_eq!(machine.ram.read_u64(AREA + 512), 7);
    assert_eq!(machine.ram.read_u64(AREA + 520), COMPACTED | 7);
    assert_eq!(machine.ram.read_u64(AREA + 576), 0x200, "AVX comes first");
    assert_eq!((standard_size(7), compacted_size(7), compacted_size(3)), (832, 832, 576));
}

#[test]
fn components_that_an_image_leaves_out_get_their_initial_state() {
    let mut machine = machine(3);
    machine.cpu.state.gpr[gpr::RAX] = 6;
    machine.cpu.state.fpu = in_use();
    machine.ram.write_u64(AREA + 520, COMPACTED | 6);
    complete(&mut machine, |a| a.xrstor64(ptr(rbx)));
    let fpu = &machine.cpu.state.fpu;
    assert_eq!((fpu.mxcsr, fpu.xmm, fpu.ymm_high), (0x1f80, [0; 16], [0; 16]));
    assert_eq!((fpu.fcw, fpu.st), (in_use().fcw, in_use().st), "nobody asked for x87");
}

#[test]
fn unused_components_are_not_written() {
    let mut machine = machine(3);
    machine.cpu.state.gpr[gpr::RAX] = 7;
    machine.cpu.state.fpu.xmm[0] = 5;
    machine.ram.write(AREA, &[0xaa; 1024]);
    complete(&mut machine, |a| a.xsavec64(ptr(rbx)));
    assert_eq!(machine.ram.read_u64(AREA), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(machine.ram.read_u64(AREA + 160), 5);
    assert_eq!((machine.ram.read_u64(AREA + 512), machine.ram.read_u64(AREA + 520)), (2, COMPACTED | 7));
    assert_eq!(machine.ram.read_u64(AREA + 528), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(machine.ram.read_u64(AREA + 576), 0xaaaa_aaaa_aaaa_aaaa);
}

#[test]
fn xsaves_is_the_kernels_and_wants_compacted_images() {
    assert_eq!(machine(3).vector(|a| a.xsaves64(ptr(rbx))), GP);
    assert_eq!(machine(0).vector(|a| a.xrstors64(ptr(rbx))), GP);
    let mut image = machine(0);
    image.ram.write_u64(AREA + 520, COMPACTED | 1 << 9);
    assert_eq!(image.vector(|a| a.xrstor64(ptr(rbx))), GP, "PKRU is not enabled");
    let mut page = machine(0);
    page.cpu.state.gpr[gpr::RBX] = PAGED + 0x5000;
    page.pte(5, 0);
    assert_eq!(page.vector(|a| a.xsaves64(ptr(rbx))), PF);
}
