//! Changes of slots that exist.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{RangeSpec, TEST_BASE};
use privet_harness::uapi::{MEM_GUEST_MEMFD, MEM_LOG_DIRTY_PAGES, MEM_READONLY};
use privet_harness::units::PAGE_SIZE;
use privet_protocol::Pattern;

use super::parts::{Parts, Region, SIZE, SLOT};
use crate::expect::{expect_errno, expect_no_exit_but, expect_ok};
use crate::row::Row;
use crate::types::Types;

const CHECKS: &str = "virt/kvm/kvm_main.c: kvm_set_memory_region";

/// Rows without guests.
pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "slots.change_with_guest_memfd",
            Types::ALL,
            "A slot with a guest_memfd cannot be changed at all: not moved, resized, rebound, flagged, nor \
             repeated as it is, and the flag cannot be taken away: EINVAL. It can be deleted, also by a region that names \
             its guest_memfd.",
            change_with_guest_memfd,
        )
        .basis(&[CHECKS, "commit 9935df5333aa: clearing KVM_MEM_GUEST_MEMFD left the binding behind"])
        .upstream("set_memory_region_test: test_invalid_memory_region_flags"),
        Row::new(
            "slots.change_without_guest_memfd",
            Types::VISIBLE_REGISTERS,
            "A slot without a guest_memfd can be moved, dirty-logged and repeated as it is; another host address \
             or size, READONLY and GUEST_MEMFD are EINVAL.",
            change_without_guest_memfd,
        )
        .basis(&[CHECKS]),
        Row::new(
            "slots.move",
            Types::ALL,
            "A slot moves where no other slot is: EEXIST where one is, EINVAL where no CPU reaches; refused, it \
             stays where it was.",
            moves,
        )
        .basis(&[CHECKS, "virt/kvm/kvm_main.c: kvm_check_memslot_overlap"])
        .upstream("set_memory_region_test: test_move_memory_region"),
    ]
}

/// Rows with guests.
pub(super) fn guest_rows() -> Vec<Row> {
    vec![
        Row::new(
            "slots.refused_changes_leave_the_guest_alone",
            Types::UPM,
            "Every refused change of a slot with a guest_memfd leaves its private and shared content to the \
             guest, and the guest does not exit.",
            refused_changes_leave_the_guest_alone,
        )
        .basis(&[CHECKS, "commit 9935df5333aa: clearing KVM_MEM_GUEST_MEMFD left the binding behind"]),
    ]
}

/// All that can be asked of a slot with a guest_memfd that is as `good`, `other` being a second file.
fn changes_with_guest_memfd(good: Region, other_file: u32) -> [(&'static str, Region); 9] {
    [
        ("the same again", good),
        ("no guest_memfd", Region { flags: 0, ..good }),
        ("no guest_memfd but a dirty log", Region { flags: MEM_LOG_DIRTY_PAGES, ..good }),
        ("READONLY instead of GUEST_MEMFD", Region { flags: MEM_READONLY, ..good }),
        ("a dirty log", Region { flags: MEM_GUEST_MEMFD | MEM_LOG_DIRTY_PAGES, ..good }),
        ("another GPA", Region { guest_phys_addr: good.guest_phys_addr + good.memory_size, ..good }),
        ("another size", Region { memory_size: good.memory_size - PAGE_SIZE, ..good }),
        ("another offset", Region { guest_memfd_offset: PAGE_SIZE, ..good }),
        ("another file", Region { guest_memfd: other_file, ..good }),
    ]
}

fn change_with_guest_memfd(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let other_file = parts.vm.create_guest_memfd(SIZE * 2, 0)?;
    expect_ok("making the slot", parts.set(parts.region()))?;
    for (what, region) in changes_with_guest_memfd(parts.region(), other_file.fd() as u32) {
        parts.refuses_change(what, region, Errno::EINVAL)?;
    }
    let other_address = Region { userspace_addr: parts.mapping.addr() + SIZE, ..parts.region() };
    parts.refuses_change("another host address", other_address, Errno::EINVAL)?;
    let by_the_older_ioctl = parts.set_v1(parts.shared_region());
    expect_errno("no guest_memfd, by the older ioctl", by_the_older_ioctl, Errno::EINVAL)?;
    expect_ok("deleting it", parts.delete(SLOT))?;
    expect_ok("making it again", parts.set(parts.region()))?;
    expect_ok("no pages of it any more", parts.set(Region { memory_size: 0, ..parts.region() }))?;
    parts.accepts("the same without a guest_memfd, once it was deleted", parts.shared_region())
}

fn change_without_guest_memfd(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let good = parts.shared_region();
    expect_ok("making the slot", parts.set(good))?;
    for (what, region) in [
        ("another host address", Region { userspace_addr: good.userspace_addr + PAGE_SIZE, ..good }),
        ("a smaller size", Region { memory_size: SIZE - PAGE_SIZE, ..good }),
        ("a larger size", Region { memory_size: SIZE + PAGE_SIZE, ..good }),
        ("READONLY", Region { flags: MEM_READONLY, ..good }),
        ("GUEST_MEMFD", parts.region()),
        ("GUEST_MEMFD at another GPA", Region { guest_phys_addr: good.guest_phys_addr + SIZE, ..parts.region() }),
    ] {
        parts.refuses_change(what, region, Errno::EINVAL)?;
    }
    for (what, region) in [
        ("the same again", good),
        ("a dirty log", Region { flags: MEM_LOG_DIRTY_PAGES, ..good }),
        ("no dirty log any more", good),
        ("another GPA", Region { guest_phys_addr: good.guest_phys_addr + SIZE, ..good }),
        ("the first GPA again", good),
    ] {
        expect_ok(what, parts.set(region))?;
    }
    expect_ok("deleting it", parts.delete(SLOT))?;
    let read_only = Region { flags: MEM_READONLY, ..good };
    expect_ok("making a read-only slot", parts.set(read_only))?;
    parts.refuses_change("taking READONLY away", good, Errno::EINVAL)?;
    expect_ok("deleting it", parts.delete(SLOT))
}

fn moves(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let good = parts.shared_region();
    let base = TEST_BASE.0;
    let neighbour = Region { slot: SLOT + 1, guest_phys_addr: base + 4 * SIZE, ..parts.region() };
    expect_ok("making the slot", parts.set(good))?;
    expect_ok("making its neighbour", parts.set(neighbour))?;
    let to = |guest_phys_addr| Region { guest_phys_addr, ..good };
    for (what, gpa, errno) in [
        ("onto its neighbour", base + 4 * SIZE, Errno::EEXIST),
        ("over the start of its neighbour", base + 3 * SIZE + PAGE_SIZE, Errno::EEXIST),
        ("over the end of its neighbour", base + 5 * SIZE - PAGE_SIZE, Errno::EEXIST),
        ("to an unaligned GPA", base + 8, Errno::EINVAL),
        ("to where no CPU reaches", 1 << 52, Errno::EINVAL),
        ("over the end of all GPAs", 0_u64.wrapping_sub(PAGE_SIZE), Errno::EINVAL),
    ] {
        parts.refuses_change(&format!("moving {what}"), to(gpa), errno)?;
        // It is where it was: its GPAs are taken.
        parts.refuses("its first page", Region { slot: SLOT + 2, memory_size: PAGE_SIZE, ..good }, Errno::EEXIST)?;
    }
    expect_ok("moving by one page", parts.set(to(base + PAGE_SIZE)))?;
    parts.accepts("the page that became free", Region { slot: SLOT + 2, memory_size: PAGE_SIZE, ..good })?;
    expect_ok("moving next to its neighbour", parts.set(to(base + 3 * SIZE)))
}

fn refused_changes_leave_the_guest_alone(t: &Case) -> Outcome {
    const A: Pattern = Pattern(0xaa);
    const B: Pattern = Pattern(0xbb);
    let g = t.guest().range(RangeSpec::new(4)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    range.set_private(g.vm(), 0..2)?;
    v.fill(range.shared_gva(0), 2, B, 0)?;
    let other_file = g.vm().create_guest_memfd(4 * PAGE_SIZE, 0)?;
    let exits = t.trace().exits();
    let changes = changes_with_guest_memfd(range.slots()[0].region(), other_file.fd() as u32);
    let asked = changes.len() as u64;
    for (what, region) in changes {
        let refused = g.vm().set_user_memory_region2_raw(&region, Some(range.host()));
        expect_errno(what, refused, Errno::EINVAL)?;
        v.expect(range.shared_gva(0), 2, B, 0)?;
        v.expect(range.shared_gva(2), 2, A, 2)?;
    }
    range.host_expect(range.all(), A)?;
    expect_no_exit_but(t, exits, 2 * asked)
}
