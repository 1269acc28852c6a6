//! Group `attributes`: which pages userspace can declare private, and what the declaration does.

use std::sync::{Arc, Barrier};
use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::platform::ByType;
use privet_harness::test_range::{RangeSpec, TEST_BASE};
use privet_harness::uapi::{Capability, KVM_SET_MEMORY_ATTRIBUTES, MEMORY_ATTRIBUTE_PRIVATE};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_protocol::{Pattern, Width};

use crate::counters::Counters;
use crate::expect::{expect_errno, expect_ok};
use crate::random::Random;
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const PRIVATE: u64 = MEMORY_ATTRIBUTE_PRIVATE;
const TIB: u64 = 1 << 40;

const IOCTL: &str = "virt/kvm/kvm_main.c: kvm_vm_ioctl_set_mem_attributes";
const SET: &str = "virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes";
const UNCHANGED: &str = "virt/kvm/kvm_main.c: kvm_range_has_memory_attributes";

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = guest_rows().into_iter().map(|row| row.needs(Need::GuestCode)).collect();
    rows.extend([
        Row::new("attributes.flags", Types::ALL, "There are no flags: each of the 64 bits is EINVAL.", flags)
            .basis(&[IOCTL]),
        Row::new(
            "attributes.no_size_and_wrap",
            Types::ALL,
            "No pages at all, and a range that wraps, are EINVAL.",
            no_size_and_wrap,
        )
        .basis(&[IOCTL]),
        Row::new(
            "attributes.unaligned",
            Types::ALL,
            "Address and size must be multiples of the page size: EINVAL.",
            unaligned,
        )
        .basis(&[IOCTL]),
        Row::new("attributes.unreadable_argument", Types::ALL, "An argument that cannot be read is EFAULT.", |t| {
            expect_errno("the ioctl at address 0", t.vm()?.ioctl_raw(KVM_SET_MEMORY_ATTRIBUTES, 0), Errno::EFAULT)
        })
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_ioctl, KVM_SET_MEMORY_ATTRIBUTES"]),
        Row::new(
            "attributes.unsupported",
            Types::ALL,
            "PRIVATE is the only attribute, and there is none in a VM without private memory: every other of the 64 \
             bits is EINVAL, alone and with PRIVATE.",
            unsupported,
        )
        .basis(&[IOCTL, "virt/kvm/kvm_main.c: kvm_supported_mem_attributes"]),
        Row::new(
            "attributes.clearing_suits_every_type",
            Types::PLAIN,
            "Clearing all attributes succeeds in VMs of every type that the host has, over any range.",
            clearing_suits_every_type,
        )
        .basis(&[IOCTL, UNCHANGED]),
        Row::new(
            "attributes.sixteen_tib_of_nothing",
            Types::UPM,
            "Clearing the attributes of 16 TiB that have none takes no time, between two private pages, which \
             stay private; so does all of the address space.",
            sixteen_tib_of_nothing,
        )
        .basis(&["soft lockup over TiB ranges (Fixes: 5a475554db1e)", UNCHANGED])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
        Row::new(
            "attributes.one_gib_on_and_off",
            Types::UPM,
            "All of a slot of 1 GiB becomes private and shared again within the row's limit.",
            one_gib_on_and_off,
        )
        .basis(&["soft lockup over TiB ranges (Fixes: 5a475554db1e)", SET])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
        Row::new(
            "attributes.one_page_in_4_gib",
            Types::UPM,
            "Clearing the attributes of 4 GiB finds the one private page in it, within the row's limit.",
            one_page_in_4_gib,
        )
        .basis(&["soft lockup over TiB ranges (Fixes: 5a475554db1e)", SET])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
    ]);
    let unknown = Row::new(
        "attributes.unknown_to_the_kernel",
        Types::PLAIN,
        "A kernel without memory attributes does not know the ioctl: ENOTTY, whatever the argument is.",
        unknown_to_the_kernel,
    )
    .basis(&["virt/kvm/kvm_main.c: CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES"])
    .needs(Need::NoSystemCapability(Capability::MEMORY_ATTRIBUTES));
    let rows =
        rows.into_iter().map(|row| row.needs(Need::SystemCapability(Capability::MEMORY_ATTRIBUTES, PRIVATE as i32)));
    rows.chain([unknown]).collect()
}

fn guest_rows() -> Vec<Row> {
    vec![
        Row::new(
            "attributes.same_value_zaps_nothing",
            Types::UPM,
            "Setting what a range has already leaves its mappings alone, private and shared; a change takes away \
             those of exactly the pages that change.",
            same_value_zaps_nothing,
        )
        .basis(&[UNCHANGED, "arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes"]),
        Row::new(
            "attributes.refused_changes_nothing",
            Types::UPM,
            "A refused call over private and shared pages leaves each as it was, and mapped.",
            refused_changes_nothing,
        )
        .basis(&[IOCTL]),
        Row::new(
            "attributes.no_slot_needed",
            Types::UPM,
            "GPAs without a slot can be made private, above what CPUs can reach and up to the last page but one \
             too; a slot that comes later is private there, and no limit of slots applies.",
            no_slot_needed,
        )
        .basis(&[SET, "Documentation/virt/kvm/api.rst 4.141 KVM_SET_MEMORY_ATTRIBUTES"]),
        Row::new(
            "attributes.one_of_two_pages",
            Types::UPM,
            "Two pages become private or shared together where one of them is that already, the first or the second.",
            one_of_two_pages,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_range_has_memory_attributes"]),
        Row::new(
            "attributes.survive_the_slot",
            Types::UPM,
            "Pages stay private when their slot and its guest_memfd are gone for new ones.",
            survive_the_slot,
        )
        .basis(&["virt/kvm/kvm_main.c: mem_attr_array belongs to the VM"]),
        Row::new(
            "attributes.any_ranges",
            Types::UPM,
            "After 60 random changes of ranges in 64 pages and two slots, the guest finds in each page the \
             backing of the last change that covered it.",
            any_ranges,
        )
        .basis(&[SET]),
        Row::new(
            "attributes.setters_race",
            Types::UPM,
            "Two threads make one range private and shared 100 times each: whoever comes last, all of its pages \
             end up alike.",
            setters_race,
        )
        .basis(&[SET]),
    ]
}

/// The arguments of a call: GPA, size, attributes, flags.
type Arguments = (u64, u64, u64, u64);

/// The attributes that can be set.
fn supported(t: &Case) -> u64 {
    t.by_type(ByType { plain: 0, upm: PRIVATE, sev: 0, sev_es: 0, snp: PRIVATE, tdx: PRIVATE })
}

fn flags(t: &Case) -> Outcome {
    let calls = (0..64).map(|bit| (TEST_BASE.0, PAGE_SIZE, supported(t), 1 << bit));
    refused(t, &calls.collect::<Vec<_>>())
}

fn no_size_and_wrap(t: &Case) -> Outcome {
    let to_the_end = 0_u64.wrapping_sub(TEST_BASE.0);
    let ranges = [(TEST_BASE.0, 0), (0, 0), (TEST_BASE.0, to_the_end), (0_u64.wrapping_sub(PAGE_SIZE), PAGE_SIZE)];
    refused(t, &ranges.map(|(gpa, size)| (gpa, size, supported(t), 0)))
}

fn unaligned(t: &Case) -> Outcome {
    let ranges = |off| [(TEST_BASE.0 + off, PAGE_SIZE), (TEST_BASE.0, PAGE_SIZE + off), (TEST_BASE.0, off)];
    for off in [1, 8, PAGE_SIZE / 2, PAGE_SIZE - 1] {
        refused(t, &ranges(off).map(|(gpa, size)| (gpa, size, supported(t), 0)))?;
    }
    Ok(())
}

fn unsupported(t: &Case) -> Outcome {
    let others = (0..64).map(|bit| 1 << bit).filter(|bits| bits & supported(t) == 0);
    let calls = others.flat_map(|bits| [bits, bits | PRIVATE]).map(|bits| (TEST_BASE.0, PAGE_SIZE, bits, 0));
    refused(t, &calls.collect::<Vec<_>>())
}

/// Expects EINVAL of every call, and that a call with nothing wrong succeeds.
fn refused(t: &Case, calls: &[Arguments]) -> Outcome {
    let vm = t.vm()?;
    for &(gpa, size, attributes, flags) in calls {
        expect_errno(
            &format!("attributes {attributes:#x}, flags {flags:#x} for {size:#x} bytes at gpa {gpa:#x}"),
            vm.set_memory_attributes_raw(gpa, size, attributes, flags),
            Errno::EINVAL,
        )?;
    }
    let nothing_wrong = vm.set_memory_attributes_raw(TEST_BASE.0, PAGE_SIZE, supported(t), 0);
    expect_ok("a call with nothing wrong", nothing_wrong)
}

fn unknown_to_the_kernel(t: &Case) -> Outcome {
    let vm = t.vm()?;
    for attributes in [0, PRIVATE] {
        let what = format!("KVM_SET_MEMORY_ATTRIBUTES with {attributes:#x}");
        expect_errno(&what, vm.set_memory_attributes_raw(TEST_BASE.0, PAGE_SIZE, attributes, 0), Errno::ENOTTY)?;
    }
    expect_errno("the ioctl at address 0", vm.ioctl_raw(KVM_SET_MEMORY_ATTRIBUTES, 0), Errno::ENOTTY)
}

fn clearing_suits_every_type(t: &Case) -> Outcome {
    let offered = (0..32).filter(|kvm_type| *kvm_type == 0 || t.host().vm_types() & 1 << kvm_type != 0);
    for kvm_type in offered {
        let vm = expect_ok(&format!("KVM_CREATE_VM of type {kvm_type}"), Vm::try_create(t.host(), kvm_type))?;
        for (gpa, size) in [(0, PAGE_SIZE), (TEST_BASE.0, 64 * PAGE_SIZE), (0, 0_u64.wrapping_sub(PAGE_SIZE))] {
            expect_ok(
                &format!("clearing the attributes of {size:#x} bytes at gpa {gpa:#x} in a VM of type {kvm_type}"),
                vm.set_memory_attributes_raw(gpa, size, 0, 0),
            )?;
        }
    }
    Ok(())
}

fn sixteen_tib_of_nothing(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let (start, end) = (Gpa(TIB), Gpa(17 * TIB));
    vm.set_private(Gpa(start.0 - PAGE_SIZE), PageCount(1))?;
    vm.set_private(end, PageCount(1))?;
    for _ in 0..100 {
        vm.set_shared(start, PageCount::of_bytes(end.0 - start.0))?;
    }
    let vcpu = vm.create_vcpu(0)?;
    // Slots may not reach this far up. Mapping memory ahead needs none to tell private pages from shared ones.
    for (gpa, errno) in [
        (Gpa(start.0 - PAGE_SIZE), Errno::EFAULT),
        (start, Errno::ENOENT),
        (Gpa(end.0 - PAGE_SIZE), Errno::ENOENT),
        (end, Errno::EFAULT),
    ] {
        expect_errno(&format!("mapping gpa {gpa} ahead"), vcpu.pre_fault(gpa, PageCount(1))?.result, errno)?;
    }
    vm.set_shared(end, PageCount(1))?;
    vm.set_shared(Gpa(start.0 - PAGE_SIZE), PageCount(1))?;
    vm.set_shared(Gpa(0), PageCount::of_bytes(0_u64.wrapping_sub(PAGE_SIZE)))
}

fn one_gib_on_and_off(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let (start, all) = (TEST_BASE, PageCount::of_bytes(1 << 30));
    let file = vm.create_guest_memfd(all.bytes(), 0)?;
    let slot = SlotSpec::shared(0, start, all, &Arc::new(Mapping::anonymous(all.bytes())?)).with_gmem(&file, 0);
    let vcpu = vm.create_vcpu(0)?;
    // Without the slot, mapping memory ahead tells private pages (EFAULT) from shared ones (ENOENT).
    for (private, errno) in [(true, Errno::EFAULT), (false, Errno::ENOENT)] {
        vm.add_slot(slot.clone())?;
        if private {
            vm.set_private(start, all)?
        } else {
            vm.set_shared(start, all)?
        }
        vm.delete_slot(slot.slot)?;
        for page in [0, 1, all.0 / 2, all.0 - 1] {
            let gpa = start + PageCount(page);
            expect_errno(&format!("mapping gpa {gpa} ahead"), vcpu.pre_fault(gpa, PageCount(1))?.result, errno)?;
        }
        let beyond = vcpu.pre_fault(start + all, PageCount(1))?.result;
        expect_errno("mapping the page beyond ahead", beyond, Errno::ENOENT)?;
    }
    Ok(())
}

fn one_page_in_4_gib(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let page = TEST_BASE + PageCount::of_bytes(3 << 30);
    vm.set_private(page, PageCount(1))?;
    let vcpu = vm.create_vcpu(0)?;
    expect_errno("mapping the private page ahead", vcpu.pre_fault(page, PageCount(1))?.result, Errno::EFAULT)?;
    vm.set_shared(TEST_BASE, PageCount::of_bytes(4 << 30))?;
    expect_errno("mapping the shared page ahead", vcpu.pre_fault(page, PageCount(1))?.result, Errno::ENOENT)
}

fn same_value_zaps_nothing(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(16)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    range.set_private(g.vm(), 0..8)?;
    v.fill(range.private_gva(0), 16, B, 0)?;
    let mapped = Counters::of_vm(&g)?;
    mapped.expect_growth("pages_4k", 0, || {
        range.set_private(g.vm(), 0..8)?;
        range.set_private(g.vm(), 3..5)?;
        range.set_shared(g.vm(), 8..16)?;
        range.set_shared(g.vm(), 15..16)
    })?;
    mapped.expect_growth("pages_4k", -2, || range.set_shared(g.vm(), 2..4))?;
    mapped.expect_growth("pages_4k", -3, || range.set_private(g.vm(), 10..13))
}

fn refused_changes_nothing(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(4)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    range.set_private(g.vm(), 0..2)?;
    v.fill(range.private_gva(0), 2, B, 0)?;
    v.expect(range.private_gva(2), 2, A, 2)?;
    Counters::of_vm(&g)?.expect_growth("pages_4k", 0, || {
        for (size, attributes, flags) in [
            (4 * PAGE_SIZE, PRIVATE | 1, 0),
            (4 * PAGE_SIZE, PRIVATE, 1),
            (4 * PAGE_SIZE, 0, 1 << 3),
            (4 * PAGE_SIZE + 8, PRIVATE, 0),
            (0_u64.wrapping_sub(PAGE_SIZE), PRIVATE, 0),
        ] {
            let refused = g.vm().set_memory_attributes_raw(range.gpa(0).0, size, attributes, flags);
            expect_errno("a call with something wrong", refused, Errno::EINVAL)?;
        }
        Ok(())
    })?;
    v.expect(range.private_gva(0), 2, B, 0)?;
    v.expect(range.private_gva(2), 2, A, 2)
}

fn no_slot_needed(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(4)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = &range.slots()[0];
    range.host_fill(range.all(), A)?;
    g.vm().delete_slot(slot.slot)?;
    for gpa in [Gpa(1 << 52), Gpa(1 << 63), Gpa(0_u64.wrapping_sub(2 * PAGE_SIZE)), range.gpa(1), Gpa(0x7000_0000)] {
        g.vm().set_private(gpa, PageCount(1))?;
    }
    g.vm().add_slot(slot.clone())?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    v.expect(range.private_gva(1), 1, Pattern::ZERO, 1)?;
    v.expect(range.private_gva(2), 2, A, 2)
}

fn one_of_two_pages(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    for first in [0..1, 1..2] {
        range.set_private(g.vm(), first.clone())?;
        range.set_private(g.vm(), range.all())?;
        v.expect(range.private_gva(0), 2, Pattern::ZERO, 0)?;
        range.set_shared(g.vm(), first)?;
        range.set_shared(g.vm(), range.all())?;
        v.expect(range.shared_gva(0), 2, A, 0)?;
    }
    Ok(())
}

fn survive_the_slot(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(3)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = range.slots()[0].clone();
    range.host_fill(range.all(), A)?;
    range.set_private(g.vm(), 1..2)?;
    v.fill(range.private_gva(1), 1, B, 1)?;
    g.vm().delete_slot(slot.slot)?;
    let other_file = g.vm().create_guest_memfd(3 * PAGE_SIZE, 0)?;
    g.vm().add_slot(slot.clone().with_gmem(&other_file, 0))?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    v.expect(range.private_gva(1), 1, Pattern::ZERO, 1)?;
    v.expect(range.private_gva(2), 1, A, 2)?;
    // The first file has kept what it held.
    g.vm().delete_slot(slot.slot)?;
    g.vm().add_slot(slot)?;
    v.expect(range.private_gva(1), 1, B, 1)
}

fn any_ranges(t: &Case) -> Outcome {
    const PAGES: u64 = 64;
    let g = t.guest().range(RangeSpec::new(PAGES).slots(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(0), PAGES, B, 0)?;

    let mut random = Random::new(t.seed());
    let mut private = [true; PAGES as usize];
    for round in 0..60 {
        let start = random.below(PAGES);
        let end = start + 1 + random.below(PAGES - start);
        let to_private = random.below(2) == 1;
        match to_private {
            true => range.set_private(g.vm(), start..end)?,
            false => range.set_shared(g.vm(), start..end)?,
        }
        private[start as usize..end as usize].fill(to_private);
        if round % 10 != 9 {
            continue;
        }
        for page in 0..PAGES {
            v.expect(range.private_gva(page), 1, if private[page as usize] { B } else { A }, page)?;
        }
    }
    Ok(())
}

fn setters_race(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(32)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(0), 32, B, 0)?;
    for _ in 0..5 {
        let start = Barrier::new(2);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                start.wait();
                (0..20).try_for_each(|_| range.set_shared(g.vm(), range.all()))
            });
            start.wait();
            (0..20).try_for_each(|_| range.set_private(g.vm(), range.all()))?;
            other.join().unwrap_or_else(|_| Err(Stop::Error("the other thread panicked".into())))
        })?;
        let first = v.read(range.private_gva(0), Width::B8)?;
        let seen = if first == A.word(0) { A } else { B };
        v.expect(range.private_gva(0), 32, seen, 0)?;
    }
    Ok(())
}
