//! Each instruction and exception that can exit: its reason and qualification, and that it is native without its control.

use privet_cpu::state::gpr;
use privet_cpu::{Call, CrAccess, Exception, Reaction};

use super::*;

/// The instruction exits so with these controls.
fn exits(controls: &[(Field, u32)], what: Intercept, expected: [u64; 2]) {
    let mut bench = Bench::ready();
    controls.iter().for_each(|(field, bits)| bench.add(*field, *bits));
    bench.enter();
    assert_eq!(bench.instruction(what), Intercepted::Switched, "{what:x?}");
    assert_eq!(bench.exit(), [expected[0], expected[1], 3], "{what:x?}");
    assert_eq!(bench.get(field::GUEST_RIP), GUEST_RIP);
}

/// What becomes of the instruction with these controls, which lets it go on.
fn answer(controls: &[(Field, u32)], what: Intercept) -> Intercepted {
    let mut bench = Bench::ready();
    controls.iter().for_each(|(field, bits)| bench.add(*field, *bits));
    bench.enter();
    let answer = bench.instruction(what);
    assert!(bench.vmx.in_guest(), "{what:x?}");
    answer
}

const UD: Intercepted = Intercepted::Reflect(Exception::ud());
const GP: Intercepted = Intercepted::Reflect(Exception::gp(0));

#[test]
fn some_always_exit() {
    for (what, reason) in [
        (Intercept::Cpuid, 10),
        (Intercept::Invd, 13),
        (Intercept::Xsetbv, 55),
        (Intercept::Call(Call::Vmcall), 18),
        (Intercept::Call(Call::Seamcall), 76),
        (Intercept::Call(Call::Tdcall), 77),
    ] {
        exits(&[], what, [reason, 0]);
    }
}

#[test]
fn some_exit_if_a_control_says_so() {
    let proc = |bit| (field::PROC, bit);
    for (what, control, reason) in [
        (Intercept::Hlt, proc(proc::HLT), 12),
        (Intercept::Pause, proc(proc::PAUSE), 40),
        (Intercept::Rdtsc, proc(proc::RDTSC), 16),
        (Intercept::Rdpmc, proc(proc::RDPMC), 15),
        (Intercept::Monitor, proc(proc::MONITOR), 39),
        (Intercept::Mwait, proc(proc::MWAIT), 36),
        (Intercept::Wbinvd, (field::PROC2, proc2::WBINVD), 54),
    ] {
        exits(&[control], what, [reason, 0]);
        assert_eq!(answer(&[], what), Intercepted::Native, "{what:?}");
    }
    let invlpg = Intercept::Invlpg { linear: 0x1234 };
    exits(&[proc(proc::INVLPG)], invlpg, [14, 0x1234]);
    assert_eq!(answer(&[], invlpg), Intercepted::Native);
}

#[test]
fn some_do_not_exist_without_their_control() {
    let operands = Operands { register: 7, place: OperandPlace::Register(0) };
    let invpcid = Intercept::Invpcid { kind: 2, descriptor: 0x77, operands };
    for (what, control) in [
        (Intercept::Rdtscp, proc2::RDTSCP),
        (Intercept::Rdpid, proc2::RDTSCP),
        (Intercept::Xsaves, proc2::XSAVES),
        (invpcid, proc2::INVPCID),
    ] {
        assert_eq!(answer(&[], what), UD, "{what:?}");
        assert_eq!(answer(&[(field::PROC2, control)], what), Intercepted::Native, "{what:?}");
    }
    exits(&[(field::PROC2, proc2::RDTSCP), (field::PROC, proc::RDTSC)], Intercept::Rdtscp, [51, 0]);
    exits(&[(field::PROC2, proc2::INVPCID), (field::PROC, proc::INVLPG)], invpcid, [58, 0]);
}

#[test]
fn in_the_host_nothing_exits() {
    let mut bench = Bench::ready();
    assert_eq!(bench.instruction(Intercept::Cpuid), Intercepted::Native);
    assert_eq!(bench.instruction(Intercept::Rdtscp), Intercepted::Native);
    assert_eq!(bench.instruction(Intercept::Call(Call::Vmcall)), Intercepted::Done);
    assert_eq!(bench.get(field::INSTRUCTION_ERROR), 1);
    let vmcall = Intercept::Call(Call::Vmcall);
    assert_eq!(Bench::before_vmxon().instruction(vmcall), Intercepted::Native, "which is #UD");
}

#[test]
fn debug_registers() {
    let control = [(field::PROC, proc::MOV_DR)];
    let write = Intercept::WriteDr { dr: 7, register: 12, value: 0 };
    exits(&control, write, [29, 12 << 8 | 7]);
    exits(&control, Intercept::ReadDr { dr: 3, register: 1 }, [29, 1 << 8 | 1 << 4 | 3]);
    assert_eq!(answer(&[], write), Intercepted::Native);
}

fn port_io(port: u16, size: u8, string: bool) -> Intercept {
    Intercept::PortIo {
        port,
        size,
        input: string,
        string,
        rep: string,
        address_size: 8,
        segment: Seg::Es,
        immediate: !string,
        linear: 0x1234,
    }
}

#[test]
fn ports_unconditionally_or_by_the_bitmaps() {
    let all = [(field::PROC, proc::UNCONDITIONAL_IO)];
    exits(&all, port_io(0x80, 1, false), [30, 0x80_0040]);
    exits(&all, port_io(0x1f0, 2, true), [30, 0x1f0_0039]);
    assert_eq!(answer(&[], port_io(0x80, 1, false)), Intercepted::Native);
    let maps = [(field::PROC, proc::UNCONDITIONAL_IO | proc::IO_BITMAPS)];
    assert_eq!(answer(&maps, port_io(0x80, 1, false)), Intercepted::Native, "the bitmaps decide alone");
    let mut bench = Bench::ready();
    bench.add(field::PROC, proc::IO_BITMAPS | proc::UNCONDITIONAL_IO);
    bench.board.write(IO_BITMAPS[1] + 0x10, &[1]);
    bench.enter();
    assert_eq!(bench.instruction(port_io(0x807f, 2, true)), Intercepted::Switched);
    assert_eq!(bench.get(field::GUEST_LINEAR_ADDRESS), 0x1234);
    assert_eq!(bench.get(field::INSTRUCTION_INFORMATION), 2 << 7);
}

#[test]
fn msrs_by_the_bitmap() {
    let access = |what, index: u64, prepare: fn(&mut Bench)| {
        let mut bench = Bench::ready();
        prepare(&mut bench);
        bench.enter();
        bench.state.gpr[gpr::RCX] = index;
        let answer = bench.instruction(what);
        (answer == Intercepted::Switched).then(|| bench.exit()[0])
    };
    let set = |bench: &mut Bench| bench.board.write(MSR_BITMAP + 0x400, &[1]);
    assert_eq!(access(Intercept::Rdmsr, 0xc000_0000, set), Some(31));
    assert_eq!(access(Intercept::Wrmsr, 0xc000_0000, set), None);
    assert_eq!(access(Intercept::Wrmsr, 0x9999, |_| {}), Some(32));
    assert_eq!(access(Intercept::Rdmsr, 0x10, |_| {}), None);
    assert_eq!(access(Intercept::Rdmsr, 0x10, |bench| bench.remove(field::PROC, proc::MSR_BITMAPS)), Some(31));
}

/// A bench whose guest does not own these bits of CR0, and reads them so.
fn with_cr0(mask: u64, shadow: u64) -> Bench {
    let mut bench = Bench::ready();
    bench.set(field::CR0_MASK, mask);
    bench.set(field::CR0_SHADOW, shadow);
    bench.set(field::CR4_MASK, cr4::VMXE);
    bench.enter();
    bench
}

fn write_cr(cr: u8, value: u64, by: CrAccess) -> Intercept {
    Intercept::WriteCr { cr, value, by }
}

#[test]
fn a_guest_reads_the_shadow_where_the_host_owns() {
    let mut bench = with_cr0(cr0::TS | cr0::WP, cr0::TS);
    let (cr0_now, cr4_now) = (bench.state.cr0, bench.state.cr4);
    let seen = cr0_now & !cr0::WP | cr0::TS;
    for by in [CrAccess::Mov(1), CrAccess::Smsw] {
        assert_eq!(bench.instruction(Intercept::ReadCr { cr: 0, by }), Intercepted::Value(seen));
    }
    let cr4 = Intercept::ReadCr { cr: 4, by: CrAccess::Mov(1) };
    assert_eq!(bench.instruction(cr4), Intercepted::Value(cr4_now & !cr4::VMXE));
}

#[test]
fn a_write_that_changes_what_the_guest_sees_exits() {
    let mut bench = with_cr0(cr0::TS | cr0::WP, cr0::TS);
    let now = bench.state.cr0;
    // WP stays, and what is the guest's own changes.
    let value = now & !cr0::WP | cr0::TS | cr0::AM;
    assert_eq!(bench.instruction(write_cr(0, value, CrAccess::Mov(1))), Intercepted::Value(now | cr0::AM));
    assert_eq!(bench.instruction(write_cr(0, value & !cr0::TS, CrAccess::Mov(9))), Intercepted::Switched);
    assert_eq!(bench.exit(), [28, 9 << 8, 3]);
}

#[test]
fn what_vmx_operation_needs_no_guest_lets_go() {
    let mut bench = with_cr0(0, 0);
    let (cr0_now, cr4_now) = (bench.state.cr0, bench.state.cr4);
    assert_eq!(bench.instruction(write_cr(0, cr0_now & !cr0::NE, CrAccess::Mov(1))), GP);
    assert_eq!(bench.instruction(write_cr(0, cr0_now & !cr0::PG, CrAccess::Mov(1))), GP);
    let pae = write_cr(4, cr4_now & !cr4::VMXE, CrAccess::Mov(1));
    assert_eq!(bench.instruction(pae), Intercepted::Value(cr4_now), "VMXE is the host's");
    let mut bench = Bench::with_ept(PAGE | 7);
    bench.add(field::PROC2, proc2::UNRESTRICTED);
    bench.enter();
    let off = cr0_now & !cr0::PG;
    assert_eq!(bench.instruction(write_cr(0, off, CrAccess::Mov(1))), Intercepted::Value(off));
    assert_eq!(bench.instruction(write_cr(4, cr4_now & !cr4::VMXE, CrAccess::Mov(1))), GP);
}

#[test]
fn clts_and_lmsw() {
    let clts = write_cr(0, 0, CrAccess::Clts);
    assert_eq!(with_cr0(0, 0).instruction(clts), Intercepted::Native);
    assert_eq!(with_cr0(cr0::TS, 0).instruction(clts), Intercepted::Done);
    let mut bench = with_cr0(cr0::TS, cr0::TS);
    assert_eq!(bench.instruction(clts), Intercepted::Switched);
    assert_eq!(bench.exit(), [28, 2 << 4, 3]);

    let lmsw = |bench: &mut Bench, data: u64| {
        let value = bench.state.cr0 & !0xe | data;
        bench.instruction(write_cr(0, value, CrAccess::Lmsw))
    };
    let mut bench = with_cr0(cr0::TS, 0);
    let now = bench.state.cr0;
    assert_eq!(lmsw(&mut bench, cr0::MP), Intercepted::Value(now | cr0::MP));
    assert_eq!(lmsw(&mut bench, cr0::TS | cr0::PE), Intercepted::Switched);
    assert_eq!(bench.exit(), [28, 3 << 4 | 9 << 16, 3]);
    // PE is set, never cleared.
    let mut bench = with_cr0(cr0::PE, 0);
    assert_eq!(lmsw(&mut bench, 1), Intercepted::Switched);
    let mut bench = with_cr0(cr0::PE, cr0::PE);
    assert!(matches!(lmsw(&mut bench, 0), Intercepted::Value(_)));
}

#[test]
fn cr3_and_cr8_by_their_controls() {
    exits(&[(field::PROC, proc::CR3_LOAD)], write_cr(3, 0x5000, CrAccess::Mov(2)), [28, 2 << 8 | 3]);
    exits(
        &[(field::PROC, proc::CR3_STORE)],
        Intercept::ReadCr { cr: 3, by: CrAccess::Mov(2) },
        [28, 2 << 8 | 1 << 4 | 3],
    );
    exits(&[(field::PROC, proc::CR8_LOAD)], write_cr(8, 1, CrAccess::Mov(2)), [28, 2 << 8 | 8]);
    exits(
        &[(field::PROC, proc::CR8_STORE)],
        Intercept::ReadCr { cr: 8, by: CrAccess::Mov(2) },
        [28, 2 << 8 | 1 << 4 | 8],
    );
    assert_eq!(answer(&[], write_cr(3, 0x5000, CrAccess::Mov(2))), Intercepted::Native);
    let mut bench = Bench::ready();
    bench.add(field::PROC, proc::CR3_LOAD);
    bench.set(field::CR3_TARGETS, 2);
    bench.set(field::CR3_TARGET_1, 0x5000);
    bench.set(field::CR3_TARGET_2, 0x6000);
    bench.enter();
    assert_eq!(bench.instruction(write_cr(3, 0x5000, CrAccess::Mov(2))), Intercepted::Native);
    assert_eq!(bench.instruction(write_cr(3, 0x6000, CrAccess::Mov(2))), Intercepted::Switched, "beyond the count");
}

/// What an exception does under this bitmap.
fn raised(bitmap: u64, exception: Exception, prepare: impl FnOnce(&mut Bench)) -> (Reaction, Bench) {
    let mut bench = Bench::ready();
    bench.set(field::EXCEPTION_BITMAP, bitmap);
    prepare(&mut bench);
    bench.enter();
    let reaction = bench.vmx.exception(&mut bench.board, &mut bench.state, exception);
    (reaction, bench)
}

#[test]
fn exceptions_by_the_bitmap() {
    let gp = Exception::gp(0x18);
    assert_eq!(raised(1 << 6, gp, |_| {}).0, Reaction::Native);
    let (reaction, mut bench) = raised(1 << 13, gp, |_| {});
    assert_eq!(reaction, Reaction::Switched);
    assert_eq!(bench.exit(), [0, 0, 0]);
    assert_eq!((bench.get(field::EXIT_EVENT), bench.get(field::EXIT_ERROR)), (0x8000_0b0d, 0x18));
    let (_, mut bench) = raised(1 << 6, Exception::ud(), |_| {});
    assert_eq!(bench.get(field::EXIT_EVENT), 0x8000_0306);
}

#[test]
fn exceptions_of_instructions_have_a_length() {
    let (_, mut bench) = raised(1 << 3, Exception::plain(3), |_| {});
    assert_eq!((bench.exit()[2], bench.get(field::EXIT_EVENT)), (1, 0x8000_0603));
    let mut bench = Bench::ready();
    bench.set(field::EXCEPTION_BITMAP, 1 << 1);
    bench.enter();
    bench.instruction(Intercept::Icebp);
    bench.vmx.exception(&mut bench.board, &mut bench.state, Exception::db(0));
    assert_eq!((bench.exit()[2], bench.get(field::EXIT_EVENT)), (3, 0x8000_0501));
    // Another #DB is none of INT1.
    let (_, mut bench) = raised(1 << 1, Exception::db(1 << 14), |_| {});
    assert_eq!((bench.exit(), bench.get(field::EXIT_EVENT)), ([0, 1 << 14, 0], 0x8000_0301));
    assert_eq!(bench.state.dr6, 0xffff_0ff0, "DR6 does not change");
}

#[test]
fn page_faults_by_their_error_code() {
    let fault = |bitmap, mask, wanted, code| {
        let prepare = |bench: &mut Bench| {
            bench.set(field::PF_MASK, mask);
            bench.set(field::PF_MATCH, wanted);
        };
        raised(bitmap, Exception::pf(0x1234, code), prepare)
    };
    for (bitmap, mask, wanted, code, expected) in [
        (1 << 14, 0, 0, 2, Reaction::Switched),
        (0, 0, 0, 2, Reaction::Native),
        (1 << 14, 1, 1, 2, Reaction::Native),
        (1 << 14, 1, 1, 3, Reaction::Switched),
        (0, 1, 1, 2, Reaction::Switched),
        (0, 0, 1, 2, Reaction::Switched),
    ] {
        assert_eq!(fault(bitmap, mask, wanted, code).0, expected, "{bitmap:#x} {mask} {wanted} {code}");
    }
    let (_, mut bench) = fault(1 << 14, 0, 0, 2);
    assert_eq!((bench.exit()[1], bench.state.cr2), (0x1234, 0), "CR2 does not change");
    assert_eq!((bench.get(field::EXIT_EVENT), bench.get(field::EXIT_ERROR)), (0x8000_0b0e, 2));
}

#[test]
fn a_triple_fault_exits() {
    let mut bench = Bench::ready();
    assert_eq!(bench.vmx.shutdown(&mut bench.board, &mut bench.state), Reaction::Native);
    bench.enter();
    assert_eq!(bench.vmx.shutdown(&mut bench.board, &mut bench.state), Reaction::Switched);
    assert_eq!(bench.exit(), [2, 0, 0]);
}
