//! Each intercept of an instruction or exception: its exit code and information, and that it is Native without.

use privet_cpu::{CrAccess, Exception, OperandPlace, Operands, Reaction, TableRegister};

use super::*;

/// The instruction, two bytes long, exits with this code and information if the bit is set, and not without.
fn exits(code: Code, what: Intercept, expected: [u64; 2]) {
    exits_with(code, what, expected, |_| {});
}

fn exits_with(code: Code, what: Intercept, [info1, info2]: [u64; 2], prepare: impl Fn(&mut Bench)) {
    let mut bench = Bench::new();
    bench.enter();
    prepare(&mut bench);
    assert_eq!(bench.instruction(what, 2), Intercepted::Native, "{what:?}");
    let mut bench = Bench::new();
    bench.intercept(code);
    bench.enter();
    prepare(&mut bench);
    assert_eq!(bench.instruction(what, 2), Intercepted::Switched, "{what:?}");
    assert_eq!(bench.exit(), [code.number(), info1, info2, GUEST_RIP + 2], "{what:?}");
    assert_eq!(bench.get(SAVE + 0x178), GUEST_RIP, "RIP is at the instruction");
    bench.state.rip = HOST_RIP;
    assert_eq!(bench.instruction(what, 2), Intercepted::Native, "not in the host: {what:?}");
}

#[test]
fn instructions_without_operands() {
    for (code, what) in [
        (Code::CPUID, Intercept::Cpuid),
        (Code::HLT, Intercept::Hlt),
        (Code::IRET, Intercept::Iret),
        (Code::PUSHF, Intercept::Pushf),
        (Code::POPF, Intercept::Popf),
        (Code::ICEBP, Intercept::Icebp),
        (Code::RDTSC, Intercept::Rdtsc),
        (Code::RDTSCP, Intercept::Rdtscp),
        (Code::RDPMC, Intercept::Rdpmc),
        (Code::WBINVD, Intercept::Wbinvd),
        (Code::INVD, Intercept::Invd),
        (Code::MONITOR, Intercept::Monitor),
        (Code::MWAIT, Intercept::Mwait),
        (Code::XSETBV, Intercept::Xsetbv),
        (Code::PAUSE, Intercept::Pause),
    ] {
        exits(code, what, [0, 0]);
    }
}

#[test]
fn descriptor_tables() {
    use TableRegister::{Gdtr, Idtr, Ldtr, Tr};
    let reads = [(Code::SIDT, Idtr), (Code::SGDT, Gdtr), (Code::SLDT, Ldtr), (Code::STR, Tr)];
    let writes = [(Code::LIDT, Idtr), (Code::LGDT, Gdtr), (Code::LLDT, Ldtr), (Code::LTR, Tr)];
    for (list, write) in [(reads, false), (writes, true)] {
        for (code, register) in list {
            exits(code, Intercept::Table { register, write }, [0, 0]);
        }
    }
}

#[test]
fn operands_are_decoded() {
    exits(Code::INVLPG, Intercept::Invlpg { linear: 0x1234_5678 }, [0x1234_5678, 0]);
    let operands = Operands { register: 0, place: OperandPlace::Nothing };
    exits(Code::INVPCID, Intercept::Invpcid { kind: 2, descriptor: 0x77, operands }, [0x77, 2]);
    exits(Code::INT_N, Intercept::SoftwareInterrupt(0x80), [0x80, 0]);
    exits(Code::read_dr(7), Intercept::ReadDr { dr: 7, register: 9 }, [9, 0]);
    exits(Code::write_dr(2), Intercept::WriteDr { dr: 2, register: 1, value: 5 }, [1, 0]);
}

#[test]
fn control_registers_tell_the_register_of_a_mov() {
    let mov = 1 << 63;
    for cr in [0, 2, 3, 4, 8] {
        exits(Code::read_cr(cr), Intercept::ReadCr { cr, by: CrAccess::Mov(11) }, [mov | 11, 0]);
        exits(Code::write_cr(cr), Intercept::WriteCr { cr, value: 0, by: CrAccess::Mov(0) }, [mov, 0]);
    }
    exits(Code::read_cr(0), Intercept::ReadCr { cr: 0, by: CrAccess::Smsw }, [0, 0]);
    exits(Code::write_cr(0), Intercept::WriteCr { cr: 0, value: 0, by: CrAccess::Lmsw }, [0, 0]);
    exits(Code::write_cr(0), Intercept::WriteCr { cr: 0, value: 0, by: CrAccess::Clts }, [0, 0]);
}

#[test]
fn the_selective_intercept_of_cr0_is_for_more_than_ts_and_mp() {
    let now = cr0::PE | cr0::PG | cr0::ET;
    let write = |value| Intercept::WriteCr { cr: 0, value, by: CrAccess::Mov(3) };
    exits(Code::CR0_SELECTIVE, write(now | cr0::WP), [1 << 63 | 3, 0]);
    let mut bench = Bench::new();
    bench.intercept(Code::CR0_SELECTIVE);
    bench.enter();
    assert_eq!(bench.instruction(write(now | cr0::TS | cr0::MP), 3), Intercepted::Native);
    let cr4 = Intercept::WriteCr { cr: 4, value: u64::MAX, by: CrAccess::Mov(3) };
    assert_eq!(bench.instruction(cr4, 3), Intercepted::Native);
}

#[test]
fn the_intercept_of_all_writes_of_cr0_comes_first() {
    let mut bench = Bench::new();
    bench.intercept(Code::CR0_SELECTIVE);
    bench.intercept(Code::write_cr(0));
    bench.enter();
    let write = Intercept::WriteCr { cr: 0, value: 0, by: CrAccess::Mov(3) };
    assert_eq!(bench.instruction(write, 3), Intercepted::Switched);
    assert_eq!(bench.exit()[0], 0x10);
}

#[test]
fn msrs_by_the_map() {
    let select = |bench: &mut Bench| {
        bench.state.gpr[gpr::RCX] = 0xffff_ffff_0000_0010;
        bench.board.write(MSRPM + 4, &[2]);
    };
    exits_with(Code::MSR, Intercept::Wrmsr, [1, 0], select);
    let mut bench = Bench::new();
    bench.intercept(Code::MSR);
    bench.enter();
    select(&mut bench);
    assert_eq!(bench.instruction(Intercept::Rdmsr, 2), Intercepted::Native, "only writes");
    bench.state.gpr[gpr::RCX] = 0x4000_0000;
    assert_eq!(bench.instruction(Intercept::Rdmsr, 2), Intercepted::Switched, "beyond the map");
    assert_eq!(bench.exit(), [0x7c, 0, 0, GUEST_RIP + 2]);
}

#[test]
fn a_bit_of_the_map_without_the_intercept_is_nothing() {
    let mut bench = Bench::new();
    bench.board.write(MSRPM, &[0xff; 0x2000]);
    bench.board.write(IOPM, &[0xff; 0x3000]);
    bench.enter();
    assert_eq!(bench.instruction(Intercept::Rdmsr, 2), Intercepted::Native);
    assert_eq!(bench.instruction(port_io(0x80, 1, false, false), 2), Intercepted::Native);
}

fn port_io(port: u16, size: u8, input: bool, string: bool) -> Intercept {
    Intercept::PortIo {
        port,
        size,
        input,
        string,
        rep: string,
        address_size: 8,
        segment: Seg::Es,
        immediate: false,
        linear: 0,
    }
}

#[test]
fn ports_by_the_map() {
    let all = |bench: &mut Bench| bench.board.write(IOPM, &[0xff; 0x3000]);
    for (what, info) in [
        (port_io(0x3f8, 1, false, false), 0x3f8_0010 | 4 << 7),
        (port_io(0xcfc, 4, true, false), 0xcfc_0041 | 4 << 7),
        (port_io(0x1f0, 2, true, true), 0x1f0_002d | 4 << 7),
        (
            Intercept::PortIo {
                port: 0x60,
                size: 1,
                input: false,
                string: true,
                rep: false,
                address_size: 2,
                immediate: false,
                linear: 0,
                segment: Seg::Gs,
            },
            0x60_0014 | 1 << 7 | 5 << 10,
        ),
    ] {
        let mut bench = Bench::new();
        bench.intercept(Code::IOIO);
        bench.enter();
        assert_eq!(bench.instruction(what, 2), Intercepted::Native);
        all(&mut bench);
        assert_eq!(bench.instruction(what, 2), Intercepted::Switched);
        assert_eq!(bench.exit(), [0x7b, info, GUEST_RIP + 2, GUEST_RIP + 2], "EXITINFO2 is the next instruction");
    }
}

#[test]
fn addresses_outside_64_bit_mode_wrap() {
    let mut bench = Bench::new();
    bench.intercept(Code::HLT);
    bench.guest(0xd0, efer::SVME);
    bench.guest(0x178, 0xffff_ffff);
    bench.enter();
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Switched);
    assert_eq!(bench.exit()[3], 0);
}

fn raise(bench: &mut Bench, exception: Exception) -> Reaction {
    bench.svm.exception(&mut bench.board, &mut bench.state, exception)
}

#[test]
fn exceptions_by_vector() {
    for (exception, info) in [
        (Exception::plain(0), [0, 0, 0]),
        (Exception::plain(3), [0, 0, GUEST_RIP + 1]),
        (Exception::plain(4), [0, 0, GUEST_RIP + 1]),
        (Exception::ud(), [0, 0, 0]),
        (Exception::gp(0x58), [0x58, 0, 0]),
        (Exception::pf(0xdead_beef, 0x15), [0x15, 0xdead_beef, 0]),
        (Exception::with_code(17, 0), [0, 0, 0]),
    ] {
        let mut bench = Bench::new();
        bench.enter();
        assert_eq!(raise(&mut bench, exception), Reaction::Native);
        let mut bench = Bench::new();
        bench.intercept(Code::exception(exception.vector));
        bench.guest(0x240, 0xc2);
        bench.enter();
        assert_eq!(raise(&mut bench, exception), Reaction::Switched);
        let code = 0x40 + u64::from(exception.vector);
        assert_eq!(bench.exit(), [code, info[0], info[1], info[2]]);
        assert_eq!(bench.get(SAVE + 0x240), 0xc2, "CR2 is as before the fault");
    }
}

#[test]
fn a_debug_exception_has_set_dr6() {
    let mut bench = Bench::new();
    bench.intercept(Code::exception(1));
    bench.enter();
    assert_eq!(raise(&mut bench, Exception::db(1 << 14)), Reaction::Switched);
    assert_eq!(bench.get(SAVE + 0x168), 0xffff_4ff0);
}

#[test]
fn the_filter_lets_pauses_through() {
    let mut bench = Bench::new();
    bench.intercept(Code::PAUSE);
    bench.board.write(VMCB + 0x3e, &[2, 0]);
    bench.enter();
    assert_eq!(bench.instruction(Intercept::Pause, 2), Intercepted::Native);
    assert_eq!(bench.instruction(Intercept::Pause, 2), Intercepted::Native);
    assert_eq!(bench.instruction(Intercept::Pause, 2), Intercepted::Switched);
    assert_eq!(bench.exit()[0], 0x77);
}
