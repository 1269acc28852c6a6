//! Group `convert`: the guest asks for a conversion and the host grants, refuses or delays it.

mod c_bit;
mod two_vcpus;

use std::ops::Range;
use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::conversion::{Backed, HYPERCALL_LONG_MODE, conversion_exits, convert_op, expect_answer};
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::platform::ByType;
use privet_harness::test_range::{RangeSpec, TestRange};
use privet_harness::uapi::{Capability, HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use privet_harness::units::PAGE_SIZE;
use privet_protocol::Sharing::{Private, Shared};
use privet_protocol::{Op, Order, Pattern, Sharing, Width};

use crate::expect::{expect_eq, expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const INITIAL: Pattern = Pattern(0xcc);
const SHARED_1: Pattern = Pattern(0x11);
const PRIVATE_1: Pattern = Pattern(0x22);
const SHARED_2: Pattern = Pattern(0x33);
const HOST_2: Pattern = Pattern(0x44);

/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;

const HYPERCALL: &str = "arch/x86/kvm/x86.c: ____kvm_emulate_hypercall, KVM_HC_MAP_GPA_RANGE";
const ATTRIBUTES: &str = "virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes";
const CONVERSIONS: &str = "x86/private_mem_conversions_test: guest_test_explicit_conversion, handle_exit_hypercall";

/// The ranges of the matrix: name, first page and number of pages in each vCPU's region of 2 MiB + 4 KiB.
const RANGES: [(&str, u64, u64); 5] =
    [("4k_at_0", 0, 1), ("2m_at_0", 0, LARGE), ("4k_at_4k", 1, 1), ("2m_at_4k", 1, LARGE), ("4k_at_2m", LARGE, 1)];

/// Pages in the region of one vCPU.
const REGION: u64 = LARGE + 1;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let kept = ("", Backed::Leave, Types::KEEPING_PRIVATE_CONTENT);
    let punched = (".fallocate", Backed::Fallocate, Types::WITH_PRIVATE_MEMORY);
    for (name, first, count) in RANGES {
        for (suffix, backed, types) in [kept, punched] {
            for vcpus in [1, 2, 4] {
                for slots in [1, 2] {
                    rows.push(
                        Row::new(
                            format!("convert.explicit.{name}{suffix}.v{vcpus}.s{slots}"),
                            types,
                            "Each vCPU converts its range to private and back, twice. After every step each page \
                             of the range, each page around it and the host's view hold exactly what they should.",
                            move |t| explicit(t, first..first + count, backed, vcpus, slots),
                        )
                        .basis(&[HYPERCALL, ATTRIBUTES])
                        .exceeds(CONVERSIONS)
                        .exceeds("priv_memfd_test: PSPAHCT")
                        .exceeds("x86/tdx_upm_test: verify_upm_explicit"),
                    );
                }
            }
        }
    }
    rows.extend([
        Row::new(
            "convert.alternate_pages_of_2m",
            Types::KEEPING_PRIVATE_CONTENT,
            "Every second page of a private 2 MiB range goes back to shared, one by one: the even pages stay \
             private, the odd ones show the host's view, and none changes its content.",
            alternate_pages,
        )
        .basis(&[ATTRIBUTES, "arch/x86/kvm/mmu/mmu.c: hugepage_set_mixed"])
        // Upstream's loop over odd pages is only reached by ranges of one page.
        .exceeds(CONVERSIONS),
        Row::new(
            "convert.focus_window",
            Types::KEEPING_PRIVATE_CONTENT,
            "A 40 KiB window in the middle of a private 2 MiB range goes to shared and back; host and guest \
             exchange data through it and nothing around it changes.",
            focus_window,
        )
        .basis(&[ATTRIBUTES, "RFC V3 private_mem_test (Annapurve, 2022): guest_conv_test_fn"])
        .upstream("private_mem_test: guest_conv_test_fn_explicit"),
        Row::new(
            "convert.in_place_order",
            Types::WITH_PRIVATE_MEMORY,
            "The older order of the protocol, which asks the host while the mapping is present, converts just \
             as well when nothing touches the page meanwhile.",
            in_place_order,
        )
        .basis(&[HYPERCALL, "arch/x86/mm/pat/set_memory.c: __set_memory_enc_pgtable"]),
        Row::new(
            "convert.host_refuses",
            Types::WITH_PRIVATE_MEMORY,
            "The host answers EINVAL: the guest sees it in RAX, every page-table entry is as it was, and no \
             content has changed.",
            |t| host_does_not_grant(t, Errno::EINVAL as u64),
        )
        .basis(&[HYPERCALL]),
        Row::new(
            "convert.host_asks_to_retry",
            // A TD's answer is told to nobody but the loop that asks again.
            Types::KEEPING_PRIVATE_CONTENT,
            "The host answers EAGAIN: the guest sees it in RAX and nothing has changed; the second attempt is \
             granted.",
            |t| host_does_not_grant(t, Errno::EAGAIN as u64),
        )
        .basis(&[HYPERCALL]),
        Row::new(
            "convert.invalid_code_is_passed_on",
            Types::ALL,
            "Any return code of userspace reaches the RAX of a plain hypercall unchanged; KVM_RUN does not fail. \
             (Only SNP page-state changes and TDX MapGPA validate it.)",
            invalid_code_is_passed_on,
        )
        .basis(&["arch/x86/kvm/x86.c: complete_hypercall_exit", "arch/x86/kvm/x86.h: kvm_is_valid_map_gpa_range_ret"]),
        Row::new(
            "convert.answer_is_zero_at_first",
            Types::ALL,
            "Each time the hypercall arrives, its answer is zero: a VMM that forgets to answer grants, and what it \
             answered last time is gone.",
            answer_is_zero_at_first,
        )
        .basis(&[HYPERCALL]),
        Row::new(
            "convert.one_allocation_at_a_time",
            Types::WITH_PRIVATE_MEMORY,
            "Only one backing of the range is ever populated: the host's view is PROT_NONE and discarded while \
             the range is private, the guest_memfd is punched while it is shared.",
            one_allocation_at_a_time,
        )
        .basis(&[ATTRIBUTES, "RFC V2 priv_memfd_test (Annapurve, 2022): PSAWDAT"])
        .upstream("priv_memfd_test: PSAWDAT"),
        Row::new(
            "convert.one_page_flips_beside_a_busy_vcpu",
            Types::WITH_PRIVATE_MEMORY,
            "One page of a 2 MiB range flips 64 times while two other vCPUs increment all the others: no \
             increment is lost and neither backing of the flipping page mixes with the other.",
            one_page_flips,
        )
        .basis(&[
            "commit 9129633d568e: hugepages while attributes change",
            "arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes",
        ])
        .exceeds("x86/tdx_upm_test: stress"),
        Row::new(
            "convert.every_vcpu_follows",
            Types::UPM,
            "The host converts a page that four vCPUs have in their TLBs, back and forth: each of them sees the other \
             backing with its next access, though none of them has flushed anything.",
            every_vcpu_follows,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes, kvm_handle_gfn_range: KVM_REQ_TLB_FLUSH"]),
        Row::new(
            "convert.attributes_of_the_call_are_passed_on",
            Types::ALL,
            "KVM hands the third argument of KVM_HC_MAP_GPA_RANGE to userspace as it is, reserved bits and size \
             hints included, and does nothing itself.",
            attributes_are_passed_on,
        )
        .basis(&[HYPERCALL]),
        Row::new(
            "convert.bad_ranges_do_not_exit",
            Types::ALL,
            "An unaligned GPA, no pages and a range that wraps give the guest -KVM_EINVAL without an exit.",
            bad_ranges_do_not_exit,
        )
        .basis(&[HYPERCALL]),
        Row::new(
            "convert.exit_must_be_enabled",
            Types::ALL,
            "Without KVM_CAP_EXIT_HYPERCALL the guest gets -KVM_ENOSYS; enabling and disabling it takes effect \
             on a running VM.",
            exit_must_be_enabled,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_vm_ioctl_enable_cap, KVM_CAP_EXIT_HYPERCALL"]),
        Row::new(
            "convert.hypercall_reaches_userspace",
            Types::WITHOUT_PRIVATE_MEMORY,
            "A VM without private memory hands KVM_HC_MAP_GPA_RANGE to userspace too; the answer is RAX.",
            |t| {
                let g = t.guest().boot()?;
                map_gpa_range(&g, 0x1_0000_0000, 3, MAP_GPA_RANGE_ENCRYPTED, 0)
            },
        )
        .basis(&[HYPERCALL]),
    ]);
    rows.extend(c_bit::rows());
    rows.extend(two_vcpus::rows());
    rows.into_iter().map(|row| row.needs(Need::GuestCode).needs(Need::Hypercall).needs(exit_hypercall())).collect()
}

fn exit_hypercall() -> Need {
    Need::Capability(Capability::EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE)
}

fn explicit(t: &Case, pages: Range<u64>, backed: Backed, vcpus: usize, slots: u32) -> Outcome {
    let g = t.guest().vcpus(vcpus).range(RangeSpec::new(REGION * vcpus as u64).slots(slots)).boot()?;
    g.range(0).host_fill(g.range(0).all(), INITIAL)?;
    // Every vCPU tells the same story on its own region, all of them at once.
    thread::scope(|scope| {
        let stories: Vec<_> = (0..vcpus)
            .map(|vcpu| {
                let (g, base) = (&g, vcpu as u64 * REGION);
                let pages = base + pages.start..base + pages.end;
                scope.spawn(move || explicit_in_region(g, vcpu, base..base + REGION, pages, backed))
            })
            .collect();
        stories.into_iter().try_for_each(|story| {
            story.join().unwrap_or_else(|_| Err(Stop::Error("a vCPU's part of the row panicked".into())))
        })
    })
}

fn explicit_in_region(g: &Guest, vcpu: usize, region: Range<u64>, pages: Range<u64>, backed: Backed) -> Outcome {
    let around = [region.start..pages.start, pages.end..region.end];
    let (v, range) = (g.vcpu(vcpu), g.range(0));
    let guest_sees = |kind: Sharing, pages: Range<u64>, pattern| {
        if pages.is_empty() {
            return Ok(());
        }
        v.expect(range.gva(kind, pages.start), pages.end - pages.start, pattern, pages.start)
    };
    let guest_fills = |kind: Sharing, pages: Range<u64>, pattern| {
        v.fill(range.gva(kind, pages.start), pages.end - pages.start, pattern, pages.start)
    };
    let around_is = |pattern| {
        // A page that was converted by mistake may hide behind its old mapping.
        range.host().zap_guest_mappings(region.start * PAGE_SIZE, REGION * PAGE_SIZE)?;
        around.iter().try_for_each(|pages| {
            guest_sees(Shared, pages.clone(), pattern)?;
            range.host_expect(pages.clone(), pattern)
        })
    };

    guest_sees(Shared, region.clone(), INITIAL)?;
    guest_fills(Shared, region.clone(), SHARED_1)?;
    range.host_expect(region.clone(), SHARED_1)?;

    // To private: fresh pages; what the guest writes stays in the guest.
    g.convert(vcpu, pages.clone(), Private, backed)?;
    expect_fresh(g, v, range, pages.clone(), SHARED_1)?;
    guest_fills(Private, pages.clone(), PRIVATE_1)?;
    guest_sees(Private, pages.clone(), PRIVATE_1)?;
    range.host_expect(pages.clone(), SHARED_1)?;
    around_is(SHARED_1)?;

    // Back to shared: the old shared content; writes travel both ways.
    g.convert(vcpu, pages.clone(), Shared, backed)?;
    guest_sees(Shared, pages.clone(), SHARED_1)?;
    guest_fills(Shared, pages.clone(), SHARED_2)?;
    range.host_expect(pages.clone(), SHARED_2)?;
    range.host_fill(pages.clone(), HOST_2)?;
    guest_sees(Shared, pages.clone(), HOST_2)?;
    around_is(SHARED_1)?;

    // To private again: a VMM that punched gets fresh pages, one that left the file alone gets the old content.
    g.convert(vcpu, pages.clone(), Private, backed)?;
    match backed {
        Backed::Fallocate => expect_fresh(g, v, range, pages.clone(), PRIVATE_1)?,
        Backed::Leave => guest_sees(Private, pages.clone(), PRIVATE_1)?,
    }
    range.host_expect(pages.clone(), HOST_2)?;
    around_is(SHARED_1)
}

/// Expects private pages that nobody has written to be zero, or, where they are encrypted, to be nothing that anybody
/// knows: not what was `before` in them or in their place.
fn expect_fresh(g: &Guest, v: &GuestVcpu, range: &TestRange, pages: Range<u64>, before: Pattern) -> Outcome {
    let (gva, count) = (range.private_gva(pages.start), pages.end - pages.start);
    if Types::SEV_FAMILY.contain(g.platform()) {
        v.expect_not(gva, count, before, pages.start)?;
        v.expect_not(gva, count, Pattern::ZERO, pages.start)
    } else {
        v.expect(gva, count, Pattern::ZERO, pages.start)
    }
}

fn alternate_pages(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(LARGE)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.shared_gva(0), LARGE, SHARED_1, 0)?;
    g.convert(0, 0..LARGE, Sharing::Private, Backed::Leave)?;
    v.fill(range.private_gva(0), LARGE, PRIVATE_1, 0)?;
    for page in (1..LARGE).step_by(2) {
        g.convert(0, page..page + 1, Sharing::Shared, Backed::Leave)?;
        v.expect(range.shared_gva(page), 1, SHARED_1, page)?;
        v.fill(range.shared_gva(page), 1, SHARED_2, page)?;
    }
    // A page that was converted by mistake may hide behind its old mapping.
    range.reinstall(g.vm())?;
    for page in 0..LARGE {
        let (kind, guest, host) =
            if page % 2 == 0 { (Private, PRIVATE_1, SHARED_1) } else { (Shared, SHARED_2, SHARED_2) };
        v.expect(range.gva(kind, page), 1, guest, page)?;
        range.host_expect(page..page + 1, host)?;
    }
    if Types::SNP.contain(g.platform()) {
        // Pages that are shared cannot be rescinded once more.
        return Ok(());
    }
    // The whole range at once, although half of it is shared already.
    g.convert(0, 0..LARGE, Sharing::Shared, Backed::Leave)?;
    for page in 0..LARGE {
        v.expect(range.shared_gva(page), 1, if page % 2 == 0 { SHARED_1 } else { SHARED_2 }, page)?;
    }
    Ok(())
}

fn focus_window(t: &Case) -> Outcome {
    let focus = 256..266;
    let g = t.guest().range(RangeSpec::new(LARGE)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let around = [0..focus.start, focus.end..LARGE];
    let around_is_private = || {
        // A page that was converted by mistake may hide behind its old mapping.
        range.reinstall(g.vm())?;
        around.iter().try_for_each(|pages| {
            v.expect(range.private_gva(pages.start), pages.end - pages.start, PRIVATE_1, pages.start)?;
            range.host_expect(pages.clone(), INITIAL)
        })
    };
    let len = focus.end - focus.start;
    range.host_fill(range.all(), INITIAL)?;
    g.convert(0, 0..LARGE, Sharing::Private, Backed::Fallocate)?;
    v.fill(range.private_gva(0), LARGE, PRIVATE_1, 0)?;
    range.host_expect(range.all(), INITIAL)?;

    g.convert(0, focus.clone(), Sharing::Shared, Backed::Fallocate)?;
    v.expect(range.shared_gva(focus.start), len, INITIAL, focus.start)?;
    v.fill(range.shared_gva(focus.start), len, SHARED_2, focus.start)?;
    range.host_expect(focus.clone(), SHARED_2)?;
    range.host_fill(focus.clone(), HOST_2)?;
    v.expect(range.shared_gva(focus.start), len, HOST_2, focus.start)?;
    around_is_private()?;

    g.convert(0, focus.clone(), Sharing::Private, Backed::Fallocate)?;
    expect_fresh(&g, v, range, focus.clone(), PRIVATE_1)?;
    v.fill(range.private_gva(focus.start), len, SHARED_1, focus.start)?;
    range.host_expect(focus.clone(), HOST_2)?;
    v.expect(range.private_gva(focus.start), len, SHARED_1, focus.start)?;
    around_is_private()
}

fn in_place_order(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(3)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), SHARED_1)?;
    g.convert_in_order(0, 1..2, Sharing::Private, Backed::Leave, Order::InPlace)?;
    v.fill(range.private_gva(1), 1, PRIVATE_1, 1)?;
    range.host_expect(range.all(), SHARED_1)?;
    g.convert_in_order(0, 1..2, Sharing::Shared, Backed::Leave, Order::InPlace)?;
    v.expect(range.shared_gva(0), 3, SHARED_1, 0)
}

/// TDVMCALL_STATUS_INVALID_OPERAND.
pub(crate) const INVALID_OPERAND: u64 = 1 << 63;
/// VMGEXIT_PSC_ERROR_GENERIC.
const PSC_ERROR_GENERIC: u64 = 0x100 << 32;

/// What the guest is told when the host's answer is `ret`: a page state change knows one failure, whatever the host says,
/// and MapGPA none that is a number of Linux.
pub(crate) fn told_of_refusal(t: &Case, ret: u64) -> u64 {
    t.by_type(ByType { plain: ret, upm: ret, sev: ret, sev_es: ret, snp: PSC_ERROR_GENERIC, tdx: INVALID_OPERAND })
}

fn host_does_not_grant(t: &Case, ret: u64) -> Outcome {
    let g = t.guest().range(RangeSpec::new(3)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), SHARED_1)?;
    let told = told_of_refusal(t, ret);
    let entries = page_table_entries(&g, range)?;
    for order in [Order::NotPresentFirst, Order::InPlace] {
        let asking = v.start(convert_op(range, 1..2, Sharing::Private, order))?;
        for (_, exit) in conversion_exits(g.platform(), range, 1..2, Sharing::Private) {
            asking.expect_exit(&exit)?;
        }
        v.kvm().set_hypercall_ret(ret)?;
        asking.resume()?;
        expect_answer(asking, told, 1)?;
        expect_eq("the page-table entries after the refusal", &page_table_entries(&g, range)?, &entries)?;
        v.expect(range.shared_gva(0), 3, SHARED_1, 0)?;
        range.host_expect(range.all(), SHARED_1)?;
    }
    // The next attempt is granted, as a guest does that was told to retry.
    g.convert(0, 1..2, Sharing::Private, Backed::Leave)?;
    expect_fresh(&g, v, range, 1..2, SHARED_1)?;
    v.expect(range.shared_gva(0), 1, SHARED_1, 0)?;
    v.expect(range.shared_gva(2), 1, SHARED_1, 2)
}

fn page_table_entries(g: &Guest, range: &TestRange) -> Outcome<Vec<u64>> {
    range
        .all()
        .flat_map(|page| [range.private_gva(page), range.shared_gva(page)])
        .map(|gva| g.vcpu(0).read_entry(gva))
        .collect()
}

fn invalid_code_is_passed_on(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    for ret in [77, Errno::EINVAL as u64, u64::MAX, 0x8000_0000_0000_0000, 0] {
        map_gpa_range(&g, 0x1_0000_0000, 1, 0, ret)?;
    }
    Ok(())
}

/// The bare hypercall: one exit with exactly these arguments, then `ret` in RAX.
fn map_gpa_range(g: &Guest, gpa: u64, pages: u64, attributes: u64, ret: u64) -> Outcome {
    let call = g.vcpu(0).start(Op::MapGpaRange { gpa, pages, attributes })?;
    call.expect_exit(&Exit::Hypercall {
        nr: HC_MAP_GPA_RANGE,
        args: [gpa, pages, attributes],
        flags: HYPERCALL_LONG_MODE,
    })?;
    g.vcpu(0).kvm().set_hypercall_ret(ret)?;
    call.resume()?;
    let [rax, ..] = call.done()?;
    expect_eq("RAX after the hypercall", &rax, &ret)
}

fn answer_is_zero_at_first(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    for ret in [77, u64::MAX, Errno::EINVAL as u64] {
        let call = v.start(Op::MapGpaRange { gpa: 0x1_0000_0000, pages: 1, attributes: 0 })?;
        call.exit()?;
        expect_eq("hypercall.ret at the exit", &v.kvm().run_page().hypercall_ret()?, &0)?;
        v.kvm().set_hypercall_ret(ret)?;
        call.resume()?;
        expect_eq("RAX after the hypercall", &call.done()?[0], &ret)?;
    }
    let call = v.start(Op::MapGpaRange { gpa: 0x1_0000_0000, pages: 1, attributes: 0 })?;
    call.exit()?;
    call.resume()?;
    expect_eq("RAX without an answer", &call.done()?[0], &0)
}

fn one_allocation_at_a_time(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(8)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let bytes = 8 * PAGE_SIZE;
    let to_private = || {
        range.host().discard(0, bytes)?;
        range.host().protect(false)?;
        g.convert(0, 0..8, Sharing::Private, Backed::Fallocate)
    };
    let to_shared = || {
        g.convert(0, 0..8, Sharing::Shared, Backed::Fallocate)?;
        range.host().protect(true)
    };
    for (private, shared) in [(PRIVATE_1, SHARED_1), (SHARED_2, HOST_2)] {
        to_private()?;
        expect_fresh(&g, v, range, 0..8, PRIVATE_1)?;
        v.fill(range.private_gva(0), 8, private, 0)?;
        v.expect(range.private_gva(0), 8, private, 0)?;
        to_shared()?;
        // Both backings were given up in turn, so nothing is left of either.
        range.host_expect(range.all(), Pattern::ZERO)?;
        v.expect(range.shared_gva(0), 8, Pattern::ZERO, 0)?;
        range.host_fill(range.all(), shared)?;
        v.expect(range.shared_gva(0), 8, shared, 0)?;
    }
    Ok(())
}

fn one_page_flips(t: &Case) -> Outcome {
    let flipping = 255;
    let g = t.guest().vcpus(3).range(RangeSpec::new(LARGE)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.shared_gva(flipping), 1, SHARED_1, flipping)?;
    let below = g.vcpu(1).hammer(Op::HammerAdd { gva: range.shared_gva(0).0, pages: flipping, limit: 0 })?;
    let above = g.vcpu(2).hammer(Op::HammerAdd {
        gva: range.shared_gva(flipping + 1).0,
        pages: LARGE - flipping - 1,
        limit: 0,
    })?;
    let page = flipping..flipping + 1;
    let mut private = None;
    for flip in 1..=32 {
        g.convert(0, page.clone(), Sharing::Private, Backed::Leave)?;
        match private.filter(|_| Types::KEEPING_PRIVATE_CONTENT.contain(t.platform())) {
            None => expect_fresh(&g, v, range, page.clone(), SHARED_1)?,
            Some(private) => v.expect(range.private_gva(flipping), 1, private, flipping)?,
        }
        private = Some(Pattern(0x1000 + flip));
        v.fill(range.private_gva(flipping), 1, Pattern(0x1000 + flip), flipping)?;
        g.convert(0, page.clone(), Sharing::Shared, Backed::Leave)?;
        v.expect(range.shared_gva(flipping), 1, SHARED_1, flipping)?;
    }
    g.vcpu(1).stop()?;
    g.vcpu(2).stop()?;
    let [below, ..] = below.done()?;
    let [above, ..] = above.done()?;
    for page in (0..LARGE).filter(|page| *page != flipping) {
        let rounds = if page < flipping { below } else { above };
        v.expect_read(range.shared_gva(page), Width::B8, rounds)?;
        expect_eq("the counter in the host's view", &range.host().read_u64(page * PAGE_SIZE)?, &rounds)?;
    }
    Ok(())
}

fn every_vcpu_follows(t: &Case) -> Outcome {
    let g = t.guest().vcpus(4).range(RangeSpec::new(1)).boot()?;
    let (range, at) = (g.range(0), g.range(0).private_gva(0));
    range.host_fill(range.all(), INITIAL)?;
    range.set_private(g.vm(), range.all())?;
    g.vcpu(0).fill(at, 1, PRIVATE_1, 0)?;
    for _ in 0..4 {
        g.vcpus().iter().try_for_each(|v| v.expect(at, 1, PRIVATE_1, 0))?;
        range.set_shared(g.vm(), range.all())?;
        g.vcpus().iter().try_for_each(|v| v.expect(at, 1, INITIAL, 0))?;
        range.set_private(g.vm(), range.all())?;
    }
    Ok(())
}

fn attributes_are_passed_on(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..1, SHARED_1)?;
    for attributes in [0, 1, 2, MAP_GPA_RANGE_ENCRYPTED, MAP_GPA_RANGE_ENCRYPTED | 2, 1 << 5, 1 << 63, u64::MAX] {
        map_gpa_range(&g, range.gpa(0).0, 1, attributes, 0)?;
        // Userspace did nothing, so the page is shared as before.
        v.expect(range.shared_gva(0), 1, SHARED_1, 0)?;
    }
    // No slot is needed either: KVM looks at none.
    map_gpa_range(&g, 0x7f_ffff_f000, 5, MAP_GPA_RANGE_ENCRYPTED, 0)?;
    // The most pages that do not wrap.
    map_gpa_range(&g, 0x1_0000_0000, u64::MAX - 0x10_0000, MAP_GPA_RANGE_ENCRYPTED, 0)
}

/// What KVM calls -KVM_EINVAL, as the guest sees it.
const MINUS_EINVAL: u64 = -22_i64 as u64;
/// -KVM_ENOSYS.
const MINUS_ENOSYS: u64 = -1000_i64 as u64;

fn bad_ranges_do_not_exit(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    for (gpa, pages) in [(0x1_0000_0800, 1), (0x1_0000_0001, 1), (0x1_0000_0000, 0), (0x1_0000_0000, u64::MAX)] {
        let [rax, ..] = g.vcpu(0).call(Op::MapGpaRange { gpa, pages, attributes: 0 })?;
        expect_eq(&format!("RAX for gpa {gpa:#x} and {pages:#x} pages"), &rax, &MINUS_EINVAL)?;
    }
    Ok(())
}

fn exit_must_be_enabled(t: &Case) -> Outcome {
    let g = t.guest().without_map_gpa_range_exit().boot()?;
    let refused = || {
        let [rax, ..] = g.vcpu(0).call(Op::MapGpaRange { gpa: 0x1_0000_0000, pages: 1, attributes: 0 })?;
        expect_eq("RAX while the exit is off", &rax, &MINUS_ENOSYS)
    };
    let enable = |bits| g.vm().enable_cap(Capability::EXIT_HYPERCALL, [bits, 0, 0, 0]);
    refused()?;
    expect_errno("enabling exits of unknown hypercalls", enable(1 << HC_MAP_GPA_RANGE | 1), Errno::EINVAL)?;
    refused()?;
    expect_ok("enabling the exit", enable(1 << HC_MAP_GPA_RANGE))?;
    map_gpa_range(&g, 0x1_0000_0000, 1, 0, 0)?;
    expect_ok("disabling the exit", enable(0))?;
    refused()
}
