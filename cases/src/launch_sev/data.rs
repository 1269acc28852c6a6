//! LAUNCH_UPDATE_DATA: what is encrypted where it is.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::{Access, Mapping};
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory};
use privet_harness::units::PAGE_SIZE;

use super::vm::{SevVm, bytes_of};
use crate::expect::{expect_done, expect_eq, expect_refused_by_firmware, expect_refused_by_kvm, expect_that};
use crate::row::Row;
use crate::types::Types;

const UPDATE: &str = "arch/x86/kvm/svm/sev.c: sev_launch_update_data, sev_pin_memory";
const FIRMWARE: &str = "SEV API, LAUNCH_UPDATE_DATA";

const PAGE: u32 = PAGE_SIZE as u32;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.update.before_start",
            Types::SEV_AND_ES,
            "Before LAUNCH_START no command reaches the firmware: KVM knows no descriptor of it, EBADF; memory stays as \
             it is.",
            before_start,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_issue_cmd"]),
        Row::new(
            "launch.update.after_measure",
            Types::SEV_AND_ES,
            "After LAUNCH_MEASURE, and after LAUNCH_FINISH, LAUNCH_UPDATE_DATA is INVALID_GUEST_STATE, and memory stays \
             as it is.",
            after_measure,
        )
        .basis(&[FIRMWARE]),
        Row::new(
            "launch.update.alignment",
            Types::SEV_AND_ES,
            "16 bytes at a multiple of 16 are encrypted, and not a byte around them; another address is INVALID_ADDRESS, \
             another length INVALID_LEN.",
            alignment,
        )
        .basis(&[FIRMWARE, UPDATE, "drivers/crypto/ccp/sev-dev.c: snp_map_cmd_buf_desc"])
        .open_bug(
            "with SNP initialized, bytes over two pages that lie one behind the other in the host's memory are given to the \
             firmware as if they were in the first alone",
            "32 bytes over two pages: KVM_SEV_LAUNCH_UPDATE_DATA: EIO, firmware INVALID_PAGE_STATE",
        ),
        Row::new(
            "launch.update.refused",
            Types::SEV_AND_ES,
            "No bytes, and bytes around the end of the address space, are EINVAL; what is not mapped, or cannot be \
             accessed, is ENOMEM. The firmware is not asked.",
            refused,
        )
        .basis(&[UPDATE]),
        Row::new(
            "launch.update.all_or_nothing_is_pinned",
            Types::SEV_AND_ES,
            "Of bytes that reach out of their mapping none is encrypted: ENOMEM, and the content is what it was.",
            all_or_nothing,
        )
        .basis(&[UPDATE]),
        Row::new(
            "launch.update.in_place",
            Types::SEV_AND_ES,
            "What was encrypted is ciphertext in the host's view, the same plaintext at two addresses gives two \
             ciphertexts, and each page decrypts to what it was, however many lie together in memory.",
            in_place,
        )
        .basis(&[UPDATE, FIRMWARE])
        .upstream("x86/sev_dbg_test: test_sev_dbg"),
        Row::new(
            "launch.update.twice",
            Types::SEV_AND_ES,
            "Bytes that were encrypted are encrypted once more if they are given again: decrypted once they are the \
             ciphertext of the first time.",
            twice,
        )
        .basis(&[FIRMWARE]),
    ]
}

/// A pattern that differs by page.
fn content(pages: u64) -> Vec<u8> {
    (0..pages * PAGE_SIZE).map(|at| (at * 11 + at / PAGE_SIZE) as u8).collect()
}

fn filled(pages: u64) -> Outcome<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE_SIZE)?;
    memory.write(0, &content(pages))?;
    Ok(memory)
}

fn expect_content(what: &str, memory: &Mapping, expected: &[u8]) -> Outcome {
    let seen = bytes_of(memory, 0, expected.len())?;
    let first = seen.iter().zip(expected).position(|(seen, expected)| seen != expected);
    expect_eq(&format!("the first byte of {what} that is not as expected"), &first, &None)
}

fn before_start(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let memory = filled(1)?;
    let (place, commands) = (Memory::In(&memory, 0), sev.commands());
    let refused = |what: &str, result| expect_refused_by_kvm(what, result, Errno::EBADF);
    refused("LAUNCH_UPDATE_DATA", commands.launch_update_data(place, PAGE))?;
    refused("LAUNCH_MEASURE", commands.launch_measure(place, 48).0)?;
    refused("LAUNCH_FINISH", commands.launch_finish())?;
    refused("GUEST_STATUS", commands.guest_status().map(drop))?;
    refused("DBG_DECRYPT", commands.dbg_decrypt(place, place, 16))?;
    refused("DBG_ENCRYPT", commands.dbg_encrypt(place, place, 16))?;
    expect_content("memory that was not encrypted", &memory, &content(1))?;
    expect_done("LAUNCH_START", sev.start())?;
    expect_done("LAUNCH_UPDATE_DATA", commands.launch_update_data(place, PAGE))
}

fn after_measure(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let memory = filled(1)?;
    let refused = |when: &str| {
        let result = sev.commands().launch_update_data(Memory::In(&memory, 0), PAGE);
        expect_refused_by_firmware(&format!("LAUNCH_UPDATE_DATA after {when}"), result, Firmware::INVALID_GUEST_STATE)
    };
    sev.measure()?;
    refused("LAUNCH_MEASURE")?;
    expect_done("LAUNCH_FINISH", sev.commands().launch_finish())?;
    refused("LAUNCH_FINISH")?;
    expect_content("memory that was not encrypted", &memory, &content(1))
}

fn alignment(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let memory = filled(2)?;
    let update = |offset, len| sev.commands().launch_update_data(Memory::In(&memory, offset), len);
    for (offset, len, status) in [
        (1, 16, Firmware::INVALID_ADDRESS),
        (8, 16, Firmware::INVALID_ADDRESS),
        (15, PAGE, Firmware::INVALID_ADDRESS),
        (0, 1, Firmware::INVALID_LEN),
        (0, 15, Firmware::INVALID_LEN),
        (16, 24, Firmware::INVALID_LEN),
        (0, PAGE - 8, Firmware::INVALID_LEN),
    ] {
        expect_refused_by_firmware(&format!("{len:#x} bytes from {offset:#x} on"), update(offset, len), status)?;
    }
    expect_content("memory that was not encrypted", &memory, &content(2))?;
    // Over the end of the first page, behind which the second one may lie in the host's memory, too, or not.
    let (start, len) = (PAGE_SIZE as usize - 16, 32);
    expect_done("32 bytes over two pages", update(start as u64, len as u32))?;
    let (before, seen) = (content(2), bytes_of(&memory, 0, 2 * PAGE_SIZE as usize)?);
    expect_eq("whether the bytes before are as they were", &(seen[..start] == before[..start]), &true)?;
    expect_eq("whether the bytes after are as they were", &(seen[start + len..] == before[start + len..]), &true)?;
    let (blocks, _) = seen[start..start + len].as_chunks::<16>();
    let (plain, _) = before[start..start + len].as_chunks::<16>();
    expect_that(blocks.iter().zip(plain).all(|(seen, plain)| seen != plain), || "a block is not encrypted".to_owned())
}

fn refused(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let (memory, closed) = (filled(1)?, filled(1)?);
    closed.protect(false)?;
    for (what, place, len, errno) in [
        ("no bytes", Memory::In(&memory, 0), 0, Errno::EINVAL),
        ("around the end", Memory::Nowhere(u64::MAX - 0xfff), 2 * PAGE, Errno::EINVAL),
        ("what is not mapped", Memory::Nowhere(0x1000), PAGE, Errno::ENOMEM),
        ("the kernel's half", Memory::Nowhere(0xffff_8000_0000_0000), PAGE, Errno::ENOMEM),
        ("what cannot be accessed", Memory::In(&closed, 0), PAGE, Errno::ENOMEM),
    ] {
        expect_refused_by_kvm(what, sev.commands().launch_update_data(place, len), errno)?;
    }
    closed.protect(true)?;
    expect_content("memory that was not encrypted", &closed, &content(1))
}

fn all_or_nothing(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let memory = filled(4)?;
    memory.set_access(3 * PAGE_SIZE, PAGE_SIZE, Access::None)?;
    let result = sev.commands().launch_update_data(Memory::In(&memory, 0), 4 * PAGE);
    expect_refused_by_kvm("four pages, of which the last cannot be accessed", result, Errno::ENOMEM)?;
    expect_content("the other three", &memory, &content(3))?;
    expect_done("the other three", sev.commands().launch_update_data(Memory::In(&memory, 0), 3 * PAGE))
}

fn in_place(t: &Case) -> Outcome {
    const PAGES: u64 = 16;
    let sev = SevVm::started(t)?;
    let memory = Mapping::anonymous(PAGES * PAGE_SIZE)?;
    let page: Vec<u8> = content(1);
    // Every other page is touched first, so that neighbours in the mapping are none in memory.
    for at in (0..PAGES).step_by(2).chain((1..PAGES).step_by(2)) {
        memory.write(at * PAGE_SIZE, &page)?;
    }
    expect_done("LAUNCH_UPDATE_DATA", sev.commands().launch_update_data(Memory::In(&memory, 0), PAGES as u32 * PAGE))?;
    let seen = bytes_of(&memory, 0, (PAGES * PAGE_SIZE) as usize)?;
    let blocks: std::collections::BTreeSet<&[u8]> = seen.chunks(16).collect();
    expect_eq("how many blocks of ciphertext differ", &blocks.len(), &(seen.len() / 16))?;
    expect_that(seen.chunks(16).all(|block| !page.chunks(16).any(|plain| plain == block)), || {
        "a block of plaintext is seen".to_owned()
    })?;
    let plain = Mapping::anonymous(PAGES * PAGE_SIZE)?;
    let (from, to) = (Memory::In(&memory, 0), Memory::In(&plain, 0));
    expect_done("DBG_DECRYPT", sev.commands().dbg_decrypt(from, to, PAGES as u32 * PAGE))?;
    expect_content("what was decrypted", &plain, &page.repeat(PAGES as usize))
}

fn twice(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let (memory, plain) = (filled(1)?, Mapping::anonymous(PAGE_SIZE)?);
    let update = || sev.commands().launch_update_data(Memory::In(&memory, 0), PAGE);
    let decrypt = || sev.commands().dbg_decrypt(Memory::In(&memory, 0), Memory::In(&plain, 0), PAGE);
    expect_done("LAUNCH_UPDATE_DATA", update())?;
    let once = bytes_of(&memory, 0, PAGE_SIZE as usize)?;
    expect_done("LAUNCH_UPDATE_DATA again", update())?;
    expect_done("DBG_DECRYPT", decrypt())?;
    expect_content("what was encrypted twice and decrypted once", &plain, &once)
}
