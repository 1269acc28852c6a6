//! Rows in a machine that is rewound for each are the same as in one that was restored for it: to the last instruction,
//! register and byte of memory. Without a kernel in the cache (`privet rig build`) this is ignored.

mod saved;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use privet_kernel::Kernel;
use privet_sim::{Machine, Rewindable, Turns};
use saved::{perform, snapshot};

/// One with a guest on two vCPUs, one that ends early, one whose guest's memory is encrypted.
const ROWS: [&str; 3] =
    ["upm.convert.explicit.4k_at_0.v2.s2", "plain.slots.delete_of_nothing", "snp.access.shared_write_is_visible"];

fn main() -> ExitCode {
    let missing = Kernel::cached().is_err();
    let test = Trial::test("a_row_in_a_rewound_machine_is_the_row_in_a_restored_one", || {
        equal();
        Ok::<(), Failed>(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test.with_ignored_flag(missing)]).exit_code()
}

fn equal() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = snapshot(cache.path());
    let fresh = ROWS.map(|row| what_becomes(&mut Machine::restore(&snapshot).unwrap(), row));
    let mut again = Rewindable::restore(&snapshot).unwrap();
    for row in [0, 1, 2, 0, 2, 1] {
        assert_eq!(what_becomes(&mut again.machine, ROWS[row]), fresh[row], "{}", ROWS[row]);
        again.rewind().unwrap();
    }
}

/// What becomes of a machine that runs a row under short turns: its instructions, its clock, all that it is, and what its
/// guest has said.
fn what_becomes(machine: &mut Machine, row: &str) -> (u64, Duration, u128, Vec<u8>) {
    machine.reseed(7, Turns::Short);
    let said = perform(machine, row);
    (machine.instructions(), machine.now(), machine.digest(), said)
}
