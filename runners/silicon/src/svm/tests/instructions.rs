//! SVM's instructions in the host, and in a guest that intercepts them or does not.

use privet_cpu::state::World;
use privet_cpu::{Exception, flags};

use super::*;
use crate::board::Flush;

const ALL: [Call; 7] = [Call::Vmrun, Call::Vmload, Call::Vmsave, Call::Stgi, Call::Clgi, Call::Invlpga, Call::Skinit];

#[test]
fn without_svme_they_do_not_exist() {
    for call in ALL {
        let mut bench = Bench::new();
        bench.state.efer &= !efer::SVME;
        bench.state.segments[Seg::Ss as usize].dpl = 3;
        assert_eq!(bench.call(call, 3), Intercepted::Reflect(Exception::ud()), "{call:?}");
    }
}

#[test]
fn outside_of_protected_mode_they_do_not_exist() {
    for call in ALL {
        let mut bench = Bench::new();
        bench.state.rflags |= flags::VM;
        assert_eq!(bench.call(call, 3), Intercepted::Reflect(Exception::ud()), "{call:?}");
        let mut bench = Bench::new();
        bench.state.cr0 &= !cr0::PE;
        assert_eq!(bench.call(call, 3), Intercepted::Reflect(Exception::ud()), "{call:?}");
    }
}

#[test]
fn they_are_privileged() {
    for call in &ALL[..6] {
        let mut bench = Bench::new();
        bench.state.segments[Seg::Ss as usize].dpl = 3;
        assert_eq!(bench.call(*call, 3), Intercepted::Reflect(Exception::gp(0)), "{call:?}");
    }
}

#[test]
fn skinit_and_vmmcall_do_not_exist_in_the_host() {
    assert_eq!(Bench::new().call(Call::Skinit, 3), Intercepted::Reflect(Exception::ud()));
    assert_eq!(Bench::new().call(Call::Vmmcall, 3), Intercepted::Reflect(Exception::ud()));
}

#[test]
fn a_vmcb_is_a_page_of_physical_memory() {
    for address in [VMCB + 8, 1 << 48] {
        for call in [Call::Vmrun, Call::Vmload, Call::Vmsave] {
            let mut bench = Bench::new();
            bench.state.gpr[gpr::RAX] = address;
            assert_eq!(bench.call(call, 3), Intercepted::Reflect(Exception::gp(0)), "{call:?} {address:#x}");
        }
    }
}

#[test]
fn exceptions_come_before_intercepts() {
    let mut bench = Bench::new();
    bench.intercept(Code::VMLOAD);
    bench.enter();
    bench.state.gpr[gpr::RAX] = 8;
    assert_eq!(bench.call(Call::Vmload, 3), Intercepted::Reflect(Exception::gp(0)));
    bench.state.gpr[gpr::RAX] = VMCB;
    assert_eq!(bench.call(Call::Vmload, 3), Intercepted::Switched);
    assert_eq!(bench.exit(), [0x82, 0, 0, GUEST_RIP + 3]);
}

#[test]
fn each_has_its_exit() {
    let calls = ALL.into_iter().chain([Call::Vmmcall]);
    for (call, code) in calls.zip([0x80, 0x82, 0x83, 0x84, 0x85, 0x7a, 0x86, 0x81]) {
        let mut bench = Bench::new();
        for code in [Code::VMLOAD, Code::VMSAVE, Code::STGI, Code::CLGI, Code::INVLPGA, Code::SKINIT, Code::VMMCALL] {
            bench.intercept(code);
        }
        bench.enter();
        bench.state.gpr[gpr::RAX] = VMCB;
        assert_eq!(bench.call(call, 3), Intercepted::Switched, "{call:?}");
        assert_eq!(bench.exit(), [code, 0, 0, GUEST_RIP + 3], "{call:?}");
    }
}

#[test]
fn vmmcall_that_is_not_intercepted_is_none() {
    let mut bench = Bench::new();
    bench.enter();
    assert_eq!(bench.call(Call::Vmmcall, 3), Intercepted::Reflect(Exception::ud()));
}

#[test]
fn vmsave_and_vmload_move_what_vmrun_does_not() {
    let mut bench = Bench::new();
    let mut filled = bench.state.clone();
    filled.segments[Seg::Fs as usize] = Segment { base: 0xf5, ..Segment::data(0x20) };
    filled.segments[Seg::Gs as usize] = Segment { base: 0x65, ..Segment::data(0x28) };
    filled.tr = Segment { selector: 0x40, base: 0x777, limit: 0x67, kind: 0xb, present: true, ..Segment::default() };
    filled.ldtr = Segment { selector: 0x48, base: 0x1d7, limit: 7, kind: 2, present: true, ..Segment::default() };
    (filled.star, filled.lstar, filled.cstar, filled.sfmask) = (1, 2, 3, 4);
    (filled.kernel_gs_base, filled.sysenter_cs, filled.sysenter_esp, filled.sysenter_eip) = (5, 6, 7, 8);
    let empty = bench.state.clone();
    bench.state = filled.clone();
    bench.state.gpr[gpr::RAX] = 0x3000;
    assert_eq!(bench.call(Call::Vmsave, 3), Intercepted::Done);
    bench.state = empty;
    bench.state.gpr[gpr::RAX] = 0x3000;
    assert_eq!(bench.call(Call::Vmload, 3), Intercepted::Done);
    bench.state.gpr = filled.gpr;
    assert_eq!(bench.state, filled);
    assert_eq!(read_u64(&mut bench.board, 0x3000 + 0x400 + 0x228), 6, "SYSENTER_CS");
}

#[test]
fn vmsave_leaves_the_swapped_state_alone() {
    let mut bench = Bench::new();
    bench.state.gpr[gpr::RAX] = VMCB;
    assert_eq!(bench.call(Call::Vmsave, 3), Intercepted::Done);
    assert_eq!(bench.get(0x400 + 0x178), GUEST_RIP);
    assert_eq!(bench.get(0x400 + 0x240), 0, "CR2");
}

#[test]
fn stgi_and_clgi_move_the_flag() {
    let mut bench = Bench::new();
    assert_eq!(bench.call(Call::Clgi, 3), Intercepted::Done);
    assert!(!bench.svm.gif());
    assert!(!bench.board.event_raised);
    assert_eq!(bench.call(Call::Stgi, 3), Intercepted::Done);
    assert!(bench.svm.gif());
    assert!(bench.board.event_raised, "what waited comes now");
}

#[test]
fn invlpga_flushes_a_page_of_an_asid() {
    let mut bench = Bench::new();
    bench.state.gpr[gpr::RAX] = 0x1234_5000;
    bench.state.gpr[gpr::RCX] = 0xffff_ffff_0000_0005;
    assert_eq!(bench.call(Call::Invlpga, 3), Intercepted::Done);
    assert_eq!(bench.board.flushed, [Flush::Page(World(5), 0x1234_5000)]);
}

/// arch/x86/kvm/svm/nested.c: nested_svm_vmrun.
#[test]
fn vmrun_needs_a_host_save_area() {
    let mut bench = Bench::new();
    assert_eq!(bench.svm.wrmsr(0xc001_0117, 0), Some(Ok(())));
    assert_eq!(bench.vmrun(), Intercepted::Reflect(Exception::gp(0)));
    assert!(!bench.svm.in_guest());
}

#[test]
fn msrs() {
    let mut svm = Svm::new(Features::current());
    assert_eq!(svm.wrmsr(0xc001_0117, 0x5000), Some(Ok(())));
    assert_eq!(svm.wrmsr(0xc001_0117, 0x5001), Some(Err(Exception::gp(0))));
    assert_eq!(svm.wrmsr(0xc001_0117, 1 << 48), Some(Err(Exception::gp(0))));
    assert_eq!(svm.rdmsr(0xc001_0117), Some(0x5000));
    assert_eq!(svm.rdmsr(0xc000_0104), Some(1 << 32));
    assert_eq!(svm.wrmsr(0xc000_0104, 1 << 40), Some(Err(Exception::gp(0))));
    assert_eq!(svm.rdmsr(0xc001_0015), None);
    let svm = &mut Svm::new(Features { tsc_ratio: false, ..Features::current() });
    assert_eq!(svm.rdmsr(0xc000_0104), None);
    assert_eq!(svm.wrmsr(0xc000_0104, 1), None);
}

/// WRMSR of EFER with SVME set.
fn enable(bench: &mut Bench) -> Intercepted {
    bench.state.gpr[gpr::RCX] = 0xc000_0080;
    bench.state.gpr[gpr::RAX] = efer::SVME | efer::LME;
    bench.instruction(Intercept::Wrmsr, 2)
}

#[test]
fn svm_can_be_disabled() {
    let mut bench = Bench::new();
    assert_eq!(enable(&mut bench), Intercepted::Native);
    assert_eq!(bench.svm.wrmsr(0xc001_0114, 1 << 4), Some(Ok(())));
    assert_eq!(enable(&mut bench), Intercepted::Reflect(Exception::gp(0)));
    bench.state.gpr[gpr::RAX] = efer::LME;
    assert_eq!(bench.instruction(Intercept::Wrmsr, 2), Intercepted::Native);
}

#[test]
fn the_lock_freezes_whether_svm_can_be_enabled() {
    let mut bench = Bench::new();
    bench.svm.wrmsr(0xc001_0114, 1 << 4);
    assert_eq!(bench.svm.wrmsr(0xc001_0114, 1 << 3), Some(Ok(())));
    assert_eq!(enable(&mut bench), Intercepted::Native);
    assert_eq!(bench.svm.wrmsr(0xc001_0114, 1 << 4), Some(Ok(())));
    assert_eq!(enable(&mut bench), Intercepted::Native, "locked");
    assert_eq!(bench.svm.rdmsr(0xc001_0114), Some(1 << 3));
    assert_eq!(bench.svm.wrmsr(0xc001_0114, 1 << 5), Some(Err(Exception::gp(0))));
}

#[test]
fn cpuid_follows_the_features() {
    let all = Features::current().cpuid();
    assert_eq!((all.eax, all.ebx, all.ecx), (1, 0x8000, 0));
    assert_eq!(all.edx, 1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 12 | 1 << 28);
    let qemu = Features { next_rip: false, decode_assists: false, ..Features::current() };
    assert_eq!(all.edx & !qemu.cpuid().edx, 1 << 3 | 1 << 7);
}
