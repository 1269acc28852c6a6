//! Doorbells in MMIO that KVM answers itself. Once the page's MMIO SPTE is there, that takes no decoding either:
//! the reserved bit in the fault says that there is no memory, and the length of the store does not matter.

use privet_harness::case::Case;
use privet_harness::exit::{Direction, Exit};
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::uapi::Capability;
use privet_harness::units::{Gpa, PageCount};
use privet_harness::vendor::Vendor;
use privet_protocol::{Op, Width};

use super::cached::add_elsewhere;
use super::cost::{Cost, Meter};
use super::memory::{GAP, open_gap, ram_and_gap};
use super::wide::{HIGH, LOW, store_function};
use super::{caching, gva, take_write, write};
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
        Row::new("mmio.ioeventfd.ept", Types::VISIBLE_REGISTERS, NOTHING_AT_ALL, |t| rings(t, FIRST, Cost::NONE, Cost::NONE))
            .basis(&[FAST, SLOW])
            .needs(caching(true))
            .needs(Need::Vendor(Vendor::Intel, NEXT_RIP)),
        Row::new("mmio.ioeventfd.npt", Types::VISIBLE_REGISTERS, NOTHING_AT_ALL, |t| rings(t, FIRST, Cost::NONE, Cost::NONE))
            .basis(&[FAST, SLOW])
            .needs(caching(true))
            .needs(Need::Vendor(Vendor::Amd, NEXT_RIP))
            .needs(Need::Parameter("kvm_amd.nrips", "1"))
            .needs(Need::KernelSince((7, 0), "before it, kvm_amd emulates each of them")),
        Row::new(
            "mmio.ioeventfd.without_next_rip",
            Types::VISIBLE_REGISTERS,
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
            Types::VISIBLE_REGISTERS,
            "Without caching, stores to the address of an ioeventfd ring it and never exit; each of them takes \
             the whole way through the fault handler and the emulator.",
            |t| {
                let uncached = Cost { mmio_exits: 0, ..Cost::UNCACHED };
                rings(t, uncached, uncached, uncached)
            },
        )
        .basis(&[SLOW])
        .needs(caching(false)),
        Row::new(
            "mmio.ioeventfd.straddled",
            Types::UNENCRYPTED,
            "A store of 16 bytes over the edge of a page, with an ioeventfd for its 8 bytes after the edge, is an exit for \
             the 4 bytes before, a ring, and an exit for the 4 bytes after.",
            straddled,
        )
        .risky()
        .basis(&["arch/x86/kvm/x86.c: emulator_read_write, vcpu_mmio_write", SLOW])
        .needs(Need::KernelSince((7, 1), "a part that a device takes in the middle can crash the kernel")),
        Row::new(
            "mmio.ioeventfd.port",
            Types::WITH_SHARED_CODE,
            "An `out` of the value that an ioeventfd at its port wants rings and does not exit; another value, and the \
             same one to the next port, is an exit.",
            port,
        )
        .basis(&["arch/x86/kvm/x86.c: emulator_pio_out, kernel_pio", SLOW]),
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

fn straddled(t: &Case) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let (v, code) = (g.vcpu(0), g.range(0).private_gva(1));
    v.write_bytes(code, &store_function())?;
    let edge = GAP + PageCount(1);
    let middle = LOW >> 32 | HIGH << 32;
    let doorbell = g.vm().add_ioeventfd_for(edge, middle)?;
    for _ in 0..3 {
        let running = v.start(Op::Execute { gva: code.0, argument: gva(edge).0 - 4 })?;
        take_write(&running, Gpa(edge.0 - 4), 4, LOW & 0xffff_ffff)?;
        take_write(&running, edge + 8, 4, HIGH >> 32)?;
        running.done()?;
        expect_eq("rings", &doorbell.rings()?, &1)?;
    }
    Ok(())
}

/// `mov edx, edi; mov eax, edi; shr eax, 16; out dx, al; ret`
const OUT: [u8; 9] = [0x89, 0xfa, 0x89, 0xf8, 0xc1, 0xe8, 0x10, 0xee, 0xc3];

fn port(t: &Case) -> Outcome {
    const PORT: u16 = 0x510;
    const VALUE: u8 = 0x5a;
    let g = t.guest().range(super::memory::ram(1)).boot()?;
    let (v, code) = (g.vcpu(0), g.range(0).private_gva(0));
    v.write_bytes(code, &OUT)?;
    let doorbell = g.vm().add_port_ioeventfd_for(PORT, VALUE)?;
    let out =
        |port: u16, value: u8| v.start(Op::Execute { gva: code.0, argument: u64::from(value) << 16 | u64::from(port) });
    let exits = t.trace().exits();
    out(PORT, VALUE)?.done()?;
    expect_no_exit_but(t, exits, 1)?;
    expect_eq("rings", &doorbell.rings()?, &1)?;
    for (port, value) in [(PORT, VALUE + 1), (PORT + 1, VALUE)] {
        let running = out(port, value)?;
        running.expect_exit(&Exit::Io { port, direction: Direction::Out, size: 1, count: 1, data: vec![value] })?;
        running.resume()?;
        running.done()?;
    }
    expect_eq("rings after other stores", &doorbell.rings()?, &0)
}
