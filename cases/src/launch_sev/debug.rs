//! DBG_DECRYPT and DBG_ENCRYPT.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory, SevPolicy};
use privet_harness::units::PAGE_SIZE;

use super::vm::{SevVm, bytes_of};
use crate::expect::{expect_done, expect_eq, expect_refused_by_firmware, expect_refused_by_kvm};
use crate::random::Random;
use crate::row::Row;
use crate::types::Types;

const DEBUG: &str = "arch/x86/kvm/svm/sev.c: sev_dbg_crypt";
const SLOW: &str = "arch/x86/kvm/svm/sev.c: sev_dbg_decrypt_slow, sev_dbg_encrypt_slow";

const PAGES: u64 = 3;
const BYTES: usize = (PAGES * PAGE_SIZE) as usize;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.debug.decrypt",
            Types::SEV_AND_ES,
            "Any bytes of a guest, aligned or not, over pages or not, decrypt to what was encrypted, to any place, and \
             not a byte beside it is written; before and after the end of the launch.",
            decrypt,
        )
        .basis(&[DEBUG, SLOW])
        .exceeds("x86/sev_dbg_test: test_sev_dbg"),
        Row::new(
            "launch.debug.encrypt",
            Types::SEV_AND_ES,
            "Any bytes can be written into a guest's memory: they, and none of their neighbours, are different when all \
             of it is decrypted.",
            encrypt,
        )
        .basis(&[DEBUG, SLOW])
        .exceeds("x86/sev_dbg_test: test_sev_dbg"),
        Row::new(
            "launch.debug.denied",
            Types::SEV_AND_ES,
            "The policy forbids it: POLICY_FAILURE at any alignment and in any state, and neither side changes.",
            denied,
        )
        .basis(&["SEV API, 2.1 and DBG_DECRYPT"]),
        Row::new(
            "launch.debug.refused",
            Types::SEV_AND_ES,
            "No bytes, no address, and bytes around the end of the address space are EINVAL, what is not mapped is \
             ENOMEM. The firmware is not asked.",
            refused,
        )
        .basis(&[DEBUG]),
    ]
}

/// A guest with [`PAGES`] encrypted pages of random bytes.
struct Encrypted {
    sev: SevVm,
    memory: Mapping,
    plain: Vec<u8>,
}

impl Encrypted {
    fn new(t: &Case, policy: SevPolicy) -> Outcome<Encrypted> {
        let sev = SevVm::initialized(t)?;
        expect_done("LAUNCH_START", sev.commands().launch_start(0, sev.policy() | policy, None))?;
        let memory = Mapping::anonymous(PAGES * PAGE_SIZE)?;
        let mut random = Random::new(t.seed());
        let plain: Vec<u8> = (0..BYTES).map(|_| random.below(256) as u8).collect();
        memory.write(0, &plain)?;
        expect_done("LAUNCH_UPDATE_DATA", sev.commands().launch_update_data(Memory::In(&memory, 0), BYTES as u32))?;
        Ok(Encrypted { sev, memory, plain })
    }

    fn decrypted(&self) -> Outcome<Vec<u8>> {
        let to = Mapping::anonymous(PAGES * PAGE_SIZE)?;
        let result = self.sev.commands().dbg_decrypt(Memory::In(&self.memory, 0), Memory::In(&to, 0), BYTES as u32);
        expect_done("DBG_DECRYPT of all", result)?;
        bytes_of(&to, 0, BYTES)
    }
}

/// Offset here, offset there, length: aligned and not, inside blocks and over blocks, inside pages and over pages.
fn places() -> Vec<(usize, usize, usize)> {
    const P: usize = PAGE_SIZE as usize;
    let mut places =
        vec![(0, 0, 2 * P), (0, 16, 16), (P - 16, 16, 32), (16, P - 16, 32), (P - 1, P - 1, 2), (5, 5, 2 * P)];
    for from in [0, 1, 8, 15, P - 9] {
        for to in [0, 3, 15, P - 7] {
            places.extend([1, 7, 16, 17, 40].map(|len| (from, to, len)));
        }
    }
    places
}

fn decrypt(t: &Case) -> Outcome {
    let guest = Encrypted::new(t, SevPolicy::NONE)?;
    let check = || {
        for (from, to, len) in places() {
            let target = Mapping::anonymous(PAGES * PAGE_SIZE)?;
            target.fill(0, target.len(), 0xaa)?;
            let (source, place) = (Memory::In(&guest.memory, from as u64), Memory::In(&target, to as u64));
            let what = format!("{len} bytes from {from:#x} to {to:#x}");
            expect_done(&what, guest.sev.commands().dbg_decrypt(source, place, len as u32))?;
            let mut expected = vec![0xaa; BYTES];
            expected[to..to + len].copy_from_slice(&guest.plain[from..from + len]);
            let seen = bytes_of(&target, 0, BYTES)?;
            let first = seen.iter().zip(&expected).position(|(seen, expected)| seen != expected);
            expect_eq(&format!("{what}: the first byte that is not as expected"), &first, &None)?;
        }
        Ok(())
    };
    check()?;
    guest.sev.finish()?;
    check()
}

fn encrypt(t: &Case) -> Outcome {
    let guest = Encrypted::new(t, SevPolicy::NONE)?;
    let mut expected = guest.plain.clone();
    let source = Mapping::anonymous(PAGES * PAGE_SIZE)?;
    let news: Vec<u8> = guest.plain.iter().map(|byte| byte ^ 0x5a).collect();
    source.write(0, &news)?;
    for (round, (from, to, len)) in places().into_iter().enumerate() {
        let (place, target) = (Memory::In(&source, from as u64), Memory::In(&guest.memory, to as u64));
        let what = format!("{len} bytes from {from:#x} to {to:#x} (round {round})");
        expect_done(&what, guest.sev.commands().dbg_encrypt(place, target, len as u32))?;
        expected[to..to + len].copy_from_slice(&news[from..from + len]);
        let first = guest.decrypted()?.iter().zip(&expected).position(|(seen, expected)| seen != expected);
        expect_eq(&format!("{what}: the first byte that is not as expected"), &first, &None)?;
    }
    Ok(())
}

fn denied(t: &Case) -> Outcome {
    let guest = Encrypted::new(t, SevPolicy::NO_DEBUG)?;
    let cipher = bytes_of(&guest.memory, 0, BYTES)?;
    let target = Mapping::anonymous(PAGE_SIZE)?;
    let check = |when: &str| {
        for (from, len) in [(0, 4096), (1, 7), (16, 16)] {
            let (inside, outside) = (Memory::In(&guest.memory, from), Memory::In(&target, 0));
            let status = Firmware::POLICY_FAILURE;
            let what = format!("DBG_DECRYPT of {len} bytes {when}");
            expect_refused_by_firmware(&what, guest.sev.commands().dbg_decrypt(inside, outside, len), status)?;
            let what = format!("DBG_ENCRYPT of {len} bytes {when}");
            expect_refused_by_firmware(&what, guest.sev.commands().dbg_encrypt(outside, inside, len), status)?;
        }
        expect_eq("what was written for the host", &target.first_other_than(0, PAGE_SIZE, 0)?, &None)?;
        let is_as_before = bytes_of(&guest.memory, 0, BYTES)? == cipher;
        expect_eq("whether the ciphertext is as before", &is_as_before, &true)
    };
    check("during the launch")?;
    guest.sev.finish()?;
    check("after the launch")
}

fn refused(t: &Case) -> Outcome {
    let guest = Encrypted::new(t, SevPolicy::NONE)?;
    let inside = Memory::In(&guest.memory, 0);
    let (around, nowhere) = (Memory::Nowhere(u64::MAX - 7), Memory::Nowhere(0x1000));
    for (what, from, to, len, errno) in [
        ("no bytes", inside, inside, 0, Errno::EINVAL),
        ("no source", Memory::NONE, inside, 16, Errno::EINVAL),
        ("no target", inside, Memory::NONE, 16, Errno::EINVAL),
        ("a source around the end", around, inside, 16, Errno::EINVAL),
        ("a target around the end", inside, around, 16, Errno::EINVAL),
        ("a source that is not mapped", nowhere, inside, 16, Errno::ENOMEM),
        ("a target that is not mapped", inside, nowhere, 16, Errno::ENOMEM),
    ] {
        let commands = guest.sev.commands();
        expect_refused_by_kvm(&format!("DBG_DECRYPT: {what}"), commands.dbg_decrypt(from, to, len), errno)?;
        expect_refused_by_kvm(&format!("DBG_ENCRYPT: {what}"), commands.dbg_encrypt(from, to, len), errno)?;
    }
    expect_eq("whether the content is as before", &(guest.decrypted()? == guest.plain), &true)
}
