//! VM entries that fail: with which error, or with which exit.

use super::*;

const CONTROLS: Option<u64> = Some(7);
const HOST_STATE: Option<u64> = Some(8);

/// How VMLAUNCH fails after this change; it must not without.
fn failure(spoil: impl FnOnce(&mut Bench)) -> Option<u64> {
    let mut bench = Bench::with_ept(PAGE | 7);
    spoil(&mut bench);
    let failure = bench.failure(VmxCall::Vmlaunch);
    assert_eq!(failure.is_none(), bench.state.rip != HOST_RIP);
    failure
}

#[test]
fn a_good_vmcs_is_entered() {
    Bench::ready().enter();
    assert_eq!(failure(|_| {}), None);
}

#[test]
fn launch_and_resume_follow_the_launch_state() {
    let mut bench = Bench::ready();
    assert_eq!(bench.failure(VmxCall::Vmresume), Some(5));
    bench.enter();
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.failure(VmxCall::Vmlaunch), Some(4));
    assert_eq!(bench.call(VmxCall::Vmresume), VmxAnswer::Switched);
    assert_eq!(Bench::in_operation().failure(VmxCall::Vmlaunch), Some(0));
}

#[test]
fn an_entry_behind_mov_ss_fails() {
    assert_eq!(failure(|bench| bench.state.shadow = Shadow::MovSs), Some(26));
    assert_eq!(failure(|bench| bench.state.shadow = Shadow::Sti), None);
}

#[test]
fn controls_that_do_not_exist_or_have_to_be_set() {
    for (field, reserved, must) in [
        (field::PIN, 1 << 10, PIN_DEFAULT1),
        (field::PROC, 1 << 27, PROC_FIXED),
        (field::EXIT, 1 << 24, EXIT_FIXED),
        (field::ENTRY, 1 << 20, ENTRY_FIXED),
    ] {
        assert_eq!(failure(|bench| bench.add(field, reserved)), CONTROLS, "{field:?}");
        assert_eq!(failure(|bench| bench.remove(field, must & must.wrapping_neg())), CONTROLS, "{field:?}");
    }
    assert_eq!(failure(|bench| bench.add(field::PROC2, 1 << 2)), CONTROLS);
    // What is not activated is not looked at.
    assert_eq!(
        failure(|bench| {
            bench.set(field::PROC2, 1 << 2);
            bench.remove(field::PROC, proc::SECONDARY);
        }),
        None
    );
    // The TRUE MSRs allow these to be 0.
    assert_eq!(failure(|bench| bench.remove(field::PROC, proc::CR3_LOAD | proc::CR3_STORE)), None);
}

/// Section 27.2.1.1, rule by rule.
#[test]
fn controls_that_do_not_go_together() {
    type Spoil = fn(&mut Bench);
    let cases: [(&str, Spoil); 27] = [
        ("CR3 targets", |b| b.set(field::CR3_TARGETS, 5)),
        ("I/O bitmap", |b| {
            b.add(field::PROC, proc::IO_BITMAPS);
            b.set(field::IO_BITMAP_B, 0x6001);
        }),
        ("MSR bitmap", |b| b.set(field::MSR_BITMAP, 0x4800)),
        ("MSR bitmap, wide", |b| b.set(field::MSR_BITMAP, 1 << 46)),
        ("virtual APIC", |b| {
            b.add(field::PROC, proc::TPR_SHADOW);
            b.set(field::VIRTUAL_APIC, 0x7010);
        }),
        ("TPR threshold, reserved", |b| {
            b.add(field::PROC, proc::TPR_SHADOW);
            b.set(field::TPR_THRESHOLD, 0x10);
        }),
        ("TPR threshold, above", |b| {
            b.add(field::PROC, proc::TPR_SHADOW);
            b.set(field::TPR_THRESHOLD, 1);
        }),
        ("x2APIC without shadow", |b| b.add(field::PROC2, proc2::X2APIC)),
        ("registers without shadow", |b| b.add(field::PROC2, proc2::APIC_REGISTERS)),
        ("virtual NMIs", |b| {
            b.add(field::PIN, pin::VIRTUAL_NMI);
            b.remove(field::PIN, pin::NMI);
        }),
        ("NMI window", |b| b.add(field::PROC, proc::NMI_WINDOW)),
        ("APIC-access page", |b| {
            b.add(field::PROC2, proc2::APIC_ACCESSES);
            b.set(field::APIC_ACCESS, 8);
        }),
        ("x2APIC and page", |b| {
            b.add(field::PROC, proc::TPR_SHADOW);
            b.add(field::PROC2, proc2::APIC_ACCESSES | proc2::X2APIC);
        }),
        ("virtual interrupts without exits", |b| {
            b.add(field::PROC, proc::TPR_SHADOW);
            b.add(field::PROC2, proc2::VIRTUAL_INTERRUPTS);
            b.remove(field::PIN, pin::EXTERNAL_INTERRUPT);
        }),
        ("posted without virtual interrupts", |b| b.add(field::PIN, pin::POSTED_INTERRUPTS)),
        ("posted without acknowledging", |b| {
            posted(b);
            b.remove(field::EXIT, exit::ACKNOWLEDGE);
        }),
        ("posted, vector", |b| {
            posted(b);
            b.set(field::POSTED_VECTOR, 0x100);
        }),
        ("posted, descriptor", |b| {
            posted(b);
            b.set(field::POSTED_DESCRIPTOR, DESCRIPTOR + 0x20);
        }),
        ("EPT pointer, type", |b| b.set(field::EPTP, EPT | 0x18)),
        ("EPT pointer, length", |b| b.set(field::EPTP, EPT | 0x26)),
        ("EPT pointer, reserved", |b| b.set(field::EPTP, EPT | 0x9e)),
        ("EPT pointer, wide", |b| b.set(field::EPTP, 1 << 46 | 0x1e)),
        ("log", |b| {
            b.add(field::PROC2, proc2::PML);
            b.set(field::PML_ADDRESS, LOG + 8);
        }),
        ("log without EPT", |b| b.set(field::PROC2, proc2::PML.into())),
        ("unrestricted without EPT", |b| b.set(field::PROC2, proc2::UNRESTRICTED.into())),
        ("TSC multiplier", |b| {
            b.add(field::PROC2, proc2::TSC_SCALING);
            b.set(field::TSC_MULTIPLIER, 0);
        }),
        ("saving the timer", |b| b.add(field::EXIT, exit::SAVE_TIMER)),
    ];
    for (name, spoil) in cases {
        assert_eq!(failure(spoil), CONTROLS, "{name}");
    }
    assert_eq!(failure(posted), None);
}

fn posted(bench: &mut Bench) {
    bench.add(field::PROC, proc::TPR_SHADOW);
    bench.add(field::PROC2, proc2::VIRTUAL_INTERRUPTS);
    bench.add(field::PIN, pin::POSTED_INTERRUPTS);
}

#[test]
fn a_vpid_is_not_zero() {
    let with_vpid = |vpid| {
        failure(|bench| {
            bench.add(field::PROC2, proc2::VPID);
            bench.set(field::VPID, vpid);
        })
    };
    assert_eq!([with_vpid(0), with_vpid(1)], [CONTROLS, None]);
}

#[test]
fn lists_of_msrs_are_aligned_and_no_wider_than_addresses() {
    for (list, count) in [
        (field::ENTRY_MSR_LOAD, field::ENTRY_MSR_LOAD_COUNT),
        (field::EXIT_MSR_LOAD, field::EXIT_MSR_LOAD_COUNT),
        (field::EXIT_MSR_STORE, field::EXIT_MSR_STORE_COUNT),
    ] {
        for address in [MSR_LIST + 8, (1 << 46) - 16] {
            let spoil = |entries| {
                move |bench: &mut Bench| {
                    bench.set(list, address);
                    bench.set(count, entries);
                }
            };
            assert_eq!(failure(spoil(2)), CONTROLS, "{list:?} at {address:#x}");
            assert_eq!(failure(spoil(0)), None);
        }
    }
}

/// Section 27.2.1.3.
#[test]
fn events_to_inject_are_such_as_there_are() {
    const INTERRUPT: u64 = 0x8000_0041;
    let with_event = |word: u64, error: u64, length: u64| {
        failure(|bench| {
            bench.set(field::ENTRY_EVENT, word);
            bench.set(field::ENTRY_ERROR, error);
            bench.set(field::ENTRY_LENGTH, length);
            bench.set(field::GUEST_RFLAGS, 0x202);
        })
    };
    for (word, error, length, expected) in [
        (INTERRUPT, 0, 0, None),
        (0x0000_0141, 0, 0, None),
        (INTERRUPT | 1 << 8, 0, 0, CONTROLS),
        (INTERRUPT | 7 << 8, 0, 0, CONTROLS),
        (0x8000_0202, 0, 0, None),
        (0x8000_0203, 0, 0, CONTROLS),
        (0x8000_0306, 0, 0, None),
        (0x8000_0320, 0, 0, CONTROLS),
        (0x8000_0b0e, 2, 0, None),
        (0x8000_030e, 0, 0, CONTROLS),
        (0x8000_0b06, 0, 0, CONTROLS),
        (0x8000_0b0e, 0x1_0000, 0, CONTROLS),
        (0x8000_0480, 0, 2, None),
        (0x8000_0480, 0, 0, None),
        (0x8000_0480, 0, 16, CONTROLS),
        (INTERRUPT | 1 << 12, 0, 0, CONTROLS),
    ] {
        assert_eq!(with_event(word, error, length), expected, "{word:#x}, error {error:#x}, length {length}");
    }
}

/// Sections 27.2.2 to 27.2.4, rule by rule.
#[test]
fn host_states_that_no_exit_could_load() {
    type Spoil = fn(&mut Bench);
    let cases: [(&str, Spoil); 17] = [
        ("CR0.NE", |b| b.remove(field::HOST_CR0, 1 << 5)),
        ("CR4.VMXE", |b| b.remove(field::HOST_CR4, 1 << 13)),
        ("CR4, reserved", |b| b.add(field::HOST_CR4, 1 << 27)),
        ("CR3", |b| b.set(field::HOST_CR3, 1 << 46)),
        ("GS base", |b| b.set(field::HOST_GS_BASE, 1 << 47)),
        ("SYSENTER", |b| b.set(field::HOST_SYSENTER_EIP, 1 << 63)),
        ("PAT", |b| {
            b.add(field::EXIT, exit::LOAD_PAT);
            b.set(field::HOST_PAT, 2);
        }),
        ("EFER, reserved", |b| b.add(field::HOST_EFER, 1 << 12)),
        ("EFER, mode", |b| b.remove(field::HOST_EFER, 1 << 8)),
        ("SS, privilege", |b| b.set(field::HOST_SS, 0x1b)),
        ("TR, LDT", |b| b.set(field::HOST_TR, 0x44)),
        ("CS, null", |b| b.set(field::HOST_CS, 0)),
        ("TR, null", |b| b.set(field::HOST_TR, 0)),
        ("another mode", |b| b.remove(field::EXIT, exit::HOST_64)),
        ("RIP", |b| b.set(field::HOST_RIP, 1 << 47)),
        ("PAE", |b| b.remove(field::HOST_CR4, 1 << 5)),
        ("CR0, upper half", |b| {
            let value = b.get(field::HOST_CR0);
            b.set(field::HOST_CR0, value | 1 << 40);
        }),
    ];
    for (name, spoil) in cases {
        assert_eq!(failure(spoil), HOST_STATE, "{name}");
    }
}

/// The exit that an entry ends in after this change, with its qualification.
fn late_failure(spoil: impl FnOnce(&mut Bench)) -> [u64; 2] {
    let mut bench = Bench::with_ept(PAGE | 7);
    spoil(&mut bench);
    assert_eq!(bench.call(VmxCall::Vmlaunch), VmxAnswer::Switched);
    assert!(!bench.vmx.in_guest(), "it was entered");
    assert_eq!((bench.state.rip, bench.state.cr3), (EXIT_RIP, 0xa000));
    assert!(!vmcs::is_launched(&mut bench.board, VMCS), "the VMCS is still clear");
    [bench.get(field::EXIT_REASON), bench.get(field::QUALIFICATION)]
}

/// Section 27.3.1, rule by rule.
#[test]
fn guest_states_that_no_processor_could_be_in() {
    type Spoil = fn(&mut Bench);
    let cases: [(&str, Spoil); 42] = [
        ("CR0.NE", |b| b.remove(field::GUEST_CR0, 1 << 5)),
        ("CR0.PE", |b| b.remove(field::GUEST_CR0, 1)),
        ("PG without PE", |b| {
            b.add(field::PROC2, proc2::UNRESTRICTED);
            b.remove(field::GUEST_CR0, 1);
        }),
        ("CR4.VMXE", |b| b.remove(field::GUEST_CR4, 1 << 13)),
        ("CR4, reserved", |b| b.add(field::GUEST_CR4, 1 << 27)),
        ("DEBUGCTL", |b| {
            b.add(field::ENTRY, entry::LOAD_DEBUG);
            b.set(field::GUEST_DEBUGCTL, 4);
        }),
        ("PAE", |b| b.remove(field::GUEST_CR4, 1 << 5)),
        ("PCIDE outside of long mode", |b| {
            b.remove(field::ENTRY, entry::IA32E);
            b.set(field::GUEST_EFER, 0);
            b.add(field::GUEST_CR4, 1 << 17);
        }),
        ("CR3", |b| b.set(field::GUEST_CR3, 1 << 46)),
        ("DR7", |b| {
            b.add(field::ENTRY, entry::LOAD_DEBUG);
            b.set(field::GUEST_DR7, 1 << 32);
        }),
        ("SYSENTER", |b| b.set(field::GUEST_SYSENTER_ESP, 1 << 47)),
        ("PAT", |b| {
            b.add(field::ENTRY, entry::LOAD_PAT);
            b.set(field::GUEST_PAT, 3);
        }),
        ("EFER, reserved", |b| b.add(field::GUEST_EFER, 1 << 12)),
        ("EFER.LMA", |b| b.remove(field::GUEST_EFER, 1 << 10)),
        ("EFER.LME", |b| b.remove(field::GUEST_EFER, 1 << 8)),
        ("TR of the LDT", |b| b.set(field::GUEST_TR, 4)),
        ("SS, privilege", |b| b.set(field::GUEST_SS, 3)),
        ("FS base", |b| b.set(field::FS_BASE, 1 << 47)),
        ("CS base", |b| b.set(field::CS_BASE, 1 << 32)),
        ("DS base", |b| b.set(field::DS_BASE, 1 << 32)),
        ("CS, type", |b| b.set(field::CS_RIGHTS, 0xa093)),
        ("CS, privilege", |b| b.set(field::CS_RIGHTS, 0xa0fb)),
        ("CS, L and D", |b| b.set(field::CS_RIGHTS, 0xe09b)),
        ("CS, unusable", |b| b.set(field::CS_RIGHTS, 0x1_a09b)),
        ("SS, type", |b| b.set(field::SS_RIGHTS, 0xc09b)),
        ("ES, not accessed", |b| b.set(field::ES_RIGHTS, 0xc092)),
        ("DS, not present", |b| b.set(field::DS_RIGHTS, 0xc013)),
        ("DS, reserved", |b| b.set(field::DS_RIGHTS, 0xc193)),
        ("DS, granularity", |b| b.set(field::DS_LIMIT, 0x10_0000)),
        ("TR, type", |b| b.set(field::TR_RIGHTS, 0x83)),
        ("TR, unusable", |b| b.set(field::TR_RIGHTS, 0x1_008b)),
        ("LDTR, type", |b| b.set(field::LDTR_RIGHTS, 0x81)),
        ("GDTR, limit", |b| b.set(field::GDTR_LIMIT, 0x1_0000)),
        ("IDTR, base", |b| b.set(field::IDTR_BASE, 1 << 47)),
        ("RIP", |b| b.set(field::GUEST_RIP, 1 << 47)),
        ("RFLAGS, bit 1", |b| b.set(field::GUEST_RFLAGS, 0)),
        ("RFLAGS, reserved", |b| b.set(field::GUEST_RFLAGS, 1 << 15 | 2)),
        ("RFLAGS.VM in long mode", |b| b.set(field::GUEST_RFLAGS, 1 << 17 | 2)),
        ("an interrupt that is masked", |b| b.set(field::ENTRY_EVENT, 0x8000_0041)),
        ("activity", |b| b.set(field::ACTIVITY, 2)),
        ("activity, with blocking", |b| {
            b.set(field::ACTIVITY, 1);
            b.set(field::INTERRUPTIBILITY, 2);
        }),
        ("STI without IF", |b| b.set(field::INTERRUPTIBILITY, 1)),
    ];
    for (name, spoil) in cases {
        assert_eq!(late_failure(spoil), [0x8000_0021, 0], "{name}");
    }
}

#[test]
fn guest_states_that_are_told_apart() {
    let nmi_blocked = |bench: &mut Bench| {
        bench.add(field::PIN, pin::VIRTUAL_NMI);
        bench.set(field::ENTRY_EVENT, 0x8000_0202);
        bench.set(field::INTERRUPTIBILITY, 8);
    };
    assert_eq!(late_failure(nmi_blocked), [0x8000_0021, 3]);
    assert_eq!(late_failure(|bench| bench.set(field::LINK, 0)), [0x8000_0021, 4]);
    let pdpte = |bench: &mut Bench| {
        bench.remove(field::ENTRY, entry::IA32E);
        bench.set(field::GUEST_EFER, 0);
        bench.set(field::CS_RIGHTS, 0xc09b);
        bench.set(field::GUEST_PDPTE_2, 1 | 1 << 5);
    };
    assert_eq!(late_failure(pdpte), [0x8000_0021, 2]);
}

#[test]
fn an_unrestricted_guest_may_be_in_real_mode() {
    let mut bench = Bench::with_ept(PAGE | 7);
    bench.add(field::PROC2, proc2::UNRESTRICTED);
    bench.remove(field::ENTRY, entry::IA32E);
    bench.set(field::GUEST_EFER, 0);
    bench.set(field::GUEST_CR0, 0x30);
    bench.set(field::GUEST_CR4, 1 << 13);
    for fields in field::SEGMENTS {
        bench.set(fields.limit, 0xffff);
        bench.set(fields.rights, 0x93);
    }
    bench.set(field::CS_RIGHTS, 0x93);
    bench.enter();
    assert!(!bench.state.protected());
}

#[test]
fn msrs_that_cannot_be_loaded_end_the_entry() {
    let with_list = |index: u32, value: u64| {
        late_failure(|bench| {
            write_u64(&mut bench.board, MSR_LIST, 0xc000_0081);
            write_u64(&mut bench.board, MSR_LIST + 8, 7);
            write_u64(&mut bench.board, MSR_LIST + 16, index.into());
            write_u64(&mut bench.board, MSR_LIST + 24, value);
            bench.set(field::ENTRY_MSR_LOAD, MSR_LIST);
            bench.set(field::ENTRY_MSR_LOAD_COUNT, 2);
        })
    };
    assert_eq!(with_list(0xc000_0100, 0), [0x8000_0022, 2], "FS_BASE");
    assert_eq!(with_list(0x174 | 0x800, 0), [0x8000_0022, 2]);
    assert_eq!(with_list(0xc000_0082, 1 << 60), [0x8000_0022, 2], "a value that is not canonical");
}
