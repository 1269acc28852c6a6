//! Two vCPUs that ask for conversions at the same time: both requests are with userspace before it answers either.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::conversion::{Backed, conversion_exits, convert_op, grant};
use privet_harness::guest::Guest;
use privet_harness::guest_vcpu::Running;
use privet_harness::outcome::Outcome;
use privet_harness::platform::ByType;
use privet_harness::test_range::RangeSpec;
use privet_protocol::{Order, Pattern, Sharing};

use super::{INVALID_OPERAND, PSC_ERROR_GENERIC};
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

const REQUESTS: &str =
    "arch/x86/kvm/x86.c: complete_hypercall_exit, svm/sev.c: snp_complete_psc; each vCPU has its own";
const RMP: &str = "APM volume 2, 15.36.10: validation is a state of the page";

const SHARED: Pattern = Pattern(0x11);
/// What each vCPU writes.
const OWN: [Pattern; 2] = [Pattern(0xa0), Pattern(0xb0)];

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "convert.two_vcpus.same_page",
            // A TD is told that a page is accepted already, and takes that for a failure.
            Types::KEEPING_PRIVATE_CONTENT,
            "Two vCPUs ask for the same conversion of one page: two exits, both granted; one of the two finds that the page \
             is validated, or rescinded, already (in an SNP guest), and it is what both wanted.",
            same_page,
        )
        .basis(&[REQUESTS, RMP]),
        Row::new(
            "convert.two_vcpus.adjacent_pages",
            Types::WITH_PRIVATE_MEMORY,
            "Two vCPUs convert pages beside each other, to private and back, 8 times: neither meets anything of the other's.",
            adjacent_pages,
        )
        .basis(&[REQUESTS, RMP]),
        Row::new(
            "convert.two_vcpus.one_is_refused",
            Types::WITH_PRIVATE_MEMORY,
            "Two vCPUs ask at the same time, and userspace refuses the one that asked first: each is told its own answer, \
             and only the other's page is private.",
            one_is_refused,
        )
        .basis(&[REQUESTS]),
    ]
}

/// A guest of two vCPUs with two pages side by side that the host has filled.
fn guest(t: &Case) -> Outcome<Guest> {
    let g = t.guest().vcpus(2).range(RangeSpec::new(2)).boot()?;
    g.range(0).host_fill(0..2, SHARED)?;
    Ok(g)
}

/// vCPU `vcpu` asks for the conversion of `page`: its request is an exit. Both write one page-table page, so neither hides
/// its entry meanwhile.
fn ask(g: &Guest, vcpu: usize, page: u64, to: Sharing) -> Outcome<Running<'_>> {
    let asking = g.vcpu(vcpu).start(convert_op(g.range(0), page..page + 1, to, Order::InPlace))?;
    for (_, exit) in conversion_exits(g.platform(), g.range(0), page..page + 1, to) {
        asking.expect_exit(&exit)?;
    }
    Ok(asking)
}

fn answer(g: &Guest, vcpu: usize, asking: &Running<'_>, ret: u64) -> Outcome {
    g.vcpu(vcpu).kvm().set_hypercall_ret(ret)?;
    asking.resume()
}

/// Expects the end of a conversion: how many pages PVALIDATE found as they should become.
fn end(asking: Running<'_>, told: u64) -> Outcome<u64> {
    let [seen, present, unchanged, code, ..] = asking.done()?;
    expect_eq("the answer, present pages, EAX of PVALIDATE", &(seen, present, code), &(told, 1, 0))?;
    Ok(unchanged)
}

fn same_page(t: &Case) -> Outcome {
    let g = guest(t)?;
    let range = g.range(0);
    let one_of_two = t.by_type(ByType { plain: 0, upm: 0, sev: 0, sev_es: 0, snp: 1, tdx: 0 });
    for to in [Sharing::Private, Sharing::Shared] {
        let asking = [ask(&g, 0, 0, to)?, ask(&g, 1, 0, to)?];
        grant(g.vm(), range, 0..1, to, Backed::Leave)?;
        for (vcpu, asking) in asking.iter().enumerate() {
            answer(&g, vcpu, asking, 0)?;
        }
        let [first, second] = asking;
        expect_eq("pages that were so before", &(end(first, 0)? + end(second, 0)?), &one_of_two)?;
        if to == Sharing::Private {
            g.vcpu(0).fill(range.private_gva(0), 1, OWN[0], 0)?;
            g.vcpu(1).expect(range.private_gva(0), 1, OWN[0], 0)?;
        }
        range.host_expect(0..2, SHARED)?;
    }
    g.vcpus().iter().try_for_each(|v| v.expect(range.shared_gva(0), 2, SHARED, 0))
}

fn adjacent_pages(t: &Case) -> Outcome {
    let g = guest(t)?;
    let range = g.range(0);
    let both = |to: Sharing| {
        let asking = [ask(&g, 0, 0, to)?, ask(&g, 1, 1, to)?];
        for (vcpu, asking) in asking.iter().enumerate() {
            grant(g.vm(), range, vcpu as u64..vcpu as u64 + 1, to, Backed::Fallocate)?;
            answer(&g, vcpu, asking, 0)?;
        }
        asking.into_iter().try_for_each(|asking| expect_eq("pages that were so before", &end(asking, 0)?, &0))
    };
    for _ in 0..8 {
        both(Sharing::Private)?;
        for (page, own) in (0..).zip(OWN) {
            g.vcpu(page as usize).fill(range.private_gva(page), 1, own, 0)?;
        }
        for (page, own) in (0..).zip(OWN) {
            g.vcpu(1 - page as usize).expect(range.private_gva(page), 1, own, 0)?;
        }
        range.host_expect(0..2, SHARED)?;
        both(Sharing::Shared)?;
        g.vcpu(1).expect(range.shared_gva(0), 2, SHARED, 0)?;
    }
    Ok(())
}

fn one_is_refused(t: &Case) -> Outcome {
    let g = guest(t)?;
    let range = g.range(0);
    let refusal = Errno::EINVAL as u64;
    let told = t.by_type(ByType {
        plain: refusal,
        upm: refusal,
        sev: refusal,
        sev_es: refusal,
        snp: PSC_ERROR_GENERIC,
        tdx: INVALID_OPERAND,
    });
    let (first, second) = (ask(&g, 0, 0, Sharing::Private)?, ask(&g, 1, 1, Sharing::Private)?);
    grant(g.vm(), range, 1..2, Sharing::Private, Backed::Leave)?;
    answer(&g, 1, &second, 0)?;
    expect_eq("pages that were so before", &end(second, 0)?, &0)?;
    answer(&g, 0, &first, refusal)?;
    expect_eq("pages that were so before", &end(first, told)?, &0)?;
    g.vcpu(1).fill(range.private_gva(1), 1, OWN[1], 0)?;
    range.host_expect(0..2, SHARED)?;
    g.vcpu(0).expect(range.private_gva(1), 1, OWN[1], 0)?;
    g.vcpu(1).expect(range.shared_gva(0), 1, SHARED, 0)
}
