//! What KVM itself writes for a guest goes by the slot's host address, private or not.

use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::RangeSpec;
use privet_harness::units::PAGE_SIZE;
use privet_protocol::{Op, Pattern};

use crate::clocks::{SYSTEM_TIME, WALL_CLOCK};
use crate::expect::expect_that;
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const BY_ADDRESS: &str = "virt/kvm/kvm_main.c: __kvm_write_guest_page writes by userspace_addr";

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "access.written_by_kvm.wall_clock",
            Types::UPM,
            "The wall clock that the guest asks KVM for in a private page is written into the host's view of it; the private \
             page does not change.",
            |t| the_hosts_view(t, WALL_CLOCK, 0),
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_write_wall_clock", BY_ADDRESS]),
        Row::new(
            "access.written_by_kvm.system_time",
            Types::UPM,
            "The system time that KVM keeps for the guest in a private page is written into the host's view of it; the \
             private page does not change.",
            |t| the_hosts_view(t, SYSTEM_TIME, 1),
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_setup_guest_pvclock", "virt/kvm/pfncache.c: a cache of the host's address"]),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

fn the_hosts_view(t: &Case, msr: u32, switched_on: u64) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 1..2)?;
    v.fill(range.private_gva(1), 1, A, 1)?;
    range.host_fill(range.all(), B)?;
    v.call(Op::WriteMsr { msr, value: range.gpa(1).0 | switched_on })?;
    v.call(Op::Nop)?;
    v.expect(range.private_gva(1), 1, A, 1)?;
    range.host_expect(0..1, B)?;
    let first = range.host().read_u64(PAGE_SIZE)?;
    expect_that(first != B.word(1), || "the host's view is as the host left it: where has the clock gone?".into())
}
