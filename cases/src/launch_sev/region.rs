//! KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION: memory that stays where it is.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::Memory;
use privet_harness::units::PAGE_SIZE;

use super::vm::SevVm;
use crate::expect::{expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const REGISTER: &str = "arch/x86/kvm/svm/sev.c: sev_mem_enc_register_region, sev_pin_memory";
const UNREGISTER: &str = "arch/x86/kvm/svm/sev.c: sev_mem_enc_unregister_region, find_enc_region";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.region.any_bytes",
            Types::SEV_FAMILY,
            "Any bytes that are mapped can be registered, aligned or not, some more than once; before LAUNCH_START, too.",
            any_bytes,
        )
        .basis(&[REGISTER]),
        Row::new(
            "launch.region.refused",
            Types::SEV_FAMILY,
            "No bytes, and bytes around the end of the address space, are EINVAL; what is not mapped, or cannot be \
             accessed, is ENOMEM, if it is the last page alone, too.",
            refused,
        )
        .basis(&[REGISTER]),
        Row::new(
            "launch.region.ends_as_it_began",
            Types::SEV_FAMILY,
            "UNREG_REGION takes the address and the size of a REG_REGION, as often as that was given; anything else is \
             EINVAL.",
            ends_as_it_began,
        )
        .basis(&[UNREGISTER]),
    ]
}

fn any_bytes(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let memory = Mapping::anonymous(4 * PAGE_SIZE)?;
    for (offset, bytes) in
        [(0, 4 * PAGE_SIZE), (1, 1), (PAGE_SIZE - 1, 2), (PAGE_SIZE + 8, 2 * PAGE_SIZE), (0, 1), (0, 1)]
    {
        let region = sev.commands().register_region(Memory::In(&memory, offset), bytes);
        expect_ok(&format!("{bytes:#x} bytes from {offset:#x} on"), region)?;
    }
    memory.write(0, b"still the host's")
}

fn refused(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let (memory, closed) = (Mapping::anonymous(2 * PAGE_SIZE)?, Mapping::anonymous(2 * PAGE_SIZE)?);
    closed.protect(false)?;
    for (what, place, bytes, errno) in [
        ("no bytes", Memory::In(&memory, 0), 0, Errno::EINVAL),
        ("no bytes nowhere", Memory::NONE, 0, Errno::EINVAL),
        ("around the end", Memory::Nowhere(u64::MAX - 0xfff), 2 * PAGE_SIZE, Errno::EINVAL),
        ("all addresses but one", Memory::Nowhere(1), u64::MAX, Errno::EINVAL),
        ("more pages than are counted", Memory::Nowhere(0x1000), 1 << 43, Errno::EINVAL),
        ("what is not mapped", Memory::Nowhere(0x1000), PAGE_SIZE, Errno::ENOMEM),
        ("the kernel's half", Memory::Nowhere(0xffff_8000_0000_0000), PAGE_SIZE, Errno::ENOMEM),
        ("what cannot be accessed", Memory::In(&closed, 0), PAGE_SIZE, Errno::ENOMEM),
    ] {
        expect_errno(what, sev.commands().register_region(place, bytes), errno)?;
        expect_errno(&format!("the end of {what}"), sev.commands().unregister_region(place, bytes), Errno::EINVAL)?;
    }
    Ok(())
}

fn ends_as_it_began(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let memory = Mapping::anonymous(4 * PAGE_SIZE)?;
    let at = |offset| Memory::In(&memory, offset);
    let twice = 2;
    for _ in 0..twice {
        expect_ok("REG_REGION", sev.commands().register_region(at(PAGE_SIZE), 2 * PAGE_SIZE))?;
    }
    for (offset, bytes) in [
        (0, 2 * PAGE_SIZE),
        (PAGE_SIZE, PAGE_SIZE),
        (PAGE_SIZE, 2 * PAGE_SIZE - 1),
        (PAGE_SIZE + 1, 2 * PAGE_SIZE),
        (2 * PAGE_SIZE, PAGE_SIZE),
    ] {
        let what = format!("the end of {bytes:#x} bytes from {offset:#x} on");
        expect_errno(&what, sev.commands().unregister_region(at(offset), bytes), Errno::EINVAL)?;
    }
    for _ in 0..twice {
        expect_ok("UNREG_REGION", sev.commands().unregister_region(at(PAGE_SIZE), 2 * PAGE_SIZE))?;
    }
    let more = sev.commands().unregister_region(at(PAGE_SIZE), 2 * PAGE_SIZE);
    expect_errno("UNREG_REGION once more", more, Errno::EINVAL)
}
