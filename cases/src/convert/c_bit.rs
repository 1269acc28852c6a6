//! Conversions of SEV and SEV-ES guests: the host only hears of them, and the guest's C-bit makes them.

use std::ops::Range;
use std::thread;

use privet_harness::case::Case;
use privet_harness::conversion::Backed;
use privet_harness::guest::Guest;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_protocol::Sharing::{Private, Shared};
use privet_protocol::{Order, Pattern, Sharing};

use super::{CONVERSIONS, HOST_2, HYPERCALL, INITIAL, LARGE, PRIVATE_1, RANGES, REGION, SHARED_1, SHARED_2};
use crate::row::Row;
use crate::types::Types;

const C_BIT: &str = "APM volume 2, 15.34.5: the C-bit of the guest's page tables decides";

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, first, count) in RANGES {
        for vcpus in [1, 2, 4] {
            for slots in [1, 2] {
                rows.push(
                    Row::new(
                        format!("convert.c_bit.{name}.v{vcpus}.s{slots}"),
                        Types::SEV_AND_ES,
                        "Each vCPU announces the conversion of its range to private and back, and uses the alias of that \
                         kind. After every step the range, each page around it and the host's view hold exactly what they \
                         should; the host sees ciphertext of what is private.",
                        move |t| in_every_region(t, first..first + count, vcpus, slots),
                    )
                    .basis(&[HYPERCALL, C_BIT])
                    .exceeds(CONVERSIONS)
                    .exceeds("priv_memfd_test: PSPAHCT")
                    .exceeds("x86/sev_private_mem_test: guest_conv_test_fn_explicit"),
                );
            }
        }
    }
    rows.extend([
        Row::new(
            "convert.c_bit.alternate_pages",
            Types::SEV_AND_ES,
            "Every second page of a private range is given back, one by one: the even pages stay private, the odd ones are \
             shared, and none changes its content.",
            alternate_pages,
        )
        .basis(&[HYPERCALL, C_BIT]),
        Row::new(
            "convert.c_bit.twice",
            Types::SEV_AND_ES,
            "A conversion to what the page is already is announced like any other, and changes nothing.",
            twice,
        )
        .basis(&[HYPERCALL]),
        Row::new(
            "convert.c_bit.in_place_order",
            Types::SEV_AND_ES,
            "The older order of the protocol, which asks the host while the mapping is present, converts just as well.",
            in_place_order,
        )
        .basis(&[HYPERCALL, "arch/x86/mm/pat/set_memory.c: __set_memory_enc_pgtable"]),
    ]);
    rows
}

fn in_every_region(t: &Case, pages: Range<u64>, vcpus: usize, slots: u32) -> Outcome {
    let spec = RangeSpec::new(REGION * vcpus as u64).slots(slots).backing(Backing::HostOnly);
    let g = t.guest().vcpus(vcpus).range(spec).boot()?;
    g.range(0).host_fill(g.range(0).all(), INITIAL)?;
    thread::scope(|scope| {
        let stories: Vec<_> = (0..vcpus)
            .map(|vcpu| {
                let (g, base) = (&g, vcpu as u64 * REGION);
                let pages = base + pages.start..base + pages.end;
                scope.spawn(move || in_region(g, vcpu, base..base + REGION, pages))
            })
            .collect();
        stories.into_iter().try_for_each(|story| {
            story.join().unwrap_or_else(|_| Err(Stop::Error("a vCPU's part of the row panicked".into())))
        })
    })
}

fn in_region(g: &Guest, vcpu: usize, region: Range<u64>, pages: Range<u64>) -> Outcome {
    let (v, range) = (g.vcpu(vcpu), g.range(0));
    let around = [region.start..pages.start, pages.end..region.end];
    let (first, count) = (pages.start, pages.end - pages.start);
    let sees = |kind: Sharing, pattern| v.expect(range.gva(kind, first), count, pattern, first);
    let fills = |kind: Sharing, pattern| v.fill(range.gva(kind, first), count, pattern, first);
    let around_is = |pattern: Pattern| {
        around.iter().filter(|pages| !pages.is_empty()).try_for_each(|pages| {
            v.expect(range.shared_gva(pages.start), pages.end - pages.start, pattern, pages.start)?;
            range.host_expect(pages.clone(), pattern)
        })
    };
    v.fill(range.shared_gva(region.start), REGION, SHARED_1, region.start)?;
    range.host_expect(region.clone(), SHARED_1)?;

    g.convert(vcpu, pages.clone(), Private, Backed::Leave)?;
    v.expect_not(range.private_gva(first), count, SHARED_1, first)?;
    fills(Private, PRIVATE_1)?;
    sees(Private, PRIVATE_1)?;
    range.host_expect_not(pages.clone(), PRIVATE_1)?;
    range.host_expect_not(pages.clone(), SHARED_1)?;
    around_is(SHARED_1)?;

    // Shared again it is ciphertext for both, until somebody writes.
    g.convert(vcpu, pages.clone(), Shared, Backed::Leave)?;
    v.expect_not(range.shared_gva(first), count, PRIVATE_1, first)?;
    fills(Shared, SHARED_2)?;
    range.host_expect(pages.clone(), SHARED_2)?;
    range.host_fill(pages.clone(), HOST_2)?;
    sees(Shared, HOST_2)?;
    around_is(SHARED_1)?;

    g.convert(vcpu, pages.clone(), Private, Backed::Leave)?;
    v.expect_not(range.private_gva(first), count, HOST_2, first)?;
    v.expect_not(range.private_gva(first), count, PRIVATE_1, first)?;
    range.host_expect(pages.clone(), HOST_2)?;
    around_is(SHARED_1)
}

fn alternate_pages(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(LARGE).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.convert(0, range.all(), Private, Backed::Leave)?;
    v.fill(range.private_gva(0), LARGE, PRIVATE_1, 0)?;
    for page in (1..LARGE).step_by(2) {
        g.convert(0, page..page + 1, Shared, Backed::Leave)?;
        v.fill(range.shared_gva(page), 1, SHARED_2, page)?;
    }
    for page in 0..LARGE {
        if page % 2 == 0 {
            v.expect(range.private_gva(page), 1, PRIVATE_1, page)?;
            range.host_expect_not(page..page + 1, PRIVATE_1)?;
        } else {
            v.expect(range.shared_gva(page), 1, SHARED_2, page)?;
            range.host_expect(page..page + 1, SHARED_2)?;
        }
    }
    Ok(())
}

fn twice(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.convert(0, 0..1, Private, Backed::Leave)?;
    v.fill(range.private_gva(0), 1, PRIVATE_1, 0)?;
    g.convert(0, 0..1, Private, Backed::Leave)?;
    v.expect(range.private_gva(0), 1, PRIVATE_1, 0)?;
    range.host_expect_not(0..1, PRIVATE_1)?;
    g.convert(0, 0..1, Shared, Backed::Leave)?;
    v.fill(range.shared_gva(0), 1, SHARED_1, 0)?;
    g.convert(0, 0..1, Shared, Backed::Leave)?;
    range.host_expect(0..1, SHARED_1)
}

fn in_place_order(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(3).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), SHARED_1)?;
    g.convert_in_order(0, 1..2, Private, Backed::Leave, Order::InPlace)?;
    v.fill(range.private_gva(1), 1, PRIVATE_1, 1)?;
    range.host_expect_not(1..2, PRIVATE_1)?;
    g.convert_in_order(0, 1..2, Shared, Backed::Leave, Order::InPlace)?;
    v.fill(range.shared_gva(1), 1, SHARED_1, 1)?;
    v.expect(range.shared_gva(0), 3, SHARED_1, 0)?;
    range.host_expect(range.all(), SHARED_1)
}
