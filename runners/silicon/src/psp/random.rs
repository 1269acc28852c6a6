//! Random commands of the host to the firmware, random instructions of hosts and guests on the RMP: nothing panics, and
//! no state is reached that the specifications forbid.

use privet_cpu::AccessKind;
use proptest::prelude::*;

use super::Command;
use super::test_machine::{BUFFER, TestMachine};
use crate::rmp::{self, Caller, Entry, Operand, PageSize, PageState, PrivateAccess, Rmp, RmpState};

/// Pages that operations are about: a few small ones, and one of 2 MiB.
const SMALL: std::ops::Range<u64> = 2..10;
const LARGE: u64 = 0x20_0000;

#[derive(Debug, Clone)]
enum Step {
    Command { command: usize, words: [u64; 6] },
    Rmpupdate { page: u64, state: [u8; 16] },
    Psmash,
    Pvalidate { page: u64, gpa: u64, large: bool, validate: bool },
    Rmpadjust { page: u64, gpa: u64, rdx: u64 },
    WriteBack,
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![SMALL.prop_map(|frame| frame << 12), Just(LARGE), Just(LARGE + 0x3000)]
}

fn gpa() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(0x1000), Just(0x40_0000)]
}

/// A word of a command's buffer: a page, a small number, or anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![4 => page(), 2 => Just(LARGE | 1), 4 => 0_u64..24, 2 => Just(0x2_0000), 1 => any::<u64>()]
}

fn state() -> impl Strategy<Value = [u8; 16]> {
    (gpa(), any::<bool>(), any::<bool>(), any::<bool>(), 0_u32..4).prop_map(
        |(gpa, assigned, large, immutable, asid)| {
            RmpState { gpa, assigned, size: PageSize::of_bit(large), immutable, asid }.encode()
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..Command::ALL.len(), prop::array::uniform6(word()))
            .prop_map(|(command, words)| Step::Command { command, words }),
        4 => (page(), state()).prop_map(|(page, state)| Step::Rmpupdate { page, state }),
        1 => Just(Step::Psmash),
        2 => (page(), gpa(), any::<bool>(), any::<bool>())
            .prop_map(|(page, gpa, large, validate)| Step::Pvalidate { page, gpa, large, validate }),
        1 => (page(), gpa(), any::<u64>()).prop_map(|(page, gpa, rdx)| Step::Rmpadjust { page, gpa, rdx: rdx & 0x1_0f03 }),
        1 => Just(Step::WriteBack),
    ]
}

fn take(machine: &mut TestMachine, step: &Step) {
    let rmp = machine.setup.rmp.expect("there is one");
    let operand = |page: u64, gpa: u64, size| Operand { pa: page, gpa, mapping: size, size };
    let caller = Caller { asid: 2, vmpl: 0 };
    match step {
        Step::Command { command, words } => {
            machine.execute_words(Command::ALL[*command], words);
        }
        Step::Rmpupdate { page, state } => {
            rmp::rmpupdate(&rmp, &mut machine.memory, *page, RmpState::decode(*state));
        }
        Step::Psmash => {
            rmp::psmash(&rmp, &mut machine.memory, LARGE);
        }
        Step::Pvalidate { page, gpa, large, validate } => {
            let operand = operand(*page, *gpa, PageSize::of_bit(*large));
            let _ = rmp::pvalidate(&rmp, &mut machine.memory, caller, &operand, *validate);
        }
        Step::Rmpadjust { page, gpa, rdx } => {
            let operand = operand(*page, *gpa, PageSize::Size4K);
            let adjustment = rmp::Adjustment::decode(*rdx);
            let _ = rmp::rmpadjust(&rmp, &mut machine.memory, caller, &operand, adjustment);
        }
        Step::WriteBack => machine.psp.written_back(0),
    }
}

fn entry(machine: &mut TestMachine, rmp: &Rmp, pa: u64) -> Entry {
    rmp.lookup(&mut machine.memory, pa).expect("covered")
}

/// Whether the guest that owns a page can use it.
fn usable_by_its_guest(machine: &mut TestMachine, rmp: &Rmp, pa: u64) -> bool {
    let found = entry(machine, rmp, pa);
    let Some(owned) = found.state.owned().copied() else { return false };
    let gpa = owned.gpa + pa % found.size.bytes();
    let access =
        PrivateAccess { asid: owned.asid, vmpl: 0, gpa, mapping: found.size, kind: AccessKind::Read, user: false };
    rmp::check_private(rmp, &mut machine.memory, pa, &access).is_ok()
}

fn check(machine: &mut TestMachine) {
    let rmp = machine.setup.rmp.expect("there is one");
    let pages: Vec<u64> = SMALL.map(|frame| frame << 12).chain([LARGE, LARGE + 0x3000]).collect();
    for &pa in &pages {
        let writable = rmp::may_write_shared(&rmp, &mut machine.memory, pa, PageSize::Size4K);
        assert!(!(writable && usable_by_its_guest(machine, &rmp, pa)), "{pa:#x} is the host's and the guest's");
        let is_context = entry(machine, &rmp, pa).state == PageState::Context;
        let has_guest = machine.psp.snp.as_ref().is_some_and(|snp| snp.has_guest(pa));
        assert!(!has_guest || is_context, "the context page {pa:#x} of a guest is something else");
    }
    if machine.psp.snp_initialised() {
        let parts = rmp.parts(&mut machine.memory);
        for pa in parts.into_iter().flat_map(|(first, last)| [first, last & !0xFFF]) {
            assert_eq!(entry(machine, &rmp, pa).state, PageState::Firmware, "the RMP protects itself");
        }
    }
}

/// The bookkeeping of each ASID agrees with the entries.
fn check_counters(machine: &mut TestMachine) {
    let rmp = machine.setup.rmp.expect("there is one");
    let mut counts = [0; 8];
    for frame in 0..0x700 {
        let Some(large) = rmp.lookup(&mut machine.memory, frame << 12) else { break };
        if let Some(count) = large.state.owned().and_then(|owned| counts.get_mut(usize::from(owned.asid))) {
            *count += 1;
        }
    }
    for asid in 1..8 {
        assert_eq!(rmp.assigned_pages(&mut machine.memory, asid), counts[usize::from(asid)], "pages of ASID {asid}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_reaches_a_forbidden_state(steps in prop::collection::vec(step(), 1..120), snp in any::<bool>()) {
        let mut machine = if snp { TestMachine::with_snp() } else { TestMachine::new() };
        machine.setup.snp_enabled = true;
        for step in &steps {
            take(&mut machine, step);
            check(&mut machine);
        }
        check_counters(&mut machine);
    }

    #[test]
    fn no_buffer_of_a_command_panics(command in 0..Command::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 128)) {
        let mut machine = TestMachine::with_snp();
        machine.execute(Command::ALL[command], &bytes);
        let (psp, mut around) = machine.parts();
        psp.execute(&mut around, Command::ALL[command] as u16, u64::MAX - 3);
        psp.execute(&mut around, Command::ALL[command] as u16, BUFFER + 0xFFC);
    }
}
