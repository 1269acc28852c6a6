//! Stores that KVM keeps until userspace looks: a zone of coalesced MMIO or ports listens where there is no memory,
//! and only there.

use privet_harness::case::Case;
use privet_harness::coalesced::{Coalesced, CoalescedRing};
use privet_harness::exit::{Direction, Exit};
use privet_harness::guest::{Guest, MMIO_BASE};
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::uapi::Capability;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_protocol::{Op, Width};

use super::memory::{GAP, open_gap, ram_and_gap};
use super::{gva, read, write, write_op};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const RING: &str = "virt/kvm/coalesced_mmio.c: coalesced_mmio_write, coalesced_mmio_in_range";
const API: &str = "Documentation/virt/kvm/api.rst 4.116 KVM_(UN)REGISTER_COALESCED_MMIO";
const NO_SLOT: &str = "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault";

const VALUE: u64 = 0x8877_6655_4433_2211;

/// Where the zone begins, and its bytes.
const ZONE: Gpa = Gpa(MMIO_BASE.0 + 0x800);
const ZONE_LEN: u32 = 0x100;

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "mmio.coalesced",
            Types::ALL,
            "Stores of every width into a zone do not exit; the ring has them in their order with address, width and value. A \
             load from the zone exits, and so does every store once the zone is gone.",
            in_order,
        )
        .basis(&[RING, API])
        .exceeds("coalesced_io_test: test_coalesced_io"),
        Row::new(
            "mmio.coalesced.edges",
            Types::ALL,
            "A store that begins before the zone or ends after it exits; one that ends with it does not.",
            edges,
        )
        .basis(&[RING]),
        Row::new(
            "mmio.coalesced.full",
            Types::ALL,
            "A ring that is full takes no more: the store exits as if there were no zone. When userspace has taken the oldest \
             ones, stores go into the ring again.",
            full,
        )
        .basis(&[RING]),
        Row::new(
            "mmio.coalesced.under_a_slot",
            Types::UNENCRYPTED,
            "A slot over a zone is memory: its stores are in neither ring nor exit. When it is deleted the zone is there as \
             before.",
            under_a_slot,
        )
        .basis(&[RING, "arch/x86/kvm/x86.c: emulator_read_write_onepage, vcpu_mmio_write"]),
        Row::new(
            "mmio.coalesced.private",
            Types::UPM,
            "A private store into a zone is a KVM_EXIT_MEMORY_FAULT with the private flag, and not in the ring; once the page \
             is shared, the same store is.",
            private,
        )
        .basis(&[NO_SLOT, RING]),
        Row::new(
            "mmio.coalesced.port",
            Types::ALL,
            "An `out` to a port of a zone does not exit and is in the ring as one of a port; one to the next port exits.",
            port,
        )
        .basis(&[RING, "arch/x86/kvm/x86.c: emulator_pio_out"])
        .needs(Need::Capability(Capability::COALESCED_PIO, 1)),
    ];
    rows.into_iter().map(|row| row.needs(COALESCED)).collect()
}

/// The value is a page number, which is 2 on x86 (`KVM_COALESCED_MMIO_PAGE_OFFSET`).
const COALESCED: Need = Need::Capability(Capability::COALESCED_MMIO, 2);

fn stored(gpa: Gpa, width: Width) -> Coalesced {
    Coalesced { at: gpa.0, len: width.bytes() as u32, is_port: false, value: width.truncate(VALUE) }
}

/// The guest stores [`VALUE`], and the only exit is its doorbell.
fn store_without_exit(t: &Case, g: &Guest, gpa: Gpa, width: Width) -> Outcome {
    let exits = t.trace().exits();
    g.vcpu(0).call(write_op(gpa, width, VALUE))?;
    expect_no_exit_but(t, exits, 1)
}

fn expect_ring(ring: &CoalescedRing<'_>, expected: &[Coalesced]) -> Outcome {
    expect_eq("the ring", &ring.take()?.as_slice(), &expected)
}

fn in_order(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, ring) = (g.vcpu(0), g.vm().coalesced_ring(g.vcpu(0).kvm())?);
    g.vm().coalesce_mmio(ZONE, ZONE_LEN)?;
    let stores: Vec<(Gpa, Width)> = (0..).step_by(0x10).map(|offset| ZONE + offset).zip(Width::ALL).collect();
    for _ in 0..3 {
        for (gpa, width) in &stores {
            store_without_exit(t, &g, *gpa, *width)?;
        }
        expect_ring(&ring, &stores.iter().map(|(gpa, width)| stored(*gpa, *width)).collect::<Vec<_>>())?;
    }
    expect_eq("what a load from the zone gets", &read(v, ZONE, Width::B8, !VALUE)?, &!VALUE)?;
    g.vm().stop_coalescing_mmio(ZONE, ZONE_LEN)?;
    write(v, ZONE, Width::B8, VALUE)?;
    expect_ring(&ring, &[])
}

fn edges(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, ring) = (g.vcpu(0), g.vm().coalesced_ring(g.vcpu(0).kvm())?);
    g.vm().coalesce_mmio(ZONE, ZONE_LEN)?;
    let end = ZONE + u64::from(ZONE_LEN);
    for gpa in [Gpa(ZONE.0 - 1), Gpa(end.0 - 3), end] {
        write(v, gpa, Width::B4, VALUE)?;
    }
    expect_ring(&ring, &[])?;
    let last = Gpa(end.0 - 4);
    store_without_exit(t, &g, last, Width::B4)?;
    expect_ring(&ring, &[stored(last, Width::B4)])
}

fn full(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, ring) = (g.vcpu(0), g.vm().coalesced_ring(g.vcpu(0).kvm())?);
    g.vm().coalesce_mmio(ZONE, ZONE_LEN)?;
    for _ in 0..2 {
        for _ in 0..CoalescedRing::CAPACITY {
            store_without_exit(t, &g, ZONE, Width::B2)?;
        }
        for _ in 0..2 {
            write(v, ZONE, Width::B2, VALUE)?;
        }
        expect_ring(&ring, &vec![stored(ZONE, Width::B2); CoalescedRing::CAPACITY as usize])?;
    }
    Ok(())
}

fn under_a_slot(t: &Case) -> Outcome {
    let g = t.guest().range(ram_and_gap()).boot()?;
    let slot = g.range(0).slots()[1].clone();
    let g = open_gap(g)?;
    let ring = g.vm().coalesced_ring(g.vcpu(0).kvm())?;
    g.vm().coalesce_mmio(GAP, PAGE_SIZE as u32)?;
    for round in 0..3_u64 {
        store_without_exit(t, &g, GAP, Width::B8)?;
        expect_ring(&ring, &[stored(GAP, Width::B8)])?;
        g.vm().add_slot(slot.clone())?;
        let exits = t.trace().exits();
        g.vcpu(0).write(gva(GAP), Width::B8, round)?;
        expect_no_exit_but(t, exits, 1)?;
        expect_ring(&ring, &[])?;
        expect_eq("the word in memory", &g.range(0).host().read_u64(slot.mapping_offset)?, &round)?;
        g.vm().delete_slot(slot.slot)?;
    }
    Ok(())
}

fn private(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, ring) = (g.vcpu(0), g.vm().coalesced_ring(g.vcpu(0).kvm())?);
    g.vm().coalesce_mmio(ZONE, ZONE_LEN)?;
    g.vm().set_private(ZONE.page(), PageCount(1))?;
    let running = v.start(write_op(ZONE, Width::B4, VALUE))?;
    running.expect_exit(&Exit::memory_fault(ZONE.page(), true))?;
    expect_ring(&ring, &[])?;
    g.vm().set_shared(ZONE.page(), PageCount(1))?;
    running.resume()?;
    running.done()?;
    expect_ring(&ring, &[stored(ZONE, Width::B4)])
}

fn port(t: &Case) -> Outcome {
    const PORT: u16 = 0x510;
    let g = t.guest().boot()?;
    let (v, ring) = (g.vcpu(0), g.vm().coalesced_ring(g.vcpu(0).kvm())?);
    g.vm().coalesce_ports(PORT, 1)?;
    let out = |port: u16| Op::PortWrite { port: port.into(), width: Width::B1, value: VALUE };
    let exits = t.trace().exits();
    v.call(out(PORT))?;
    expect_no_exit_but(t, exits, 1)?;
    let running = v.start(out(PORT + 1))?;
    let data = vec![VALUE as u8];
    running.expect_exit(&Exit::Io { port: PORT + 1, direction: Direction::Out, size: 1, count: 1, data })?;
    running.resume()?;
    running.done()?;
    expect_ring(&ring, &[Coalesced { at: PORT.into(), len: 1, is_port: true, value: VALUE & 0xff }])
}
