//! What VMRUN and #VMEXIT swap, and what they leave alone.

use privet_cpu::state::{Shadow, World};
use privet_cpu::{Exception, Reaction, flags};

use super::*;
use crate::board::Flush;

fn leave(bench: &mut Bench) {
    bench.intercept_now(Code::CPUID);
    assert_eq!(bench.instruction(Intercept::Cpuid, 2), Intercepted::Switched);
}

impl Bench {
    /// Sets an intercept of the guest that runs already.
    fn intercept_now(&mut self, code: Code) {
        self.svm.guest.as_mut().expect("a guest runs").control.intercepts.set(code);
    }
}

#[test]
fn a_guest_gets_what_its_save_area_says() {
    let mut bench = Bench::new();
    bench.guest(0x60 + 4, 0x77);
    bench.guest(0x68, 0x6d7);
    bench.guest(0x80 + 4, 0x88);
    bench.guest(0x88, 0x1d7);
    bench.guest(0x240, 0xc2);
    bench.board.write(VMCB + SAVE + 0xcb, &[3]);
    bench.enter();
    let state = &bench.state;
    assert_eq!(state.world, World(ASID));
    assert_eq!((state.rip, state.gpr[gpr::RSP], state.gpr[gpr::RAX]), (GUEST_RIP, 0x7000, 0xa11));
    assert_eq!((state.cr0, state.cr2, state.cr3, state.cr4), (cr0::PE | cr0::PG | cr0::ET, 0xc2, 0x9000, cr4::PAE));
    assert_eq!((state.efer, state.rflags), (efer::SVME | efer::LME | efer::LMA, 2));
    assert_eq!((state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit), (0x6d7, 0x77, 0x1d7, 0x88));
    assert_eq!(state.cpl(), 3);
    assert!(state.code64());
    assert!(bench.svm.gif());
}

#[test]
fn what_a_processor_cannot_hold_is_not_loaded() {
    let mut bench = Bench::new();
    bench.guest(0x158, 0);
    bench.guest(0x170, 0);
    bench.board.write(VMCB + SAVE + 0xcb, &[3]);
    bench.enter();
    assert_eq!(bench.state.cr0, cr0::ET);
    assert_eq!(bench.state.rflags, flags::RESERVED_ONE);
    assert_eq!(bench.state.efer & efer::LMA, 0, "LMA follows PG");
    assert_eq!(bench.state.cpl(), 0, "real mode");
}

#[test]
fn virtual_8086_mode_has_cpl_3() {
    let mut bench = Bench::new();
    bench.guest(0xd0, efer::SVME);
    bench.guest(0x170, flags::VM);
    bench.enter();
    assert_eq!(bench.state.cpl(), 3);
}

#[test]
fn the_host_comes_back_as_it_was() {
    let mut bench = Bench::new();
    bench.state.rflags = 2 | flags::IF;
    bench.state.cr8 = 5;
    bench.state.gpr[gpr::RSP] = 0x5_7acc;
    let before = bench.state.clone();
    bench.enter();
    leave(&mut bench);
    let mut expected = before;
    expected.rip = HOST_RIP + 3;
    expected.gpr[gpr::RAX] = VMCB;
    expected.dr7 = 0x400;
    assert_eq!(bench.state, expected);
    assert!(!bench.svm.gif());
    assert_eq!(bench.state.world, World::HOST);
}

#[test]
fn the_guest_is_stored_as_it_is() {
    let mut bench = Bench::new();
    bench.enter();
    let state = &mut bench.state;
    state.rip = 0x1111;
    state.rflags = 2 | flags::CF;
    state.gpr[gpr::RSP] = 0x2222;
    state.gpr[gpr::RAX] = 0x3333;
    (state.cr2, state.cr3, state.dr6, state.dr7) = (0x4444, 0x5000, 0xffff_0ff1, 0x401);
    state.segments[Seg::Ds as usize] = Segment { base: 0x6666, ..Segment::data(0x33) };
    state.segments[Seg::Ss as usize].dpl = 3;
    state.gdtr.base = 0x7777;
    leave(&mut bench);
    let stored = [0x178, 0x170, 0x1d8, 0x1f8, 0x240, 0x150, 0x168, 0x160, 0x38, 0x68].map(|at| bench.get(SAVE + at));
    assert_eq!(stored, [0x1111, 3, 0x2222, 0x3333, 0x4444, 0x5000, 0xffff_0ff1, 0x401, 0x6666, 0x7777]);
    assert_eq!(bench.get(SAVE + 0x30), 0xffff_ffff_0cf3_0033, "DS: selector, attributes, limit");
    assert_eq!(read_array_of_one(&mut bench, SAVE + 0xcb), 3, "CPL");
}

fn read_array_of_one(bench: &mut Bench, at: u64) -> u8 {
    let [byte] = crate::memory::read_array(&mut bench.board, VMCB + at);
    byte
}

#[test]
fn general_registers_and_debug_addresses_are_softwares() {
    let mut bench = Bench::new();
    bench.state.gpr[gpr::RBX] = 0xb;
    bench.state.dr = [1, 2, 3, 4];
    bench.enter();
    assert_eq!(bench.state.gpr[gpr::RBX], 0xb);
    assert_eq!(bench.state.dr, [1, 2, 3, 4]);
    bench.state.gpr[gpr::RBX] = 0xbb;
    bench.state.cr2 = 0xc2;
    bench.state.dr6 = 0xffff_0ff4;
    leave(&mut bench);
    assert_eq!(bench.state.gpr[gpr::RBX], 0xbb);
    assert_eq!((bench.state.cr2, bench.state.dr6), (0xc2, 0xffff_0ff4), "not restored");
}

#[test]
fn nested_paging_gives_the_guest_a_pat() {
    for (misc, in_guest, after) in [(0, 0x0007_0406_0007_0406, 0x0606), (1, 0x0506, 0x0007_0406_0007_0406)] {
        let mut bench = Bench::new();
        bench.set(0x90, misc);
        bench.guest(0x268, 0x0506);
        bench.enter();
        assert_eq!(bench.state.pat, in_guest);
        bench.state.pat = 0x0606;
        leave(&mut bench);
        assert_eq!(bench.state.pat, after);
    }
}

#[test]
fn interrupt_masking_gives_the_guest_a_task_priority() {
    let mut bench = Bench::new();
    bench.state.cr8 = 9;
    bench.set(0x60, 1 << 24 | 4);
    bench.enter();
    assert!(bench.svm.virtual_task_priority());
    assert_eq!(bench.state.cr8, 4);
    bench.state.cr8 = 6;
    leave(&mut bench);
    assert!(!bench.svm.virtual_task_priority());
    assert_eq!(bench.state.cr8, 9);
    assert_eq!(bench.get(0x60), 1 << 24 | 6);
    let mut bench = Bench::new();
    bench.state.cr8 = 9;
    bench.set(0x60, 4);
    bench.enter();
    assert_eq!(bench.state.cr8, 9, "shared");
    bench.state.cr8 = 2;
    leave(&mut bench);
    assert_eq!(bench.state.cr8, 2);
}

#[test]
fn the_interrupt_shadow_travels() {
    for (before, shadow) in [(1, Shadow::Sti), (0, Shadow::None)] {
        let mut bench = Bench::new();
        bench.set(0x68, before);
        bench.enter();
        assert_eq!(bench.state.shadow, shadow);
        leave(&mut bench);
        assert_eq!(bench.get(0x68), before);
        assert_eq!(bench.state.shadow, Shadow::None);
    }
}

#[test]
fn tlb_control() {
    for (control, flushed) in
        [(0, vec![]), (1, vec![Flush::All]), (3, vec![Flush::World(World(ASID))]), (7, vec![Flush::World(World(ASID))])]
    {
        let mut bench = Bench::new();
        bench.board.write(VMCB + 0x5c, &[control]);
        bench.enter();
        assert_eq!(bench.board.flushed, flushed);
        leave(&mut bench);
        assert_eq!(bench.board.flushed, flushed, "an exit flushes nothing");
    }
}

#[test]
fn reserved_tlb_control_is_loud_and_flushes_all() {
    for (features, control) in [(Features::current(), 2), (Features { flush_by_asid: false, ..Features::current() }, 3)]
    {
        let mut bench = Bench::with(features);
        bench.board.write(VMCB + 0x5c, &[control]);
        bench.enter();
        assert_eq!(bench.board.flushed, [Flush::All]);
        assert_eq!(bench.board.unsimulated, ["SVM: a reserved value of TLB_CONTROL"]);
    }
}

#[test]
fn absent_features_are_named() {
    let mut bench = Bench::new();
    bench.set(0xb8, 3);
    bench.set(0x60, 1 << 31 | 1 << 25);
    bench.enter();
    assert_eq!(
        bench.board.unsimulated,
        ["SVM: LBR virtualization", "SVM: virtual VMLOAD and VMSAVE", "SVM: AVIC", "SVM: virtual GIF"]
    );
}

#[test]
fn time_is_scaled_and_moved_in_the_guest_only() {
    let mut bench = Bench::new();
    bench.set(0x50, 1000);
    bench.svm.wrmsr(0xc000_0104, 3 << 31).expect("SVM's").expect("valid");
    assert_eq!(bench.svm.tsc(100), 100);
    bench.enter();
    assert_eq!(bench.svm.tsc(100), 1150);
    assert_eq!(bench.svm.tsc(1 << 63), (1 << 63) + (1 << 62) + 1000);
    leave(&mut bench);
    assert_eq!(bench.svm.tsc(100), 100);
}

#[test]
fn changes_of_the_vmcb_wait_for_the_next_vmrun() {
    let mut bench = Bench::new();
    bench.enter();
    bench.intercept(Code::HLT);
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Native);
    leave(&mut bench);
    bench.enter();
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Switched);
}

#[test]
fn shutdown_is_an_exit_or_native() {
    let mut bench = Bench::new();
    bench.enter();
    assert_eq!(bench.svm.shutdown(&mut bench.board, &mut bench.state), Reaction::Native);
    bench.intercept_now(Code::SHUTDOWN);
    assert_eq!(bench.svm.shutdown(&mut bench.board, &mut bench.state), Reaction::Switched);
    assert_eq!(bench.exit()[0], 0x7f);
}

#[test]
fn without_the_features_an_exit_tells_less() {
    let mut bench = Bench::with(Features { next_rip: false, decode_assists: false, ..Features::current() });
    bench.set(0xc8, 0x55);
    bench.set(0xd0, 0x66);
    bench.intercept(Code::write_cr(3));
    bench.intercept(Code::exception(14));
    bench.enter();
    let write = Intercept::WriteCr { cr: 3, value: 0, by: privet_cpu::CrAccess::Mov(5) };
    assert_eq!(bench.instruction(write, 3), Intercepted::Switched);
    assert_eq!(bench.exit(), [0x13, 0, 0, 0x55], "NEXT_RIP is left alone");
    bench.enter();
    let fault = Exception::pf(0x1234, 6);
    assert_eq!(bench.svm.exception(&mut bench.board, &mut bench.state, fault), Reaction::Switched);
    assert_eq!(bench.exit(), [0x4e, 6, 0x1234, 0x55]);
    assert_eq!(bench.get(0xd0), 0x66, "nor are there instruction bytes");
}
