//! `INIT_MEM_REGION`: the pages that a TD begins with.

use std::sync::Arc;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::sev::Memory;
use privet_harness::tdx::Region;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};

use super::td::{MEMORY, PAGES, Td, expect_done, expect_refused_by_kvm, region};
use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

const REGION: &str = "arch/x86/kvm/vmx/tdx.c: tdx_vcpu_init_mem_region, tdx_gmem_post_populate";
const POPULATE: &str = "virt/kvm/guest_memfd.c: kvm_gmem_populate";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.region.parameters",
            Types::TDX,
            "INIT_MEM_REGION with a flag that there is not, an address that is no page's, no pages, more than there are \
             addresses, or pages that reach the shared bit, is EINVAL, and the structure stays as it was.",
            parameters,
        )
        .basis(&[REGION]),
        Row::new(
            "launch.region.last_private_page",
            Types::TDX,
            "The page before the shared bit, which is the last of all that can be private, can be added: alone, and with the \
             next one neither is.",
            last_private_page,
        )
        .basis(&[REGION]),
        Row::new(
            "launch.region.too_early",
            Types::TDX,
            "INIT_MEM_REGION through a vCPU that is not initialized is EINVAL.",
            too_early,
        )
        .basis(&[REGION]),
        Row::new(
            "launch.region.memory",
            Types::TDX,
            "Pages that are shared, or in no slot, are EINVAL; a source that is nowhere is EFAULT.",
            memory,
        )
        .basis(&[REGION, POPULATE]),
        Row::new(
            "launch.region.twice",
            Types::TDX,
            "A page that the TD has already is EIO, and the TD goes on being built.",
            twice,
        )
        .basis(&[REGION, "arch/x86/kvm/mmu/mmu.c: kvm_tdp_mmu_map_private_pfn"]),
        Row::new(
            "launch.region.progress",
            Types::TDX,
            "Of pages that are private for a part only, those before the first shared one are added: what is left to be \
             done is told, in bytes, pages and source, although the command fails. Made private, the rest is added by the \
             same structure.",
            progress,
        )
        .basis(&[REGION]),
        Row::new(
            "launch.region.any_vcpu",
            Types::TDX,
            "Pages can be added through any vCPU, measured or not, in any order, and with any source: the host's view of \
             the same page, too. That stays as it is.",
            any_vcpu,
        )
        .basis(&[REGION]),
        Row::new(
            "launch.region.taken_back",
            Types::TDX,
            "A page that was added and is made shared before FINALIZE_VM is the host's again: made private again, it can \
             be added again.",
            taken_back,
        )
        .basis(&["arch/x86/kvm/vmx/tdx.c: tdx_sept_remove_leaf_spte"]),
    ]
}

fn parameters(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let view = td.memory(PAGES)?;
    let sound = region(&view, 1);
    let shared_bit = Gpa(1 << 47);
    let refused = [
        ("flag 1", Region { flags: 2, ..sound }),
        ("flag 31", Region { flags: 1 << 31, ..sound }),
        ("no source", Region { source: Memory::NONE, ..sound }),
        ("a source that is no page", Region { source: Memory::In(&view, 1), ..sound }),
        ("a GPA that is no page", Region { gpa: MEMORY + 1, ..sound }),
        ("no pages", Region { pages: 0, ..sound }),
        ("pages beyond all addresses", Region { source: Memory::Nowhere(!0xfff), pages: !0 >> 12, ..sound }),
        ("as many bytes as none", Region { source: Memory::Nowhere(!0xfff), pages: 1 << 52, ..sound }),
        ("the shared bit", Region { gpa: shared_bit, ..sound }),
        ("up to the shared bit", Region { gpa: Gpa(shared_bit.0 - PAGE_SIZE), pages: 2, ..sound }),
    ];
    for (what, region) in refused {
        let mut left = region;
        expect_refused_by_kvm(what, td.commands().init_mem_region(&vcpu, &mut left)?, Errno::EINVAL)?;
        expect_eq(what, &(left.gpa, left.pages), &(region.gpa, region.pages))?;
    }
    Ok(())
}

fn last_private_page(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let view = Arc::new(Mapping::anonymous(2 * PAGE_SIZE)?);
    let gmem = td.vm.create_guest_memfd(PAGE_SIZE, 0)?;
    let gpa = Gpa((1 << 47) - PAGE_SIZE);
    td.vm.add_slot(SlotSpec::shared(4, gpa, PageCount(1), &view).with_gmem(&gmem, 0))?;
    td.vm.set_private(gpa, PageCount(1))?;
    let mut two = Region { gpa, pages: 2, ..region(&view, 2) };
    expect_refused_by_kvm("one more", td.commands().init_mem_region(&vcpu, &mut two)?, Errno::EINVAL)?;
    expect_eq("what is left of that", &(two.gpa, two.pages), &(gpa, 2))?;
    expect_done("INIT_MEM_REGION", td.commands().init_mem_region(&vcpu, &mut Region { gpa, ..region(&view, 1) })?)
}

fn too_early(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.created_vcpu(t, 0)?;
    let view = td.memory(PAGES)?;
    let result = td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?;
    expect_refused_by_kvm("before INIT_VCPU", result, Errno::EINVAL)
}

fn memory(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let view = td.memory(1)?;
    let mut shared = Region { gpa: MEMORY + PAGE_SIZE, ..region(&view, 1) };
    expect_refused_by_kvm("shared", td.commands().init_mem_region(&vcpu, &mut shared)?, Errno::EINVAL)?;
    let mut nowhere = Region { gpa: MEMORY + PAGES * PAGE_SIZE, ..region(&view, 1) };
    expect_refused_by_kvm("in no slot", td.commands().init_mem_region(&vcpu, &mut nowhere)?, Errno::EINVAL)?;
    let mut no_source = Region { source: Memory::Nowhere(0x1000), ..region(&view, 1) };
    expect_refused_by_kvm("no source", td.commands().init_mem_region(&vcpu, &mut no_source)?, Errno::EFAULT)?;
    expect_done("the page itself", td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?)
}

fn twice(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let view = td.memory(2)?;
    expect_done("once", td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?)?;
    expect_refused_by_kvm("twice", td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?, Errno::EIO)?;
    let mut other = Region { gpa: MEMORY + PAGE_SIZE, ..region(&view, 1) };
    expect_done("another page", td.commands().init_mem_region(&vcpu, &mut other)?)?;
    expect_done("FINALIZE_VM", td.commands().finalize())
}

fn progress(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let view = td.memory(3)?;
    let mut left = region(&view, 5);
    expect_refused_by_kvm("5 of which 3 are private", td.commands().init_mem_region(&vcpu, &mut left)?, Errno::EINVAL)?;
    let Memory::In(_, offset) = left.source else { unreachable!("it is in a mapping") };
    expect_eq("what is left", &(left.gpa, left.pages, offset), &(MEMORY + 3 * PAGE_SIZE, 2, 3 * PAGE_SIZE))?;
    td.vm.set_private(MEMORY + 3 * PAGE_SIZE, PageCount(2))?;
    expect_done("the rest", td.commands().init_mem_region(&vcpu, &mut left)?)?;
    expect_eq("what is left", &(left.gpa, left.pages), &(MEMORY + 5 * PAGE_SIZE, 0))
}

fn any_vcpu(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpus = [td.vcpu(t, 0)?, td.vcpu(t, 1)?];
    let view = td.memory(PAGES)?;
    view.write(0, &[0xa5; PAGE_SIZE as usize])?;
    for (index, page) in [3, 0, 7, 1].into_iter().enumerate() {
        let flags = index as u32 & 1;
        let mut one = Region { gpa: MEMORY + page * PAGE_SIZE, flags, ..region(&view, 1) };
        expect_done("a page", td.commands().init_mem_region(&vcpus[index / 2], &mut one)?)?;
    }
    let mut seen = [0; PAGE_SIZE as usize];
    view.read(0, &mut seen)?;
    expect_eq("the source", &seen, &[0xa5; PAGE_SIZE as usize])?;
    expect_done("FINALIZE_VM", td.commands().finalize())
}

fn taken_back(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let view = td.memory(2)?;
    expect_done("two pages", td.commands().init_mem_region(&vcpu, &mut region(&view, 2))?)?;
    td.vm.set_shared(MEMORY, PageCount(1))?;
    let refused = td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?;
    expect_refused_by_kvm("while it is shared", refused, Errno::EINVAL)?;
    td.vm.set_private(MEMORY, PageCount(1))?;
    expect_done("again", td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?)?;
    expect_done("FINALIZE_VM", td.commands().finalize())
}
