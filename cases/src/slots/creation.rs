//! Slots that KVM refuses to make, and their neighbours that it makes.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::end_of_addresses;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::platform::ByType;
use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::{
    Capability, KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, MEM_GUEST_MEMFD, MEM_LOG_DIRTY_PAGES,
    MEM_READONLY, USER_MEM_SLOTS,
};
use privet_harness::units::PAGE_SIZE;

use super::parts::{FILE_SIZE, Parts, Region, SIZE, SLOT, aligned_down, bytes};
use crate::expect::{expect_eq, expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const CHECKS: &str = "virt/kvm/kvm_main.c: kvm_set_memory_region";
const FLAGS: &str = "virt/kvm/kvm_main.c: check_memory_region_flags";
const BIND: &str = "virt/kvm/guest_memfd.c: kvm_gmem_prepare_memory_region";
const UPSTREAM_FLAGS: &str = "set_memory_region_test: test_invalid_memory_region_flags";
const UPSTREAM_PRIVATE: &str = "set_memory_region_test: test_add_private_memory_region";

/// Rows without guests.
pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "slots.id_limit",
            Types::ALL,
            "Slot ids below KVM_CAP_NR_MEMSLOTS are for everybody, those above are EINVAL.",
            id_limit,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_ioctl_set_memory_region"])
        .upstream("set_memory_region_test: test_add_max_memory_regions"),
        Row::new(
            "slots.flags_of_the_older_ioctl",
            Types::VISIBLE_REGISTERS,
            "KVM_SET_USER_MEMORY_REGION knows LOG_DIRTY_PAGES and READONLY; GUEST_MEMFD and all else is EINVAL.",
            flags_of_the_older_ioctl,
        )
        .basis(&["virt/kvm/kvm_main.c: KVM_SET_USER_MEMORY_REGION_V1_FLAGS"])
        .upstream(UPSTREAM_FLAGS),
        Row::new(
            "slots.unknown_flags",
            Types::ALL,
            "Every flag that KVM does not know is EINVAL, those that it uses itself (bits 16 and 17) included.",
            unknown_flags,
        )
        .basis(&[FLAGS])
        .upstream(UPSTREAM_FLAGS),
        Row::new(
            "slots.guest_memfd_excludes_flags",
            Types::VISIBLE_REGISTERS,
            "A slot with a guest_memfd can be neither read-only nor dirty-logged: EINVAL; one without can be both.",
            guest_memfd_excludes_flags,
        )
        .basis(&[FLAGS, "guest_memfd fix: read-only slots (Fixes: a7800aa80ea4)"])
        .upstream(UPSTREAM_FLAGS),
        Row::new(
            "slots.read_only_is_refused",
            Types::ES_AND_SNP,
            "A VM whose guest's instructions KVM cannot emulate has no read-only slots: EINVAL, by either ioctl; with the \
             other flag alone the slot is made.",
            read_only_is_refused,
        )
        .basis(&["arch/x86/include/asm/kvm_host.h: kvm_arch_has_readonly_mem", FLAGS]),
        Row::new(
            "slots.unaligned",
            Types::ALL,
            "Size, GPA, host address and offset in the guest_memfd must be multiples of the page size: EINVAL.",
            unaligned,
        )
        .basis(&[CHECKS]),
        Row::new(
            "slots.host_address",
            Types::ALL,
            "The host address must be one that a program can have, up to the slot's end, where such addresses may end: \
             EINVAL. It need not be mapped.",
            host_address,
        )
        .basis(&[CHECKS]),
        Row::new(
            "slots.offset_extremes",
            Types::ALL,
            "Offsets into the guest_memfd that leave no room for the slot, wrap, or are negative as a signed \
             number are EINVAL; the last one that fits is accepted.",
            offset_extremes,
        )
        .basis(&[CHECKS, BIND])
        .fixed_since(
            (7, 2),
            "KVM: guest_memfd: Fix possible signed integer overflow (Fixes: a7800aa80ea4)",
            "offset 0x7fffffffffffc000: succeeded, expected EINVAL",
        )
        .exceeds("guest_memfd_test: test_invalid_binding"),
        Row::new(
            "slots.wrap_and_length",
            Types::ALL,
            "A range of GPAs that wraps and a slot of more than 2^31 - 1 pages are EINVAL.",
            wrap_and_length,
        )
        .basis(&[CHECKS]),
        Row::new(
            "slots.above_maxphyaddr",
            Types::ALL,
            "A slot that ends at the last GPA that the host's CPUs can address is accepted, one that reaches a \
             page further is EINVAL.",
            above_maxphyaddr,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_arch_prepare_memory_region, kvm_mmu_max_gfn"])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
        Row::new(
            "slots.delete_of_nothing",
            Types::ALL,
            "Deleting a slot that does not exist, or no longer, is EINVAL.",
            delete_of_nothing,
        )
        .basis(&[CHECKS])
        .upstream("set_memory_region_test: test_invalid_memory_region_flags"),
        Row::new(
            "slots.overlap",
            Types::ALL,
            "A slot that shares a GPA with another one is EEXIST, however they overlap; neighbours are fine.",
            overlap,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_check_memslot_overlap"]),
        Row::new(
            "slots.no_guest_memfd",
            Types::ALL,
            "A descriptor that is not open is EBADF; one of anything but a guest_memfd, or of another VM's, is \
             EINVAL.",
            no_guest_memfd,
        )
        .basis(&[BIND])
        .upstream(UPSTREAM_PRIVATE),
        Row::new(
            "slots.unchecked_fields",
            Types::ALL,
            "KVM ignores the padding, and all about the guest_memfd in a slot without the flag.",
            unchecked_fields,
        )
        .basis(&[CHECKS]),
        Row::new(
            "slots.unreadable_argument",
            Types::ALL,
            "An argument that cannot be read is EFAULT, of both ioctls.",
            unreadable_argument,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_ioctl, KVM_SET_USER_MEMORY_REGION2"]),
        Row::new(
            "slots.address_spaces",
            Types::ALL,
            "A VM without private memory has two address spaces, whose slots do not overlap each other; one with \
             private memory has a single one. Every other one is EINVAL.",
            address_spaces,
        )
        .basis(&["kvm_arch_nr_memslot_as_ids", CHECKS])
        .upstream(UPSTREAM_PRIVATE)
        .needs(Need::SystemCapability(Capability::MULTI_ADDRESS_SPACE, 2)),
    ]
}

fn id_limit(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let limit = parts.vm.check_extension(Capability::NR_MEMSLOTS) as u32;
    expect_eq("KVM_CAP_NR_MEMSLOTS", &limit, &USER_MEM_SLOTS)?;
    for slot in [limit, limit + 1, limit + 2, limit + 3, 0xffff] {
        parts.refuses(&format!("slot {slot}"), Region { slot, ..parts.region() }, Errno::EINVAL)?;
    }
    for slot in [0, limit - 1] {
        parts.accepts(&format!("slot {slot}"), Region { slot, ..parts.region() })?;
    }
    Ok(())
}

fn flags_of_the_older_ioctl(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    for bit in 2..32 {
        let flags = 1 << bit;
        let what = format!("flags {flags:#x} of KVM_SET_USER_MEMORY_REGION");
        expect_errno(&what, parts.set_v1(Region { flags, ..parts.region() }), Errno::EINVAL)?;
        expect_errno(&format!("deleting the slot after {what}"), parts.delete(SLOT), Errno::EINVAL)?;
    }
    for flags in [0, MEM_LOG_DIRTY_PAGES, MEM_READONLY, MEM_LOG_DIRTY_PAGES | MEM_READONLY] {
        let what = format!("flags {flags:#x} of KVM_SET_USER_MEMORY_REGION");
        expect_ok(&what, parts.set_v1(Region { flags, ..parts.region() }))?;
        expect_ok(&format!("deleting the slot after {what}"), parts.delete(SLOT))?;
    }
    Ok(())
}

fn unknown_flags(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    for bit in 3..32 {
        for known in [0, MEM_GUEST_MEMFD] {
            let flags = 1 << bit | known;
            parts.refuses(&format!("flags {flags:#x}"), Region { flags, ..parts.region() }, Errno::EINVAL)?;
        }
    }
    parts.accepts("the flag GUEST_MEMFD", parts.region())
}

fn guest_memfd_excludes_flags(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    for flags in [MEM_LOG_DIRTY_PAGES, MEM_READONLY, MEM_LOG_DIRTY_PAGES | MEM_READONLY] {
        let with_file = flags | MEM_GUEST_MEMFD;
        parts.refuses(
            &format!("flags {with_file:#x}"),
            Region { flags: with_file, ..parts.region() },
            Errno::EINVAL,
        )?;
        parts.accepts(&format!("flags {flags:#x}"), Region { flags, ..parts.region() })?;
    }
    parts.accepts("the flag GUEST_MEMFD", parts.region())
}

fn read_only_is_refused(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    for flags in [MEM_READONLY, MEM_READONLY | MEM_LOG_DIRTY_PAGES] {
        let region = Region { flags, ..parts.shared_region() };
        parts.refuses(&format!("flags {flags:#x}"), region, Errno::EINVAL)?;
        expect_errno("the older ioctl", parts.set_v1(region), Errno::EINVAL)?;
    }
    parts.accepts("the flag LOG_DIRTY_PAGES", Region { flags: MEM_LOG_DIRTY_PAGES, ..parts.shared_region() })
}

fn unaligned(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let good = parts.region();
    for off in [1, 8, PAGE_SIZE / 2, PAGE_SIZE - 1] {
        for (what, region) in [
            ("size", Region { memory_size: good.memory_size + off, ..good }),
            ("GPA", Region { guest_phys_addr: good.guest_phys_addr + off, ..good }),
            ("host address", Region { userspace_addr: good.userspace_addr + off, ..good }),
            ("offset", Region { guest_memfd_offset: off, ..good }),
        ] {
            parts.refuses(&format!("a {what} that is {off:#x} too large"), region, Errno::EINVAL)?;
        }
    }
    parts.accepts("all of it aligned", good)
}

fn host_address(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    // The last page before the middle of the address space is not a program's even with five-level paging.
    let end_of_lower_half = 1 << 63;
    for userspace_addr in [
        end_of_lower_half - SIZE,
        end_of_lower_half,
        0xffff_8000_0000_0000,
        0_u64.wrapping_sub(SIZE),
        0_u64.wrapping_sub(PAGE_SIZE),
    ] {
        let what = format!("host address {userspace_addr:#x}");
        for region in [parts.region(), parts.shared_region()] {
            parts.refuses(&what, Region { userspace_addr, ..region }, Errno::EINVAL)?;
        }
    }
    let last = end_of_addresses() - SIZE;
    let too_high = Region { userspace_addr: last + PAGE_SIZE, ..parts.region() };
    parts.refuses("a slot that ends a page behind a program's addresses", too_high, Errno::EINVAL)?;
    for userspace_addr in [0, PAGE_SIZE, last] {
        let what = format!("host address {userspace_addr:#x}, where nothing is mapped");
        parts.accepts(&what, Region { userspace_addr, ..parts.region() })?;
    }
    Ok(())
}

fn offset_extremes(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let at = |guest_memfd_offset| Region { guest_memfd_offset, ..parts.region() };
    for offset in [
        FILE_SIZE - SIZE + PAGE_SIZE,
        FILE_SIZE - PAGE_SIZE,
        FILE_SIZE,
        1 << 40,
        aligned_down(i64::MAX as u64) - SIZE + PAGE_SIZE,
        aligned_down(i64::MAX as u64),
        1 << 63,
        (1 << 63) + PAGE_SIZE,
        0_u64.wrapping_sub(SIZE + PAGE_SIZE),
        0_u64.wrapping_sub(SIZE),
        0_u64.wrapping_sub(PAGE_SIZE),
    ] {
        parts.refuses(&format!("offset {offset:#x}"), at(offset), Errno::EINVAL)?;
    }
    let too_long = Region { memory_size: FILE_SIZE + PAGE_SIZE, userspace_addr: 0, ..parts.region() };
    parts.refuses("a slot that is longer than the file", too_long, Errno::EINVAL)?;
    for offset in [0, PAGE_SIZE, FILE_SIZE - SIZE] {
        parts.accepts(&format!("offset {offset:#x}"), at(offset))?;
    }
    parts.accepts("a slot over all of the file", Region { memory_size: FILE_SIZE, ..parts.region() })
}

fn wrap_and_length(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    for (what, guest_phys_addr, memory_size) in [
        ("the last GPAs of all", 0_u64.wrapping_sub(SIZE), SIZE),
        ("GPAs over the end", 0_u64.wrapping_sub(PAGE_SIZE), SIZE),
        ("GPAs over the end up to the start", TEST_BASE.0, 0_u64.wrapping_sub(TEST_BASE.0)),
        ("2^31 pages", 0, bytes(1 << 31)),
        ("2^31 pages and one more", 0, bytes((1 << 31) + 1)),
        ("2^32 pages", 0, bytes(1 << 32)),
    ] {
        let region = Region { guest_phys_addr, memory_size, userspace_addr: 0, ..parts.shared_region() };
        parts.refuses(what, region, Errno::EINVAL)?;
    }
    parts.accepts("an ordinary range", parts.region())?;
    // Nothing has to be mapped in the host there. With attributes KVM looks at all huge pages, which takes seconds.
    if t.platform().has_private_memory() {
        return Ok(());
    }
    let longest = Region { memory_size: bytes((1 << 31) - 1), userspace_addr: PAGE_SIZE, ..parts.shared_region() };
    if longest.guest_phys_addr + longest.memory_size > end_of_gpas(t)? {
        return parts.refuses("2^31 - 1 pages, more than the host's CPUs can address", longest, Errno::EINVAL);
    }
    parts.accepts("2^31 - 1 pages", longest)
}

/// The first GPA that the host's CPUs cannot address.
fn end_of_gpas(t: &Case) -> Outcome<u64> {
    let leaf = t.host().supported_cpuid()?.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
    match leaf {
        Some(leaf) => Ok(1 << (leaf.eax & 0xff)),
        None => Err(Stop::Error("KVM_GET_SUPPORTED_CPUID has no leaf 0x80000008".into())),
    }
}

fn above_maxphyaddr(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let end = end_of_gpas(t)?;
    for region in [parts.region(), parts.shared_region()] {
        let at = |guest_phys_addr| Region { guest_phys_addr, ..region };
        for gpa in [end - SIZE + PAGE_SIZE, end - PAGE_SIZE, end, 1 << 52, 1 << 63] {
            parts.refuses(&format!("a slot at gpa {gpa:#x}"), at(gpa), Errno::EINVAL)?;
        }
        parts.accepts("a slot that ends at the last GPA", at(end - SIZE))?;
    }
    Ok(())
}

fn delete_of_nothing(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    expect_errno("deleting a slot that never was", parts.delete(SLOT), Errno::EINVAL)?;
    expect_ok("making a slot", parts.set(parts.region()))?;
    expect_errno("deleting another slot", parts.delete(SLOT + 1), Errno::EINVAL)?;
    expect_ok("deleting it", parts.delete(SLOT))?;
    expect_errno("deleting it again", parts.delete(SLOT), Errno::EINVAL)?;
    expect_errno(
        "deleting it by the older ioctl",
        parts.set_v1(Region { slot: SLOT, ..Default::default() }),
        Errno::EINVAL,
    )
}

fn overlap(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let middle = Region { userspace_addr: 0, ..parts.shared_region() };
    expect_ok("a slot in the middle", parts.set(middle))?;
    let base = TEST_BASE.0;
    let other =
        |guest_phys_addr, memory_size| Region { slot: SLOT + 1, guest_phys_addr, memory_size, ..parts.region() };
    for (what, region) in [
        ("the same range", other(base, SIZE)),
        ("its first page", other(base, PAGE_SIZE)),
        ("its last page", other(base + SIZE - PAGE_SIZE, PAGE_SIZE)),
        ("a page in it", other(base + PAGE_SIZE, PAGE_SIZE)),
        ("a range over its start", other(base - PAGE_SIZE, 2 * PAGE_SIZE)),
        ("a range over its end", other(base + SIZE - PAGE_SIZE, 2 * PAGE_SIZE)),
        ("a range around it", other(base - PAGE_SIZE, SIZE + 2 * PAGE_SIZE)),
    ] {
        parts.refuses(what, region, Errno::EEXIST)?;
        parts.refuses(&format!("{what}, without a guest_memfd"), Region { flags: 0, ..region }, Errno::EEXIST)?;
    }
    parts.accepts("the pages before it", other(base - SIZE, SIZE))?;
    parts.accepts("the pages after it", other(base + SIZE, SIZE))
}

fn no_guest_memfd(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let with = |fd: RawFd| Region { guest_memfd: fd as u32, ..parts.region() };
    let closed = parts.vm.create_guest_memfd(FILE_SIZE, 0)?.fd();
    for fd in [-1, i32::MAX, 1 << 20, closed] {
        parts.refuses(&format!("descriptor {fd}, which is not open"), with(fd), Errno::EBADF)?;
    }
    let null = File::open("/dev/null").map_err(|error| Stop::Error(format!("cannot open /dev/null: {error}")))?;
    let other_vm = t.vm()?;
    let other_file = other_vm.create_guest_memfd(FILE_SIZE, 0)?;
    for (what, fd) in [
        ("/dev/null as guest_memfd", null.as_raw_fd()),
        ("the VM as guest_memfd", parts.vm.kvm().as_raw_fd()),
        ("the guest_memfd of another VM", other_file.fd()),
    ] {
        parts.refuses(what, with(fd), Errno::EINVAL)?;
    }
    parts.accepts("a guest_memfd", parts.region())
}

fn unchecked_fields(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let padded = Region { pad1: u32::MAX, pad2: [u64::MAX; 14], ..parts.region() };
    parts.accepts("padding that is not zero", padded)?;
    let unused = Region { guest_memfd: u32::MAX, guest_memfd_offset: 1, ..parts.shared_region() };
    parts.accepts("no descriptor and an unaligned offset without the flag", unused)?;
    let wrapping = Region { guest_memfd_offset: u64::MAX, ..parts.shared_region() };
    parts.accepts("an offset that wraps without the flag", wrapping)
}

fn unreadable_argument(t: &Case) -> Outcome {
    let vm = t.vm()?;
    for (what, ioctl) in [
        ("KVM_SET_USER_MEMORY_REGION", KVM_SET_USER_MEMORY_REGION),
        ("KVM_SET_USER_MEMORY_REGION2", KVM_SET_USER_MEMORY_REGION2),
    ] {
        expect_errno(&format!("{what} at address 0"), vm.ioctl_raw(ioctl, 0), Errno::EFAULT)?;
    }
    Ok(())
}

fn in_space(space: u32) -> u32 {
    space << 16 | SLOT
}

fn address_spaces(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let spaces = t.by_type(ByType { plain: 2, upm: 1, sev: 2, sev_es: 2, snp: 1, tdx: 1 });
    let said = parts.vm.check_extension(Capability::MULTI_ADDRESS_SPACE);
    expect_eq("KVM_CAP_MULTI_ADDRESS_SPACE", &said, &spaces)?;
    for space in [1, 2, 3, 0x7fff, 0xffff].into_iter().filter(|space| *space >= spaces as u32) {
        for region in [parts.region(), parts.shared_region()] {
            let region = Region { slot: in_space(space), ..region };
            parts.refuses(&format!("address space {space}"), region, Errno::EINVAL)?;
        }
    }
    expect_ok("a slot in address space 0", parts.set(parts.region()))?;
    for space in 1..spaces as u32 {
        let other = Region { slot: in_space(space), guest_memfd_offset: SIZE, ..parts.region() };
        parts.accepts(&format!("a slot of the same id at the same GPA in address space {space}"), other)?;
    }
    Ok(())
}
