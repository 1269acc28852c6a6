//! Which exits of a guest with encrypted registers happen by themselves, and which the guest has to ask for
//! (APM volume 2, 15.35.4 to 15.35.6 and table 15-35).

use privet_cpu::Exception;
use privet_cpu::vector;

use super::exit::{self, Exit};
use super::intercepts::Code;
use crate::{Rule, Rules};

/// Bit of a nested page fault: a reserved bit in the nested tables, which is how hypervisors mark devices.
const PF_RESERVED: u64 = 1 << 3;

/// What becomes of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It happens; RIP is where it is.
    Exits,
    /// It happens behind the instruction, because no hypervisor can move RIP.
    ExitsBehind,
    /// In its place the guest gets #VC, with the exit code as error code, and decides itself.
    Exception(Exception),
}

/// What becomes of an exit of a guest whose registers are encrypted.
pub(super) fn fate(exit: &Exit, rules: Rules) -> Fate {
    const MACHINE_CHECK: u64 = 0x52;
    const INTR: u64 = Code::INTR.number();
    const VINTR: u64 = Code::VINTR.number();
    const PAUSE: u64 = Code::PAUSE.number();
    const HLT: u64 = Code::HLT.number();
    const SHUTDOWN: u64 = Code::SHUTDOWN.number();
    const FIRST_TRAP: u64 = Code::EFER_WRITE_TRAP.number();
    const LAST_TRAP: u64 = FIRST_TRAP + 16;
    match exit.code {
        MACHINE_CHECK | INTR..=VINTR | SHUTDOWN | FIRST_TRAP..=LAST_TRAP => Fate::Exits,
        exit::VMGEXIT | PAUSE | HLT => Fate::ExitsBehind,
        exit::NPF if exit.info1 & PF_RESERVED == 0 || !rules.hold(Rule::VcForDevices) => Fate::Exits,
        code if code != exit::NPF && !rules.hold(Rule::VcForExits) => Fate::Exits,
        code => Fate::Exception(Exception::with_code(vector::VC, code as u32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_code(code: u64) -> Fate {
        fate(&Exit { code, info1: 0, info2: 0, next_rip: 0, with_bytes: false }, Rules::default())
    }

    /// Table 15-35.
    #[test]
    fn automatic_exits_are_those_of_the_table() {
        for code in [0x52, 0x60, 0x61, 0x62, 0x63, 0x64, 0x7f, 0x8f, 0x90, 0x94, 0x98, 0x9f, 0x400] {
            assert_eq!(of_code(code), Fate::Exits, "{code:#x}");
        }
        for code in [0x77, 0x78, 0x403] {
            assert_eq!(of_code(code), Fate::ExitsBehind, "{code:#x}");
        }
    }

    #[test]
    fn all_others_are_the_guests_to_ask_for() {
        for code in [0x27, 0x37, 0x41, 0x51, 0x6e, 0x6f, 0x72, 0x76, 0x7b, 0x7c, 0x81, 0x87, 0x89, 0x8a, 0x8b, 0x8d] {
            assert_eq!(of_code(code), Fate::Exception(Exception::with_code(29, code as u32)), "{code:#x}");
        }
    }

    #[test]
    fn a_nested_page_fault_on_a_device_is_the_guests_to_ask_for() {
        let mmio = Exit::nested_page_fault(0x1_0000_000f, 0xfee0_0000, 0);
        assert_eq!(fate(&mmio, Rules::default()), Fate::Exception(Exception::with_code(29, 0x400)));
    }
}
