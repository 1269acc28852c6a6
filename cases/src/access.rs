//! Group `access`: which backing an access reaches.

mod encrypted;
mod shadow_paging;
mod written_by_kvm;

use privet_harness::another_process::lend_memory;
use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::units::PAGE_SIZE;
use privet_protocol::{Op, Pattern, Width};

use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);
const C: Pattern = Pattern(0xc3);

const FAULT_PATH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn, kvm_mmu_faultin_pfn_gmem";
const TWO_BACKINGS: &str = "Documentation/virt/kvm/api.rst 4.140 KVM_SET_USER_MEMORY_REGION2";
const CONVERSIONS: &str = "x86/private_mem_conversions_test: guest_test_explicit_conversion";

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "access.guest_and_host_share_memory",
            Types::WITHOUT_PRIVATE_MEMORY,
            "Guest and host see each other's writes to a slot, at every width and offset.",
            |t| shared_both_ways(t, Backing::HostOnly),
        )
        .basis(&["Documentation/virt/kvm/api.rst 4.35 KVM_SET_USER_MEMORY_REGION"]),
        Row::new(
            "access.copy_on_write",
            Types::UNENCRYPTED,
            "Pages that the host's process has lent to a child and has back are read-only in the host until they are \
             written: the guest reads them, and its own store after that arrives, for guest and host.",
            copy_on_write,
        )
        .basis(&[
            "arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_map_handle_target_level",
            "virt/kvm/kvm_main.c: hva_to_pfn_slow",
        ]),
        Row::new(
            "access.shared_write_is_visible",
            Types::WITH_PRIVATE_MEMORY,
            "Where the attribute says shared, guest and host see each other's writes, at every width and offset.",
            |t| shared_both_ways(t, Backing::HostAndGuestMemfd),
        )
        .basis(&[FAULT_PATH, TWO_BACKINGS])
        .upstream(CONVERSIONS)
        .exceeds("priv_memfd_test: SMSAT")
        .exceeds("x86/tdx_shared_mem_test: verify_shared_mem"),
        Row::new(
            "access.private_write_is_invisible",
            Types::KEEPING_PRIVATE_CONTENT,
            "A private write reaches the guest_memfd only: the host's shared view keeps what it had, and so does \
             the guest's when the page becomes shared again.",
            private_write_is_invisible,
        )
        .basis(&[FAULT_PATH, TWO_BACKINGS])
        .upstream(CONVERSIONS)
        .upstream("priv_memfd_test: PMPAT, PSAT"),
        Row::new(
            "access.host_write_is_invisible_to_private",
            Types::WITH_PRIVATE_MEMORY,
            "What the host writes into its shared view of a private page never shows in the guest.",
            host_write_is_invisible,
        )
        .basis(&[FAULT_PATH, TWO_BACKINGS])
        .upstream(CONVERSIONS)
        .upstream("priv_memfd_test: SPAT"),
        Row::new(
            "access.fresh_private_memory_is_zero",
            Types::UPM,
            "Private pages that nobody has written read as zero, whatever the shared backing holds.",
            fresh_is_zero,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_get_folio, clear_highpage"]),
        Row::new(
            "access.attribute_alone_decides",
            Types::UPM,
            "The same GVA reads the one backing before a flip of the attribute and the other after it, without \
             any exit: in a UPM VM there is no mismatch.",
            attribute_alone_decides,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_page_fault sets PFERR_PRIVATE_ACCESS from the attribute"]),
        Row::new(
            "access.aliases_lead_to_one_page",
            Types::UPM,
            "Both aliases of a page reach the backing that the attribute names.",
            aliases_lead_to_one_page,
        )
        .basis(&[FAULT_PATH]),
        Row::new(
            "access.code_runs_from_private_memory",
            Types::UPM,
            "The guest executes code from a private page, other code from the shared page behind the same GVA, \
             and the attribute alone says which.",
            code_runs_from_private_memory,
        )
        .basis(&["RFC V3 private_mem_test (Annapurve, 2022): the guest executes from private memory", FAULT_PATH])
        .upstream("private_mem_test: guest_conv_test_fn_explicit"),
        Row::new(
            "access.compare_exchange_is_private",
            Types::UPM,
            "A locked compare-and-exchange on a private page acts on the guest_memfd: it compares with what is \
             there and not with the shared view.",
            compare_exchange_is_private,
        )
        .basis(&[FAULT_PATH]),
        Row::new(
            "access.vcpus_share_private_memory",
            Types::WITH_PRIVATE_MEMORY,
            "What one vCPU writes privately another one reads, and the host does not.",
            vcpus_share_private_memory,
        )
        .basis(&[FAULT_PATH])
        .exceeds("x86/tdx_vm_test: verify_host_reading_private_mem"),
        Row::new(
            "access.private_content_survives_the_slot",
            Types::KEEPING_PRIVATE_CONTENT,
            "Deleting a slot and binding its guest_memfd again keeps attribute and private content.",
            content_survives_the_slot,
        )
        .basis(&[
            "virt/kvm/guest_memfd.c: kvm_gmem_unbind leaves the file alone",
            "virt/kvm/kvm_main.c: mem_attr_array",
        ]),
    ];
    for width in [Width::B2, Width::B4, Width::B8] {
        let bytes = width.bytes();
        rows.push(
            Row::new(
                format!("access.straddle_private_then_shared.b{bytes}"),
                Types::ALL_BUT_PLAIN,
                "One access over the end of a private page into a shared one reaches both backings, at every \
                 possible split.",
                move |t| straddle(t, width, true),
            )
            .basis(&[FAULT_PATH]),
        );
        rows.push(
            Row::new(
                format!("access.straddle_shared_then_private.b{bytes}"),
                Types::ALL_BUT_PLAIN,
                "One access over the end of a shared page into a private one reaches both backings, at every \
                 possible split.",
                move |t| straddle(t, width, false),
            )
            .basis(&[FAULT_PATH]),
        );
    }
    for width in Width::ALL {
        rows.push(
            Row::new(
                format!("access.private_width.b{}", width.bytes()),
                Types::WITH_PRIVATE_MEMORY,
                "Accesses of one width at every offset of a private word change exactly their bytes, in the \
                 guest_memfd only.",
                move |t| private_width(t, width),
            )
            .basis(&[FAULT_PATH]),
        );
    }
    rows.extend(shadow_paging::rows());
    rows.extend(written_by_kvm::rows());
    rows.extend(encrypted::rows());
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

fn shared_both_ways(t: &Case, backing: Backing) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2).backing(backing)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(0), 2, A, 0)?;
    v.fill(range.shared_gva(0), 2, B, 0)?;
    range.host_expect(range.all(), B)?;
    for width in Width::ALL {
        for offset in 0..8 {
            let value = 0x8796_a5b4_c3d2_e1f0_u64.rotate_left(offset as u32);
            range.host().write_u64(0, u64::MAX)?;
            range.host().write_u64(8, u64::MAX)?;
            v.write(range.shared_gva(0) + offset, width, value)?;
            let mut bytes = [0; 16];
            range.host().read(0, &mut bytes)?;
            let mut expected = [0xff; 16];
            let at = offset as usize..(offset + width.bytes()) as usize;
            expected[at].copy_from_slice(&value.to_le_bytes()[..width.bytes() as usize]);
            expect_eq("the bytes that the host sees after a guest write", &bytes, &expected)?;
            v.expect_read(range.shared_gva(0) + offset, width, width.truncate(value))?;
        }
    }
    Ok(())
}

fn private_write_is_invisible(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(3)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(0), 3, A, 0)?;

    g.make_private(0, 1..2)?;
    v.fill(range.private_gva(1), 1, B, 1)?;
    v.expect(range.private_gva(1), 1, B, 1)?;
    range.host_expect(range.all(), A)?;
    // The neighbours are shared and untouched.
    v.expect(range.shared_gva(0), 1, A, 0)?;
    v.expect(range.shared_gva(2), 1, A, 2)?;

    g.make_shared(0, 1..2)?;
    v.expect(range.shared_gva(1), 1, A, 1)?;
    v.fill(range.shared_gva(1), 1, C, 1)?;
    range.host_expect(1..2, C)?;
    // Nor has the shared write reached the guest_memfd.
    g.make_private(0, 1..2)?;
    v.expect(range.private_gva(1), 1, B, 1)
}

fn copy_on_write(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    for round in 0..3 {
        lend_memory()?;
        let expected = if round == 0 { A.word(0) } else { round };
        v.expect_read(range.shared_gva(0), Width::B8, expected)?;
        v.write(range.shared_gva(0), Width::B8, round + 1)?;
        expect_eq("the host's view", &range.host().read_u64(0)?, &(round + 1))?;
    }
    v.expect(range.shared_gva(1), 1, A, 1)
}

fn host_write_is_invisible(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, A, 0)?;
    range.host_fill(0..1, B)?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    range.host_expect(0..1, B)
}

fn fresh_is_zero(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(16)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    // Half of the pages are allocated beforehand, half on first touch.
    range.allocate(0..8)?;
    range.set_private(g.vm(), range.all())?;
    v.expect(range.private_gva(0), 16, Pattern::ZERO, 0)?;
    range.host_expect(range.all(), A)
}

fn attribute_alone_decides(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let gva = range.private_gva(0);
    let exits = t.trace().exits();
    v.write(gva, Width::B8, 0x5a5a)?;
    range.set_private(g.vm(), 0..1)?;
    v.write(gva, Width::B8, 0x9191)?;
    for _ in 0..8 {
        range.set_shared(g.vm(), 0..1)?;
        v.expect_read(gva, Width::B8, 0x5a5a)?;
        range.set_private(g.vm(), 0..1)?;
        v.expect_read(gva, Width::B8, 0x9191)?;
    }
    expect_no_exit_but(t, exits, 2 + 16)
}

fn aliases_lead_to_one_page(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 1..2)?;
    for page in 0..2 {
        v.fill(range.private_gva(page), 1, A, page)?;
        v.expect(range.shared_gva(page), 1, A, page)?;
        v.fill(range.shared_gva(page), 1, B, page)?;
        v.expect(range.private_gva(page), 1, B, page)?;
    }
    range.host_expect(0..1, B)?;
    range.host_expect(1..2, Pattern::ZERO)
}

/// `lea rax, [rdi + add]; ret`
fn add_function(add: u8) -> [u8; 5] {
    assert!(add < 0x80, "the displacement is a signed byte");
    [0x48, 0x8d, 0x47, add, 0xc3]
}

fn code_runs_from_private_memory(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let code = range.private_gva(0);
    let expect_sum = |argument: u64, add: u8| {
        let [sum, ..] = v.call(Op::Execute { gva: code.0, argument })?;
        expect_eq("what the code at the GVA returned", &sum, &(argument + u64::from(add)))
    };
    v.write_bytes(code, &add_function(1))?;
    expect_sum(100, 1)?;
    range.set_private(g.vm(), 0..1)?;
    v.write_bytes(code, &add_function(2))?;
    expect_sum(200, 2)?;
    range.set_shared(g.vm(), 0..1)?;
    expect_sum(300, 1)?;
    range.set_private(g.vm(), 0..1)?;
    expect_sum(400, 2)?;

    let mut bytes = [0; 5];
    range.host().read(0, &mut bytes)?;
    expect_eq("the code in the host's shared view", &bytes, &add_function(1))
}

fn compare_exchange_is_private(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host().write_u64(0, 1)?;
    range.set_private(g.vm(), 0..1)?;
    let exchange =
        |expected, new| Ok::<_, Stop>(v.call(Op::CompareExchange { gva: range.private_gva(0).0, expected, new })?[0]);
    // The shared view holds 1, the private page 0: a comparison with 1 must fail.
    expect_eq("what was there before", &exchange(1, 7)?, &0)?;
    v.expect_read(range.private_gva(0), Width::B8, 0)?;
    expect_eq("what was there before", &exchange(0, 7)?, &0)?;
    v.expect_read(range.private_gva(0), Width::B8, 7)?;
    expect_eq("the host's shared view", &range.host().read_u64(0)?, &1)
}

fn vcpus_share_private_memory(t: &Case) -> Outcome {
    let g = t.guest().vcpus(4).range(RangeSpec::new(4)).boot()?;
    let range = g.range(0);
    range.host_fill(range.all(), A)?;
    g.make_private(0, range.all())?;
    for (page, v) in g.vcpus().iter().enumerate() {
        v.fill(range.private_gva(page as u64), 1, B, page as u64)?;
    }
    for v in g.vcpus() {
        v.expect(range.private_gva(0), 4, B, 0)?;
    }
    range.host_expect(range.all(), A)
}

fn content_survives_the_slot(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, B, 0)?;
    range.reinstall(g.vm())?;
    v.expect(range.private_gva(0), 1, B, 0)?;
    v.expect(range.shared_gva(1), 1, A, 1)?;
    range.host_expect(range.all(), A)
}

fn straddle(t: &Case, width: Width, private_first: bool) -> Outcome {
    let apart = t.platform().has_private_memory();
    let g = t.guest().range(RangeSpec::new(2).backing(t.platform().backing())).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let [private, shared] = if private_first { [0, 1] } else { [1, 0] };
    g.make_private(0, private..private + 1)?;
    // Where the guest says what is private, it says it of each page of one mapping.
    let entry = v.read_entry(range.private_gva(private))?;
    v.write_entry(range.shared_gva(private), entry)?;
    for before in 1..width.bytes() {
        let start = PAGE_SIZE - before;
        let value = width.truncate(0x1122_3344_5566_7788_u64.rotate_left(before as u32 * 4));
        v.fill(range.shared_gva(0), 2, B, 0)?;
        if apart {
            range.host_fill(private..private + 1, A)?;
        }
        v.write(range.shared_gva(0) + start, width, value)?;
        v.expect_read(range.shared_gva(0) + start, width, value)?;

        let in_private = if private_first { 0..before } else { before..width.bytes() };
        for (index, byte) in value.to_le_bytes()[..width.bytes() as usize].iter().enumerate() {
            let at = start + index as u64;
            if in_private.contains(&(index as u64)) {
                v.expect_read(range.private_gva(0) + at, Width::B1, u64::from(*byte))?;
            } else {
                let mut seen = [0];
                range.host().read(at, &mut seen)?;
                expect_eq("a byte of the shared page in the host's view", &seen[0], byte)?;
            }
        }
        // Nothing beside them has changed, in either backing.
        if apart {
            range.host_expect(private..private + 1, A)?;
        }
        let beside = if private_first { PAGE_SIZE + 8 } else { 0 };
        expect_eq("a word beside them in the host's view", &range.host().read_u64(beside)?, &B.word(shared))?;
        v.expect_read(range.private_gva(private) + (PAGE_SIZE / 2), Width::B8, B.word(private))?;
    }
    Ok(())
}

fn private_width(t: &Case, width: Width) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    g.make_private(0, 0..1)?;
    for offset in 0..8 {
        let value = 0x8796_a5b4_c3d2_e1f0_u64.rotate_left(offset as u32);
        v.write(range.private_gva(0), Width::B8, u64::MAX)?;
        v.write(range.private_gva(0) + 8, Width::B8, u64::MAX)?;
        v.write(range.private_gva(0) + offset, width, value)?;
        let mut expected = vec![0xff; 16];
        let at = offset as usize..(offset + width.bytes()) as usize;
        expected[at].copy_from_slice(&value.to_le_bytes()[..width.bytes() as usize]);
        expect_eq("the bytes of the private page", &v.read_bytes(range.private_gva(0), 16)?, &expected)?;
        v.expect_read(range.private_gva(0) + offset, width, width.truncate(value))?;
    }
    range.host_expect(range.all(), A)
}
