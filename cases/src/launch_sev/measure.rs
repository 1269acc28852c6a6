//! LAUNCH_MEASURE, LAUNCH_SECRET, LAUNCH_FINISH and the states between them.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::{Access, Mapping};
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory, Refused, Secret};
use privet_harness::units::PAGE_SIZE;

use super::vm::{SevVm, bytes_of};
use crate::expect::{expect_done, expect_eq, expect_refused_by_firmware, expect_refused_by_kvm, expect_that};
use crate::row::Row;
use crate::types::Types;

const MEASURE: &str = "arch/x86/kvm/svm/sev.c: sev_launch_measure";
const SECRET: &str = "arch/x86/kvm/svm/sev.c: sev_launch_secret";
const STATES: &str = "SEV API, guest state machine";

/// A MAC of 32 bytes and a nonce of 16.
const LENGTH: u32 = 48;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.measure.states",
            Types::SEV_AND_ES,
            "LAUNCH_START, LAUNCH_MEASURE and LAUNCH_FINISH lead from state to state; each of them out of its state is \
             INVALID_GUEST_STATE and changes nothing.",
            states,
        )
        .basis(&[STATES])
        .exceeds("x86/sev_smoke_test: guest_sev_code"),
        Row::new(
            "launch.measure.length",
            Types::SEV_AND_ES,
            "LAUNCH_MEASURE with length 0 is INVALID_LEN and tells the length, 48; with one that is too small, or with \
             no address, it is INVALID_LEN and tells nothing; more than 0x4000 is EINVAL. Afterwards the guest can be \
             measured.",
            length,
        )
        .basis(&[MEASURE, "SEV API, LAUNCH_MEASURE"]),
        Row::new(
            "launch.measure.rest_is_zero",
            Types::SEV_AND_ES,
            "A buffer that is longer than the measurement gets zeroes behind it, up to the length that was asked for \
             and not beyond; the length that comes back is the measurement's.",
            rest_is_zero,
        )
        .basis(&[MEASURE, "drivers/crypto/ccp/sev-dev.c: snp_map_cmd_buf_desc, where SNP is initialized"])
        .open_bug(
            "the bounce buffer of a legacy command is not cleared: the rest of it, old kernel memory, goes to user space",
            "what is not zero behind the measurement: saw Some",
        ),
        Row::new(
            "launch.measure.unwritable",
            Types::SEV_AND_ES,
            "A measurement that cannot be written is EFAULT; the firmware has measured all the same: another one is \
             INVALID_GUEST_STATE, and the launch can be finished.",
            unwritable,
        )
        .basis(&[MEASURE, STATES]),
        Row::new(
            "launch.measure.at_the_end_of_memory",
            Types::SEV_AND_ES,
            "LAUNCH_MEASURE writes as many bytes as it says and not one more: behind them there need not be memory.",
            at_the_end_of_memory,
        )
        .basis(&[MEASURE]),
        Row::new(
            "launch.measure.fresh_nonce",
            Types::SEV_AND_ES,
            "Two launches of the same content have two nonces and two MACs.",
            fresh_nonce,
        )
        .basis(&["SEV API, LAUNCH_MEASURE"]),
        Row::new(
            "launch.secret.refused_by_kvm",
            Types::SEV_AND_ES,
            "LAUNCH_SECRET looks at the guest's memory first (EINVAL of no bytes, ENOMEM of what is not mapped), then at \
             the packet, then at its header: each of 1 to 0x4000 bytes, EINVAL otherwise, EFAULT if it cannot be read.",
            secret_refused,
        )
        .basis(&[SECRET, "drivers/crypto/ccp/sev-dev.c: psp_copy_user_blob"]),
    ]
}

fn expect_state(sev: &SevVm, state: u32) -> Outcome {
    expect_eq("the state", &expect_done("GUEST_STATUS", sev.commands().guest_status())?.state, &state)
}

fn out_of_place(what: &str, result: Result<(), Refused>) -> Outcome {
    expect_refused_by_firmware(what, result, Firmware::INVALID_GUEST_STATE)
}

fn states(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let blob = Mapping::anonymous(PAGE_SIZE)?;
    let measure = || sev.commands().launch_measure(Memory::In(&blob, 0), LENGTH).0;
    expect_state(&sev, 1)?;
    out_of_place("LAUNCH_FINISH before LAUNCH_MEASURE", sev.commands().launch_finish())?;
    expect_state(&sev, 1)?;
    expect_done("LAUNCH_MEASURE", measure())?;
    expect_state(&sev, 2)?;
    out_of_place("LAUNCH_MEASURE again", measure())?;
    expect_state(&sev, 2)?;
    expect_done("LAUNCH_FINISH", sev.commands().launch_finish())?;
    expect_state(&sev, 3)?;
    out_of_place("LAUNCH_FINISH again", sev.commands().launch_finish())?;
    out_of_place("LAUNCH_MEASURE after LAUNCH_FINISH", measure())?;
    expect_state(&sev, 3)
}

fn length(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let blob = Mapping::anonymous(8 * PAGE_SIZE)?;
    let into = Memory::In(&blob, 0);
    for (what, into) in [("with an address", into), ("without an address", Memory::NONE)] {
        let (result, told) = sev.commands().launch_measure(into, 0);
        expect_refused_by_firmware(&format!("length 0 {what}"), result, Firmware::INVALID_LEN)?;
        expect_eq("the length that is told", &told, &LENGTH)?;
    }
    for (what, into, len) in [("one byte", into, 1), ("47 bytes", into, LENGTH - 1), ("nowhere", Memory::NONE, LENGTH)]
    {
        let (result, told) = sev.commands().launch_measure(into, len);
        expect_refused_by_firmware(what, result, Firmware::INVALID_LEN)?;
        expect_eq("the length that is left", &told, &len)?;
    }
    for len in [0x4001, 0x8000] {
        let (result, _) = sev.commands().launch_measure(into, len);
        expect_refused_by_kvm(&format!("{len:#x} bytes"), result, Errno::EINVAL)?;
    }
    expect_eq("bytes that were written", &blob.first_other_than(0, blob.len(), 0)?, &None)?;
    sev.finish()
}

fn rest_is_zero(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let blob = Mapping::anonymous(PAGE_SIZE)?;
    blob.fill(0, PAGE_SIZE, 0xaa)?;
    let (result, told) = sev.commands().launch_measure(Memory::In(&blob, 0), 256);
    expect_done("LAUNCH_MEASURE into 256 bytes", result)?;
    expect_eq("the length", &told, &LENGTH)?;
    expect_eq("what is not zero behind the measurement", &blob.first_other_than(48, 256 - 48, 0)?, &None)?;
    expect_eq("what was written beyond", &blob.first_other_than(256, PAGE_SIZE - 256, 0xaa)?, &None)?;
    let measurement = bytes_of(&blob, 0, LENGTH as usize)?;
    expect_that(measurement.iter().any(|byte| *byte != 0xaa), || "there is no measurement".to_owned())
}

fn unwritable(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let (result, _) = sev.commands().launch_measure(Memory::Nowhere(0x1000), LENGTH);
    // The firmware was asked, and has said yes.
    crate::expect::expect_refused("LAUNCH_MEASURE into nothing", result, Errno::EFAULT, Firmware::SUCCESS)?;
    expect_state(&sev, 2)?;
    let blob = Mapping::anonymous(PAGE_SIZE)?;
    out_of_place("LAUNCH_MEASURE again", sev.commands().launch_measure(Memory::In(&blob, 0), LENGTH).0)?;
    expect_done("LAUNCH_FINISH", sev.commands().launch_finish())
}

fn at_the_end_of_memory(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let blob = Mapping::anonymous(2 * PAGE_SIZE)?;
    blob.set_access(PAGE_SIZE, PAGE_SIZE, Access::None)?;
    let into = Memory::In(&blob, PAGE_SIZE - u64::from(LENGTH));
    expect_done("LAUNCH_MEASURE", sev.commands().launch_measure(into, LENGTH).0)
}

fn fresh_nonce(t: &Case) -> Outcome {
    let measured = || {
        let sev = SevVm::started(t)?;
        let memory = Mapping::anonymous(PAGE_SIZE)?;
        let update = sev.commands().launch_update_data(Memory::In(&memory, 0), PAGE_SIZE as u32);
        expect_done("LAUNCH_UPDATE_DATA", update)?;
        sev.measure()
    };
    let (first, second) = (measured()?, measured()?);
    expect_that(first[..32] != second[..32], || "two launches have the same MAC".to_owned())?;
    expect_that(first[32..] != second[32..], || "two launches have the same nonce".to_owned())
}

fn secret_refused(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    sev.measure()?;
    let memory = Mapping::anonymous(8 * PAGE_SIZE)?;
    let good = (Memory::In(&memory, 0), 64);
    let bytes = |len| (Memory::In(&memory, 0), len);
    let nowhere = (Memory::Nowhere(0x1000), 64);
    for (what, header, guest, transport, errno) in [
        ("no bytes of the guest", bytes(0), bytes(0), bytes(0), Errno::EINVAL),
        ("what is not mapped for the guest", bytes(0), nowhere, bytes(0), Errno::ENOMEM),
        ("no packet", nowhere, good, bytes(0), Errno::EINVAL),
        ("too long a packet", nowhere, good, bytes(0x4001), Errno::EINVAL),
        ("a packet nowhere", bytes(0), good, nowhere, Errno::EFAULT),
        ("no address of a packet", good, good, (Memory::NONE, 64), Errno::EINVAL),
        ("no header", bytes(0), good, good, Errno::EINVAL),
        ("too long a header", bytes(0x4001), good, good, Errno::EINVAL),
        ("a header nowhere", nowhere, good, good, Errno::EFAULT),
        ("no address of a header", (Memory::NONE, 64), good, good, Errno::EINVAL),
    ] {
        let result = sev.commands().launch_secret(Secret { header, guest, transport });
        expect_refused_by_kvm(what, result, errno)?;
    }
    expect_eq("bytes that were written", &memory.first_other_than(0, memory.len(), 0)?, &None)?;
    expect_done("LAUNCH_FINISH", sev.commands().launch_finish())
}
