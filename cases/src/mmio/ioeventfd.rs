//! Doorbells in MMIO that KVM answers itself. Once the page's MMIO SPTE is there, that takes no decoding either:
//! the reserved bit in the fault says that there is no memory, and the length of the store does not matter.

use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::uapi::Capability;
use privet_harness::units::Gpa;
use privet_harness::vendor::Vendor;
use privet_protocol::Width;

use super::cached::{add_elsewhere, caching};
use super::cost::{Cost, Meter};
use super::memory::{GAP, open_gap, ram_and_gap};
use super::{gva, write};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const FAST: &str = "arch/x86/kvm/svm/svm.c: npf_interception; vmx/vmx.c: handle_ept_misconfig: KVM_FAST_MMIO_BUS";
const SLOW: &str = "virt/kvm/eventfd.c: ioeventfd_write, kvm_assign_ioeventfd";

const NOTHING_AT_ALL: &str = "Stores to the address of an ioeventfd ring it and never exit. The first one is emulated \
                              and caches the page; later ones cost nothing at all, even after the slots have changed: \
                              KVM does not look at the SPTE's generation on this way.";
const NEXT_RIP: &str = "VMX always tells how long an instruction is, SVM where the CPU has next-RIP saving";

/// A store that the emulator decodes and an ioeventfd takes: nothing is left for userspace.
const EMULATED: Cost = Cost { mmio_exits: 0, ..Cost::CACHED };
/// The first one to a page.
const FIRST: Cost = Cost { mmio_exits: 0, ..Cost::FIRST };

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new("mmio.ioeventfd.ept", Types::ALL, NOTHING_AT_ALL, |t| rings(t, FIRST, Cost::NONE, Cost::NONE))
            .basis(&[FAST, SLOW])
            .needs(caching(true))
            .needs(Need::Vendor(Vendor::Intel, NEXT_RIP)),
        Row::new("mmio.ioeventfd.npt", Types::ALL, NOTHING_AT_ALL, |t| rings(t, FIRST, Cost::NONE, Cost::NONE))
            .basis(&[FAST, SLOW])
            .needs(caching(true))
            .needs(Need::Vendor(Vendor::Amd, NEXT_RIP))
            .needs(Need::Parameter("kvm_amd.nrips", "1")),
        Row::new(
            "mmio.ioeventfd.without_next_rip",
            Types::ALL,
            "On a CPU that does not tell where the next instruction is, stores to the address of an ioeventfd ring \
             it and never exit, but each of them is emulated, and looked into after the slots have changed.",
            |t| rings(t, FIRST, EMULATED, FIRST),
        )
        .basis(&[FAST, SLOW])
        .needs(caching(true))
        .needs(Need::Vendor(Vendor::Amd, NEXT_RIP))
        .needs(Need::Parameter("kvm_amd.nrips", "0")),
        Row::new(
            "mmio.ioeventfd.without_caching",
            Types::ALL,
            "Without caching, stores to the address of an ioeventfd ring it and never exit; each of them takes \
             the whole way through the fault handler and the emulator.",
            |t| {
                let uncached = Cost { mmio_exits: 0, ..Cost::UNCACHED };
                rings(t, uncached, uncached, uncached)
            },
        )
        .basis(&[SLOW])
        .needs(caching(false)),
    ];
    rows.into_iter().map(|row| row.needs(Need::Capability(Capability::IOEVENTFD, 1))).collect()
}

/// `first`, `later` and `after_change` are what a store costs: the first one, those after it, and the first one after
/// a change of the slots.
fn rings(t: &Case, first: Cost, later: Cost, after_change: Cost) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let (v, meter) = (g.vcpu(0), Meter::new(&g, 0)?);
    let doorbell = g.vm().add_ioeventfd(GAP)?;
    let ring = |what: &str, expected: Cost| {
        meter.expect(what, expected, || {
            let exits = t.trace().exits();
            v.write(gva(GAP), Width::B4, 0x1234_5678)?;
            expect_no_exit_but(t, exits, 1)
        })?;
        expect_eq(&format!("rings after {what}"), &doorbell.rings()?, &1)
    };
    ring("the first store", first)?;
    for _ in 0..3 {
        ring("a later store", later)?;
    }
    // Beside its address userspace is asked, and nothing rings.
    write(v, Gpa(GAP.0 + 4), Width::B4, 0x1234_5678)?;
    expect_eq("rings after a store beside it", &doorbell.rings()?, &0)?;
    add_elsewhere(&g)?;
    ring("the first store after a slot was added", after_change)?;
    ring("the second store after a slot was added", later)
}
