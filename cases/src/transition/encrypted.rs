//! The same of guests whose page tables say what is private: P and Q follow each other in one mapping, as in Linux's
//! direct map, and the entry of Q changes between those of its two aliases.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::RangeSpec;
use privet_harness::units::Gva;
use privet_protocol::{Op, Order, Sharing};

use super::{
    IN_P, P, PRIVATE, Q, ROUND_TRIPS, SHARED, answer, ask, content, expect_harmless, expect_loads, hammer,
    host_converts, other, set_present,
};
use crate::accept::NOT_VALIDATED;
use crate::convert::told_of_refusal;
use crate::expect::{expect_eq, expect_that};
use crate::row::Row;
use crate::types::Types;

const LINUX: &[&str] = &[super::ZEROPAD, "arch/x86/mm/pat/set_memory.c: __set_memory_enc_pgtable"];
const MISMATCH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn compares the access with the attribute";
const RMP: &str = "APM volume 2, 15.36.10: a private access to a page that is not validated is #VC";

pub(super) fn rows() -> Vec<Row> {
    use Sharing::{Private, Shared};
    let mut rows = vec![
        Row::new(
            "transition.direct_map.hammered",
            Types::SNP,
            "One vCPU strays into Q all the time while another converts it to private and back 35 times in Linux's order: it \
             sees what is shared, what is private or padding, and no other fault or exit.",
            hammered,
        )
        .basis(LINUX),
        Row::new(
            "transition.direct_map.private_too_early",
            Types::SNP,
            "Q's entry is private before the host has made Q so: a stray load is a KVM_EXIT_MEMORY_FAULT with the flag \
             PRIVATE; once the host has, it is #VC until Q is validated.",
            private_too_early,
        )
        .basis(&[super::ZEROPAD, MISMATCH, RMP]),
        Row::new(
            "transition.direct_map.private_too_long",
            Types::SNP,
            "Q's entry is private still while Q is given back: once it is rescinded a stray load is #VC, and once the host has \
             made it shared a KVM_EXIT_MEMORY_FAULT with the flag PRIVATE.",
            private_too_long,
        )
        .basis(&[super::ZEROPAD, MISMATCH, RMP]),
    ];
    for (name, to) in [("to_private", Private), ("to_shared", Shared)] {
        rows.extend([
            Row::new(
                format!("transition.direct_map.{name}"),
                Types::ENCRYPTED,
                "Linux's order: Q is not present from before the host is asked until its entry is the other one. Stray loads of \
                 another vCPU see the old content before and the new one afterwards, and are padded at each step between.",
                move |t| in_linux_order(t, to),
            )
            .basis(LINUX),
            Row::new(
                format!("transition.direct_map.refused.{name}"),
                Types::SEV_FAMILY,
                "The host refuses: the guest makes Q present again as it was, and stray loads see the old content.",
                move |t| refused(t, to),
            )
            .basis(LINUX),
        ]);
    }
    rows
}

/// P and Q in one mapping, and the entries that Q has in its aliases.
struct DirectMap {
    g: Guest,
    private: u64,
    shared: u64,
}

impl DirectMap {
    /// P is private and holds [`IN_P`]; Q is as `sharing` says, and holds what [`content`] says.
    fn new(t: &Case, sharing: Sharing) -> Outcome<DirectMap> {
        let g = t.guest().vcpus(2).range(RangeSpec::new(2).backing(t.platform().backing())).boot()?;
        let (v, range) = (g.vcpu(0), g.range(0));
        range.host_fill(range.all(), SHARED)?;
        g.make_private(0, P..P + 1)?;
        v.fill(range.private_gva(P), 1, IN_P, P)?;
        let of_p = v.read_entry(range.private_gva(P))?;
        v.write_entry(range.shared_gva(P), of_p)?;
        let (private, shared) = (v.read_entry(range.private_gva(Q))?, v.read_entry(range.shared_gva(Q))?);
        let map = DirectMap { g, private, shared };
        if sharing == Sharing::Private {
            map.g.make_private(0, Q..Q + 1)?;
            map.fill(sharing)?;
            map.show(sharing)?;
        }
        Ok(map)
    }

    /// Where Q is in the mapping.
    fn q(&self) -> Gva {
        self.g.range(0).shared_gva(Q)
    }

    fn hide(&self) -> Outcome {
        set_present(self.g.vcpu(0), self.q(), false)
    }

    /// Q is present, as a page of this kind.
    fn show(&self, sharing: Sharing) -> Outcome {
        let entry = match sharing {
            Sharing::Private => self.private,
            Sharing::Shared => self.shared,
        };
        self.g.vcpu(0).write_entry(self.q(), entry)
    }

    /// Q's content is written by who may: the guest, by its private alias, or the host.
    fn fill(&self, sharing: Sharing) -> Outcome {
        let range = self.g.range(0);
        match sharing {
            Sharing::Private => self.g.vcpu(0).fill(range.private_gva(Q), 1, PRIVATE, Q),
            Sharing::Shared => range.host_fill(Q..Q + 1, SHARED),
        }
    }
}

fn in_linux_order(t: &Case, to: Sharing) -> Outcome {
    let map = DirectMap::new(t, other(to))?;
    let (v, q) = (map.g.vcpu(1), map.q());
    expect_loads(v, q, Some(content(other(to))))?;
    map.hide()?;
    expect_loads(v, q, None)?;
    // By the alias beside the map, which no load strays into.
    let asking = ask(&map.g, to, Order::InPlace)?;
    expect_loads(v, q, None)?;
    host_converts(&map.g, to)?;
    expect_loads(v, q, None)?;
    answer(&map.g, asking, 0, 0)?;
    expect_loads(v, q, None)?;
    map.fill(to)?;
    map.show(to)?;
    expect_loads(v, q, Some(content(to)))
}

fn refused(t: &Case, to: Sharing) -> Outcome {
    let map = DirectMap::new(t, other(to))?;
    let (v, q) = (map.g.vcpu(1), map.q());
    map.hide()?;
    let asking = ask(&map.g, to, Order::InPlace)?;
    expect_loads(v, q, None)?;
    answer(&map.g, asking, Errno::EINVAL as u64, told_of_refusal(t, Errno::EINVAL as u64))?;
    map.show(other(to))?;
    expect_loads(v, q, Some(content(other(to))))
}

fn hammered(t: &Case) -> Outcome {
    let map = DirectMap::new(t, Sharing::Shared)?;
    // What is private keeps its content while it is shared.
    for to in [Sharing::Private, Sharing::Shared] {
        convert(&map, to)?;
        map.fill(to)?;
    }
    let mut padded = 0;
    for before in 1..8 {
        let hammering = hammer(&map.g, map.q(), before, [Some(SHARED), Some(PRIVATE), None])?;
        for _ in 0..ROUND_TRIPS {
            convert(&map, Sharing::Private)?;
            convert(&map, Sharing::Shared)?;
        }
        map.g.vcpu(1).stop()?;
        padded += expect_harmless(hammering.done()?, 2 * ROUND_TRIPS)?;
    }
    expect_that(padded > 0, || "no load ever met Q in the middle".into())
}

/// In Linux's order, with a host that grants it.
fn convert(map: &DirectMap, to: Sharing) -> Outcome {
    map.hide()?;
    let asking = ask(&map.g, to, Order::InPlace)?;
    host_converts(&map.g, to)?;
    answer(&map.g, asking, 0, 0)?;
    map.show(to)
}

/// A load that strays into Q ends in #VC of a page that is not validated, at each number of bytes before Q.
fn expect_loads_not_validated(map: &DirectMap) -> Outcome {
    for before in 1..8 {
        let [_, vector, error_code, ..] = map.g.vcpu(1).call(Op::LoadZeropad { gva: map.q().0 - before })?;
        expect_eq("vector and error code of a stray load", &(vector, error_code), &NOT_VALIDATED)?;
    }
    Ok(())
}

/// A stray load exits as often as it is run, and once the host has made Q private it ends in #VC.
fn expect_load_exits(map: &DirectMap) -> Outcome {
    let (g, before) = (&map.g, 3);
    let straying = g.vcpu(1).start(Op::LoadZeropad { gva: map.q().0 - before })?;
    let fault = Exit::memory_fault(g.range(0).gpa(Q), true);
    straying.expect_exit(&fault)?;
    straying.resume()?;
    straying.expect_exit(&fault)?;
    host_converts(g, Sharing::Private)?;
    straying.resume()?;
    let [_, vector, error_code, ..] = straying.done()?;
    expect_eq("vector and error code of the load, run again", &(vector, error_code), &NOT_VALIDATED)
}

fn private_too_early(t: &Case) -> Outcome {
    let map = DirectMap::new(t, Sharing::Shared)?;
    map.show(Sharing::Private)?;
    let asking = ask(&map.g, Sharing::Private, Order::InPlace)?;
    expect_load_exits(&map)?;
    expect_loads_not_validated(&map)?;
    answer(&map.g, asking, 0, 0)?;
    map.fill(Sharing::Private)?;
    expect_loads(map.g.vcpu(1), map.q(), Some(PRIVATE))
}

fn private_too_long(t: &Case) -> Outcome {
    let map = DirectMap::new(t, Sharing::Private)?;
    expect_loads(map.g.vcpu(1), map.q(), Some(PRIVATE))?;
    let asking = ask(&map.g, Sharing::Shared, Order::InPlace)?;
    expect_loads_not_validated(&map)?;
    host_converts(&map.g, Sharing::Shared)?;
    // Private once more, and not validated: a way out for the load.
    expect_load_exits(&map)?;
    host_converts(&map.g, Sharing::Shared)?;
    answer(&map.g, asking, 0, 0)?;
    map.show(Sharing::Shared)?;
    expect_loads(map.g.vcpu(1), map.q(), Some(SHARED))
}
