//! Guests with encrypted memory, and with encrypted registers.

use privet_cpu::{Access, AccessKind, Encryption, Exception, Reaction, Trap};

use super::*;
use crate::Translation;
use crate::encryption::{Key, KeyedMemory};
use crate::psp::AsidRange;
use crate::rmp::{Entry, Owned, PageSize, PageState, Permissions, Rmp, error_code};
use crate::svm::SevFeatures;

pub(super) const KEY: Key = Key::numbered(5);
pub(super) const VMSA: u64 = 0x3000;
const ROOT: u64 = 0x10_0000;
/// A page of the guest, which nested tables map at its own address.
pub(super) const PAGE: u64 = 0x15_0000;
const RMP_BASE: u64 = 0x18_0000;
const C_BIT: u8 = 51;
const SEV: u64 = 1 << 1;
const SEV_ES: u64 = 1 << 2;

fn features() -> Features {
    let asids = AsidRange { min_sev: 5, max: 9 };
    let sev = SevFeatures { c_bit: C_BIT, reduced_bits: 6, asids, encrypted_state: true, snp: true, rmpread: true };
    Features { physical_bits: 46, sev: Some(sev), ..Features::current() }
}

/// An SEV guest of [`ASID`] behind nested tables.
fn sev() -> Bench {
    let mut bench = Bench::with(features());
    bench.set(0x90, 1 | SEV);
    bench.set(0xb0, ROOT);
    for (level, table) in (2..=4).rev().zip([ROOT, ROOT + 0x1000, ROOT + 0x2000]) {
        let at = table + (PAGE >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
        write_u64(&mut bench.board, at, (table + 0x1000) | 7);
    }
    for page in 0..512 {
        write_u64(&mut bench.board, ROOT + 0x3000 + page * 8, page << 12 | 7);
    }
    bench.board.guest_keys.insert(ASID as u16, KEY);
    bench
}

/// An SEV-ES guest of ASID 2, whose VMSA is like the save area of the plain guest.
pub(super) fn sev_es() -> Bench {
    let mut bench = sev();
    bench.set(0x90, 1 | SEV | SEV_ES);
    bench.set(0xb8, 1);
    bench.set(0x108, VMSA);
    write_u32(&mut bench.board, VMCB + 0x58, 2);
    bench.board.guest_keys.insert(2, KEY);
    let mut area = [0; 0x400];
    bench.board.read(VMCB + SAVE, &mut area);
    bench.board.write_as(KEY, VMSA, &[0; 4096]);
    bench.board.write_as(KEY, VMSA, &area);
    bench
}

/// An SNP guest: the page of the VMSA is the guest's own.
pub(super) fn snp() -> Bench {
    let mut bench = sev_es();
    bench.board.rmp = Rmp::new(RMP_BASE, RMP_BASE + 0x5fff);
    bench.board.write_as(KEY, VMSA + 0x3b0, &[1]);
    set_state(&mut bench, VMSA, PageState::GuestValid(Owned { vmsa: true, ..owned(0xffff_ffff_f000) }));
    bench
}

fn owned(gpa: u64) -> Owned {
    Owned { asid: 2, gpa, vmsa: false, permissions: Permissions::INITIAL }
}

fn set_state(bench: &mut Bench, pa: u64, state: PageState) {
    let rmp = bench.board.rmp.expect("SNP is on");
    rmp.store(&mut bench.board, pa, &Entry::of(state));
}

pub(super) fn entry(bench: &mut Bench, pa: u64) -> Entry {
    let rmp = bench.board.rmp.expect("SNP is on");
    rmp.lookup(&mut bench.board, pa).expect("covered")
}

fn refused(mut bench: Bench, code: u64) {
    assert_eq!(bench.vmrun(), Intercepted::Switched);
    assert!(!bench.svm.in_guest());
    assert_eq!(bench.exit_code(), code);
}

const INVALID: u64 = u64::MAX;

fn access(kind: AccessKind, private: bool) -> Access {
    Access {
        linear: 0x1234_5000,
        kind,
        offset: 8,
        size: 0x1000,
        user: false,
        walk: false,
        private,
        emulated: false,
        next_rip: 0,
    }
}

fn translate(bench: &mut Bench, gpa: u64, access: Access) -> Translation {
    bench.svm.translate(&mut bench.board, &mut bench.state, gpa, access)
}

fn vc(code: u32) -> Exception {
    Exception::with_code(29, code)
}

#[test]
fn the_guests_key_is_for_its_private_accesses() {
    let mut bench = sev();
    bench.enter();
    assert_eq!(bench.state.encryption, Encryption::CBit(C_BIT));
    let private = translate(&mut bench, PAGE, access(AccessKind::Read, true));
    assert_eq!(private, Translation::Page { page: PAGE, key: KEY });
    let shared = translate(&mut bench, PAGE, access(AccessKind::Write, false));
    assert_eq!(shared, Translation::Page { page: PAGE, key: Key::PLAIN });
    let fetched = translate(&mut bench, PAGE, access(AccessKind::Fetch, true));
    assert_eq!(fetched, Translation::Page { page: PAGE, key: KEY });
}

/// Section 15.34.10.
#[test]
fn what_it_is_a_guest_learns_from_its_processor() {
    let mut bench = sev_es();
    bench.board.write(MSRPM, &[0xff; 0x2000]);
    bench.intercept(Code::MSR);
    bench.enter();
    bench.state.gpr[gpr::RCX] = 0xc001_0131;
    assert_eq!(bench.instruction(Intercept::Rdmsr, 2), Intercepted::Native);
    assert_eq!(bench.svm.rdmsr(0xc001_0131), Some(3));
    bench.state.gpr[gpr::RCX] = 0x10;
    assert_eq!(bench.instruction(Intercept::Rdmsr, 2), Intercepted::Reflect(vc(0x7c)));
}

/// Section 15.35.8: nothing of a guest's memory but what it shows.
#[test]
fn a_nested_page_fault_shows_no_instruction_of_a_guest_with_encrypted_registers() {
    for (mut bench, length) in [(sev(), 15), (sev_es(), 0)] {
        write_u64(&mut bench.board, ROOT + 0x3000, 7);
        write_u64(&mut bench.board, ROOT + 0x3000 + (PAGE >> 12) * 8, 0);
        bench.enter();
        bench.state.rip = 0x100;
        bench.state.cr0 &= !privet_cpu::state::cr0::PG;
        assert_eq!(translate(&mut bench, PAGE, access(AccessKind::Write, true)), Translation::Switched);
        let mut stored = [0];
        bench.board.read(VMCB + 0xd0, &mut stored);
        assert_eq!(stored, [length]);
    }
}

/// Section 15.34.3.
#[test]
fn an_encrypted_guest_needs_an_asid_of_its_kind_and_a_key() {
    let mut bench = sev();
    bench.board.guest_keys.clear();
    refused(bench, INVALID);
    let mut bench = sev();
    write_u32(&mut bench.board, VMCB + 0x58, 2);
    bench.board.guest_keys.insert(2, KEY);
    refused(bench, INVALID);
    let mut bench = sev_es();
    write_u32(&mut bench.board, VMCB + 0x58, ASID);
    refused(bench, INVALID);
    let mut bench = sev();
    bench.set(0x90, SEV);
    refused(bench, INVALID);
    let mut bench = sev();
    bench.set(0x90, 1 | SEV_ES);
    refused(bench, INVALID);
}

/// Section 15.35.3 and 15.35.7.
#[test]
fn encrypted_registers_need_lbr_virtualization_a_vmsa_and_no_software_event() {
    let mut bench = sev_es();
    bench.set(0xb8, 0);
    refused(bench, INVALID);
    let mut bench = sev_es();
    bench.set(0x108, VMSA + 8);
    refused(bench, INVALID);
    for event in [0x8000_0480_u64, 0x8000_0303, 0x8000_0304] {
        let mut bench = sev_es();
        bench.set(0xa8, event);
        refused(bench, INVALID);
    }
    let mut bench = sev_es();
    bench.board.write_as(KEY, VMSA + 0x3b0, &[0x20]);
    refused(bench, INVALID);
}

#[test]
fn all_registers_come_from_the_vmsa_and_go_back_there() {
    let mut bench = sev_es();
    bench.board.write_as(KEY, VMSA + 0x318, &0x1234_u64.to_le_bytes());
    write_u64(&mut bench.board, HSAVE + SAVE + 0x318, 0xb0b);
    write_u64(&mut bench.board, HSAVE + SAVE + 0x3e8, 3);
    bench.intercept(Code::PAUSE);
    bench.enter();
    assert_eq!((bench.state.gpr[gpr::RBX], bench.state.rip), (0x1234, GUEST_RIP));
    bench.state.gpr[gpr::RBX] = 0x5678;
    bench.state.fpu.xmm[1] = 9;
    assert_eq!(bench.instruction(Intercept::Pause, 2), Intercepted::Switched);
    assert_eq!(bench.exit_code(), Code::PAUSE.number());
    let mut saved = [0; 8];
    bench.board.read_as(KEY, VMSA + 0x318, &mut saved);
    assert_eq!(u64::from_le_bytes(saved), 0x5678);
    bench.board.read_as(KEY, VMSA + 0x178, &mut saved);
    assert_eq!(u64::from_le_bytes(saved), GUEST_RIP + 2, "the hypervisor could not move RIP");
    assert_eq!((bench.state.gpr[gpr::RBX], bench.state.xcr0), (0xb0b, 3), "as software has saved them");
    assert_eq!(bench.state.fpu, privet_cpu::fpu::FpuState::default());
    assert_eq!(bench.state.encryption, Encryption::None);
    assert_eq!(bench.state.rip, HOST_RIP + 3);
}

#[test]
fn the_hypervisor_sees_nothing_of_the_guest_but_what_the_vmcb_says() {
    let mut bench = sev_es();
    bench.enter();
    bench.state.gpr[gpr::RAX] = 0x5ec2e7;
    let before: [u8; 0x400] = crate::read_array(&mut bench.board, VMCB + SAVE);
    assert_eq!(bench.call(Call::Vmgexit, 4), Intercepted::Switched);
    assert_eq!(bench.exit_code(), 0x403);
    assert_eq!(crate::read_array::<0x400>(&mut bench.board, VMCB + SAVE), before);
}

/// Section 15.35.4.
#[test]
fn an_intercepted_instruction_is_a_vc_for_the_guest() {
    let mut bench = sev_es();
    for code in [Code::CPUID, Code::MSR, Code::RDTSC] {
        bench.intercept(code);
    }
    bench.enter();
    assert_eq!(bench.instruction(Intercept::Cpuid, 2), Intercepted::Reflect(vc(0x72)));
    assert_eq!(bench.instruction(Intercept::Rdtsc, 2), Intercepted::Reflect(vc(0x6e)));
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Native, "not intercepted");
    assert!(bench.svm.in_guest());
}

#[test]
fn an_intercepted_exception_is_a_vc_too() {
    let mut bench = sev_es();
    bench.intercept(Code::exception(17));
    bench.enter();
    let raised = bench.svm.exception(&mut bench.board, &mut bench.state, Exception::with_code(17, 0));
    assert_eq!(raised, Reaction::Switched);
    assert!(bench.svm.in_guest());
    assert_eq!(bench.state.injection, Some(privet_cpu::state::Injection::Exception(vc(0x51))));
}

/// Section 15.35.9.
#[test]
fn control_registers_are_told_after_they_were_written() {
    let mut bench = sev_es();
    bench.intercept(Code::EFER_WRITE_TRAP);
    bench.intercept(Code::cr_write_trap(4));
    bench.enter();
    assert_eq!(bench.svm.after(&mut bench.board, &mut bench.state, Trap::WriteCr(0)), Reaction::Native);
    bench.state.cr4 |= cr4::PGE;
    let cr4 = bench.state.cr4;
    assert_eq!(bench.svm.after(&mut bench.board, &mut bench.state, Trap::WriteCr(4)), Reaction::Switched);
    assert_eq!((bench.exit_code(), bench.get(0x78)), (0x94, cr4));
}

#[test]
fn a_device_is_the_guests_to_ask_for_and_memory_the_hypervisors_to_map() {
    let mut bench = sev_es();
    write_u64(&mut bench.board, ROOT + 0x3000 + (PAGE >> 12) * 8, 1 << 45 | 1 << 50 | 1);
    write_u64(&mut bench.board, ROOT + 0x3000 + (PAGE >> 12) * 8 + 8, 0);
    bench.enter();
    let device = translate(&mut bench, PAGE, access(AccessKind::Read, false));
    assert_eq!(device, Translation::Reflect(vc(0x400)));
    let absent = translate(&mut bench, PAGE + 0x1000, access(AccessKind::Read, true));
    assert_eq!(absent, Translation::Switched);
    assert_eq!((bench.exit_code(), bench.get(0x78)), (0x400, 1 << 32 | error_code::ENC | 4));
    assert_eq!(bench.get(0x80), PAGE + 0x1008);
}

#[test]
fn the_ghcb_register_is_the_guests_and_the_vmcb_shows_it() {
    let mut bench = sev_es();
    bench.set(0xa0, 0x1001);
    assert_eq!(bench.svm.rdmsr(0xc001_0130), None, "in the host");
    bench.enter();
    assert_eq!(bench.svm.rdmsr(0xc001_0130), Some(0x1001));
    assert_eq!(bench.svm.rdmsr(0xc001_0131), Some(3));
    assert_eq!(bench.svm.wrmsr(0xc001_0130, 0x7000), Some(Ok(())));
    bench.call(Call::Vmgexit, 4);
    assert_eq!(bench.get(0xa0), 0x7000);
}

#[test]
fn vmgexit_of_a_guest_whose_registers_are_plain_is_vmmcall() {
    let mut bench = sev();
    bench.intercept(Code::VMMCALL);
    bench.enter();
    assert_eq!(bench.call(Call::Vmgexit, 4), Intercepted::Switched);
    assert_eq!(bench.exit_code(), 0x81);
}

/// Table 15-41.
#[test]
fn the_vmsa_of_an_snp_guest_is_its_own_page_and_marked() {
    snp().enter();
    let mut bench = snp();
    set_state(&mut bench, VMSA, PageState::GuestValid(owned(0)));
    refused(bench, INVALID);
    let mut bench = snp();
    set_state(&mut bench, VMSA, PageState::GuestValid(Owned { vmsa: true, asid: 3, ..owned(0) }));
    refused(bench, INVALID);
    let mut bench = snp();
    set_state(&mut bench, VMSA, PageState::Hypervisor);
    refused(bench, INVALID);
    let mut bench = snp();
    bench.board.rmp = None;
    refused(bench, INVALID);
    let mut bench = snp();
    set_state(&mut bench, VMCB, PageState::Firmware);
    assert_eq!(bench.vmrun(), Intercepted::Reflect(Exception::gp(0)));
}

#[test]
fn pages_that_a_processor_runs_with_are_in_use() {
    let mut bench = snp();
    bench.enter();
    assert!(entry(&mut bench, VMSA).in_use && entry(&mut bench, VMCB).in_use);
    let mut other = Svm::new(features());
    other.wrmsr(0xc001_0117, HSAVE).expect("SVM's").expect("valid");
    let mut state = host();
    state.gpr[gpr::RAX] = VMCB;
    other.intercept(&mut bench.board, &mut state, Intercept::Call(Call::Vmrun), 3);
    assert_eq!(bench.exit_code(), u64::MAX - 1, "busy");
    bench.call(Call::Vmgexit, 4);
    assert!(!entry(&mut bench, VMSA).in_use && !entry(&mut bench, VMCB).in_use);
}

/// A guest starts another processor of its own: RMPADJUST marks the page, VMRUN takes it, and it is in use meanwhile.
#[test]
fn a_vmsa_that_the_guest_has_made_runs_on_another_processor() {
    let mut bench = snp();
    with_tables(&mut bench);
    bench.enter();
    assert_eq!(snp_instruction(&mut bench, Call::Pvalidate, 0, 0, 1), Intercepted::Done);
    let mut area = [0; 0x1000];
    bench.board.read_as(KEY, VMSA, &mut area);
    area[0x178..0x180].copy_from_slice(&0x4321_u64.to_le_bytes());
    bench.board.write_as(KEY, PAGE, &area);
    let second = 0x7000;
    let mut control = [0; 0x1000];
    bench.board.read(VMCB, &mut control);
    bench.board.write(second, &control);
    write_u64(&mut bench.board, second + 0x108, PAGE);
    let mut other = Svm::new(features());
    other.wrmsr(0xc001_0117, 0x1a_0000).expect("SVM's").expect("valid");
    let mut run = |bench: &mut Bench| {
        let mut state = host();
        state.gpr[gpr::RAX] = second;
        other.intercept(&mut bench.board, &mut state, Intercept::Call(Call::Vmrun), 3);
        (other.in_guest(), state)
    };
    assert!(!run(&mut bench).0, "it is no VMSA yet");
    assert_eq!(snp_instruction(&mut bench, Call::Rmpadjust, 0, 0, 0x1_0001), Intercepted::Done);
    let (runs, mut state) = run(&mut bench);
    assert!(runs && bench.svm.in_guest(), "both at once");
    assert_eq!((state.rip, state.world), (0x4321, bench.state.world));
    assert_eq!(snp_instruction(&mut bench, Call::Rmpadjust, 0, 0, 1), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], 3, "in use");
    assert_eq!(entry(&mut bench, PAGE).state.owned().map(|owned| owned.vmsa), Some(true));
    other.intercept(&mut bench.board, &mut state, Intercept::Call(Call::Vmgexit), 3);
    assert!(!other.in_guest() && !entry(&mut bench, PAGE).in_use);
    assert_eq!(snp_instruction(&mut bench, Call::Rmpadjust, 0, 0, 1), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], 0);
    assert_eq!(entry(&mut bench, PAGE).state.owned().map(|owned| owned.vmsa), Some(false));
}

#[test]
fn the_host_save_area_is_the_hypervisors_page() {
    let mut bench = snp();
    let check = |bench: &mut Bench, pa| bench.svm.check_wrmsr(&mut bench.board, 0xc001_0117, pa);
    assert_eq!(check(&mut bench, VMSA), Err(Exception::gp(0)));
    assert_eq!(check(&mut bench, HSAVE), Ok(()));
    assert_eq!(bench.svm.check_wrmsr(&mut bench.board, 0xc001_0114, VMSA), Ok(()), "another register");
}

#[test]
fn a_large_mapping_of_the_host_is_written_only_if_all_of_it_is_the_hosts() {
    let mut bench = snp();
    let write = |size| Access { size, ..access(AccessKind::Write, false) };
    assert_eq!(translate(&mut bench, PAGE, write(0x1000)), Translation::Page { page: PAGE, key: Key::PLAIN });
    let large = translate(&mut bench, PAGE, write(0x20_0000));
    assert_eq!(large, Translation::Reflect(Exception::pf(0x1234_5000, 0x8000_0003)), "the VMSA is near");
    set_state(&mut bench, VMSA, PageState::Hypervisor);
    let large = translate(&mut bench, PAGE, write(0x20_0000));
    assert_eq!(large, Translation::Page { page: PAGE, key: Key::PLAIN });
}

/// Section 15.36.10.
#[test]
fn the_rmp_decides_about_each_access() {
    let mut bench = snp();
    set_state(&mut bench, PAGE, PageState::GuestValid(owned(PAGE)));
    set_state(&mut bench, PAGE + 0x1000, PageState::GuestInvalid(owned(PAGE + 0x1000)));
    let host = translate(&mut bench, PAGE, access(AccessKind::Write, false));
    assert_eq!(host, Translation::Reflect(Exception::pf(0x1234_5000, 0x8000_0003)));
    let host = translate(&mut bench, PAGE, access(AccessKind::Read, false));
    assert_eq!(host, Translation::Page { page: PAGE, key: Key::PLAIN });
    bench.enter();
    let valid = translate(&mut bench, PAGE, access(AccessKind::Write, true));
    assert_eq!(valid, Translation::Page { page: PAGE, key: KEY });
    let invalid = translate(&mut bench, PAGE + 0x1000, access(AccessKind::Read, true));
    assert_eq!(invalid, Translation::Reflect(vc(0x404)));
    let shared = translate(&mut bench, PAGE, access(AccessKind::Read, false));
    assert_eq!(shared, Translation::Page { page: PAGE, key: Key::PLAIN });
    let shared = translate(&mut bench, PAGE, access(AccessKind::Write, false));
    assert_eq!((shared, bench.get(0x78)), (Translation::Switched, 1 << 32 | error_code::RMP | 7));
    bench.enter();
    let nobodys = translate(&mut bench, PAGE + 0x2000, access(AccessKind::Read, true));
    let error = 1 << 32 | error_code::RMP | error_code::ENC | 5;
    assert_eq!((nobodys, bench.get(0x78)), (Translation::Switched, error));
}

/// Puts page tables of the guest in pages of its own, which map [`PAGE`] and the next page at linear address 0 on.
fn with_tables(bench: &mut Bench) {
    let root = 0x16_0000;
    bench.guest(0x150, root);
    bench.board.write_as(KEY, VMSA + 0x150, &root.to_le_bytes());
    for (level, table) in (0..4).map(|level| (level, root + level * 0x1000)) {
        set_state(bench, table, PageState::GuestValid(owned(table)));
        let next = if level == 3 { PAGE } else { table + 0x1000 };
        bench.board.write_as(KEY, table, &[0; 4096]);
        bench.board.write_as(KEY, table, &(next | 1 << C_BIT | 3).to_le_bytes());
    }
    set_state(bench, PAGE, PageState::GuestInvalid(owned(PAGE)));
}

fn snp_instruction(bench: &mut Bench, call: Call, rax: u64, rcx: u64, rdx: u64) -> Intercepted {
    bench.state.gpr[gpr::RAX] = rax;
    bench.state.gpr[gpr::RCX] = rcx;
    bench.state.gpr[gpr::RDX] = rdx;
    bench.call(call, 4)
}

#[test]
fn a_guest_validates_its_pages() {
    let mut bench = snp();
    with_tables(&mut bench);
    bench.enter();
    // Of EDX only bit 0 counts.
    for (validate, carry) in [(1, 0), (0x1234_5601, 1), (0x1234_5600, 0), (1, 0)] {
        assert_eq!(snp_instruction(&mut bench, Call::Pvalidate, 0, 0, validate), Intercepted::Done);
        assert_eq!((bench.state.gpr[gpr::RAX], bench.state.rflags & 1), (0, carry));
    }
    assert_eq!(entry(&mut bench, PAGE).state, PageState::GuestValid(owned(PAGE)));
    assert_eq!(snp_instruction(&mut bench, Call::Rmpadjust, 0, 0, 0x1_0f01), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], 0);
    assert!(entry(&mut bench, PAGE).state.owned().expect("the guest's").vmsa);
    assert_eq!(snp_instruction(&mut bench, Call::Rmpquery, 0, 0, 1), Intercepted::Done);
    assert_eq!((bench.state.gpr[gpr::RAX], bench.state.gpr[gpr::RDX]), (0, 0x1_0f01));
    let fault = snp_instruction(&mut bench, Call::Pvalidate, 0x1000, 0, 1);
    assert_eq!(fault, Intercepted::Reflect(Exception::pf(0x1000, 0)), "by the guest's own tables");
}

#[test]
fn instructions_of_snp_are_for_whom_they_are_made() {
    let mut bench = snp();
    with_tables(&mut bench);
    assert_eq!(snp_instruction(&mut bench, Call::Pvalidate, 0, 0, 1), Intercepted::Reflect(Exception::ud()));
    assert_eq!(snp_instruction(&mut bench, Call::Psmash, 0x20_0000, 0, 0), Intercepted::Done);
    bench.enter();
    assert_eq!(snp_instruction(&mut bench, Call::Psmash, 0x20_0000, 0, 0), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], 2, "a guest has no permission");
    bench.state.segments[Seg::Ss as usize].dpl = 3;
    assert_eq!(snp_instruction(&mut bench, Call::Pvalidate, 0, 0, 1), Intercepted::Reflect(Exception::gp(0)));
    let mut plain = Bench::new();
    for call in [Call::Psmash, Call::Rmpread] {
        assert_eq!(snp_instruction(&mut plain, call, 0, 0, 0), Intercepted::Reflect(Exception::ud()));
    }
}

/// Section 15.36.8.
#[test]
fn cpuid_and_ports_of_an_snp_guest_are_always_intercepted() {
    let mut bench = snp();
    bench.enter();
    assert_eq!(bench.instruction(Intercept::Cpuid, 2), Intercepted::Reflect(vc(0x72)));
    let port = Intercept::PortIo {
        port: 0x80,
        size: 1,
        input: false,
        string: false,
        rep: false,
        address_size: 8,
        segment: Seg::Ds,
        immediate: true,
        linear: 0,
    };
    assert_eq!(bench.instruction(port, 2), Intercepted::Reflect(vc(0x7b)));
}

#[test]
fn rmpupdate_reads_the_new_state_by_the_hosts_tables() {
    let mut bench = snp();
    // The host's tables: one page at linear address 0.
    let root = 0x17_0000;
    bench.state.cr3 = root;
    for level in 0..4 {
        let table = root + level * 0x1000;
        let next = if level == 3 { 0x17_8000 } else { table + 0x1000 };
        write_u64(&mut bench.board, table, next | 3);
    }
    write_u64(&mut bench.board, 0x17_8040, PAGE);
    write_u64(&mut bench.board, 0x17_8048, 1 | 2 << 32);
    assert_eq!(snp_instruction(&mut bench, Call::Rmpupdate, PAGE, 0x40, 0), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], 0);
    assert_eq!(entry(&mut bench, PAGE).state, PageState::GuestInvalid(owned(PAGE)));
    assert_eq!(entry(&mut bench, PAGE).size, PageSize::Size4K);
    let fault = snp_instruction(&mut bench, Call::Rmpupdate, PAGE, 0x1000, 0);
    assert_eq!(fault, Intercepted::Reflect(Exception::pf(0x1000, 0)));
    // RMPREAD gives what RMPUPDATE has taken, into writable memory.
    assert_eq!(snp_instruction(&mut bench, Call::Rmpread, PAGE, 0x80, 0), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], 0);
    let read = [0x17_8080, 0x17_8088].map(|at| read_u64(&mut bench.board, at));
    assert_eq!(read, [PAGE, 1 | 2 << 32]);
    assert_eq!(snp_instruction(&mut bench, Call::Rmpread, PAGE + 1, 0x80, 0), Intercepted::Done);
    assert_eq!(bench.state.gpr[gpr::RAX], crate::rmp::Code::FailInput as u64);
    let fault = snp_instruction(&mut bench, Call::Rmpread, PAGE, 0x1000, 0);
    assert_eq!(fault, Intercepted::Reflect(Exception::pf(0x1000, privet_cpu::paging::PF_WRITE)));
}
