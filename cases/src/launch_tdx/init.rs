//! `INIT_VM`: what a TD may be.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_harness::tdx::{Command, HwError, InitVm, SEPT_VE_DISABLE};
use privet_harness::units::{Gpa, PageCount};

use super::td::{Td, expect_done, expect_refused, expect_refused_by_kvm};
use crate::expect::{expect_eq, expect_that};
use crate::row::Row;
use crate::types::Types;

const INIT: &str = "arch/x86/kvm/vmx/tdx.c: tdx_td_init";
const PARAMS: &str = "arch/x86/kvm/vmx/tdx.c: setup_tdparams";
const CPUID: &str = "arch/x86/kvm/vmx/tdx.c: setup_tdparams_cpuids, setup_tdparams_eptp_controls";
const MODULE: &str = "arch/x86/kvm/vmx/tdx.c: __tdx_td_init";

const ADDRESS_SIZES: u32 = 0x8000_0008;
/// More TDs than there are HKIDs anywhere: a KeyID has 15 bits at most (IA32_TME_ACTIVATE).
const MANY: usize = 1 << 15;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new("launch.init.once", Types::TDX, "A second INIT_VM is EINVAL, and the first stays good.", once)
            .basis(&[INIT]),
        Row::new(
            "launch.init.refused",
            Types::TDX,
            "INIT_VM with a flag, with a reserved word, or with the padding set, is EINVAL; with more than 256 leaves of \
             CPUID E2BIG; without memory EFAULT. The VM can still become a TD.",
            refused,
        )
        .basis(&[INIT]),
        Row::new(
            "launch.init.attributes",
            Types::TDX,
            "Each attribute that is not offered is EINVAL, debug and all that would show the TD's registers among them; \
             SEPT_VE_DISABLE is taken.",
            attributes,
        )
        .basis(&[PARAMS]),
        Row::new(
            "launch.init.xfam",
            Types::TDX,
            "Each state that is not offered is EINVAL; those that every TD has need not be asked for.",
            xfam,
        )
        .basis(&[PARAMS]),
        Row::new(
            "launch.init.width",
            Types::TDX,
            "The width of addresses, EAX bits 23:16 of leaf 0x80000008, is 48, or 52 with EPT of five levels; any other, \
             and none, is EINVAL.",
            width,
        )
        .basis(&[CPUID]),
        Row::new(
            "launch.init.unknown_leaf",
            Types::TDX,
            "A leaf of CPUID that is not offered is EINVAL, and so is one that comes twice; leaves that are offered may be \
             left out.",
            unknown_leaf,
        )
        .basis(&[CPUID]),
        Row::new(
            "launch.init.hidden_features",
            Types::TDX,
            "TSX and WAITPKG are EINVAL, although the module may offer them.",
            hidden_features,
        )
        .basis(&["arch/x86/kvm/vmx/tdx.c: tdx_unsupported_cpuid"]),
        Row::new(
            "launch.init.refused_by_the_module",
            Types::TDX,
            "A bit of CPUID that cannot be configured is EINVAL, and hw_error tells that the module refused it. All that \
             was made of the TD is gone again: without that bit, INIT_VM succeeds.",
            refused_by_the_module,
        )
        .basis(&[MODULE]),
        Row::new(
            "launch.init.hkids",
            Types::TDX,
            "TDs are as many as there are HKIDs for guests: one more is ENOSPC, and good when another is closed.",
            hkids,
        )
        .basis(&[MODULE, "arch/x86/virt/vmx/tdx/tdx.c: tdx_guest_keyid_alloc"]),
        Row::new(
            "launch.init.slots",
            Types::TDX,
            "A slot whose last page has the shared bit is refused from INIT_VM on, and was good before; so are slots that \
             are read-only.",
            slots,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_arch_prepare_memory_region", "virt/kvm/kvm_main.c: check_memory_region_flags"]),
    ]
}

/// INIT_VM of a VM that is refused this, and stays as it was.
fn expect_refusal(td: &Td, what: &str, init: &InitVm) -> Outcome {
    expect_refused_by_kvm(what, td.commands().init_vm(init, 0), Errno::EINVAL)
}

fn once(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    expect_refusal(&td, "INIT_VM again", &td.init)?;
    td.vcpu(t, 0).map(drop)
}

fn refused(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    expect_refused_by_kvm("a flag", td.commands().init_vm(&td.init, 1), Errno::EINVAL)?;
    for word in [0, 11] {
        let mut reserved = [0; 12];
        reserved[word] = 1;
        expect_refusal(&td, &format!("reserved word {word}"), &InitVm { reserved, ..td.init.clone() })?;
    }
    expect_refusal(&td, "the padding", &InitVm { padding: 1, ..td.init.clone() })?;
    let leaves = |count: usize| InitVm { cpuid: vec![Default::default(); count], ..td.init.clone() };
    expect_refusal(&td, "256 leaves, all of them the first", &leaves(256))?;
    expect_refused_by_kvm("257 leaves", td.commands().init_vm(&leaves(257), 0), Errno::E2BIG)?;
    let nowhere = td.commands().without_argument(Command::INIT_VM, 0);
    expect_refused_by_kvm("without memory", nowhere, Errno::EFAULT)?;
    expect_done("INIT_VM", td.commands().init_vm(&td.init, 0))
}

fn attributes(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    for bit in (0..64).filter(|bit| td.offered.attributes & 1 << bit == 0) {
        let init = InitVm { attributes: 1 << bit, ..td.init.clone() };
        expect_refusal(&td, &format!("attribute {bit}"), &init)?;
    }
    let init = InitVm { attributes: SEPT_VE_DISABLE, ..td.init.clone() };
    expect_done("SEPT_VE_DISABLE", td.commands().init_vm(&init, 0))
}

fn xfam(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    for bit in (0..64).filter(|bit| td.offered.xfam & 1 << bit == 0) {
        let init = InitVm { xfam: td.offered.xfam | 1 << bit, ..td.init.clone() };
        expect_refusal(&td, &format!("state {bit}"), &init)?;
    }
    let init = InitVm { xfam: 0, ..td.init.clone() };
    expect_done("none", td.commands().init_vm(&init, 0))
}

fn with_width(td: &Td, width: u32) -> InitVm {
    let mut init = td.init.clone();
    for entry in init.cpuid.iter_mut().filter(|entry| entry.function == ADDRESS_SIZES) {
        entry.eax = width << 16;
    }
    init
}

fn width(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    for width in [0, 1, 47, 49, 51, 53, 0xff] {
        expect_refusal(&td, &format!("width {width}"), &with_width(&td, width))?;
    }
    let mut without = td.init.clone();
    without.cpuid.retain(|entry| entry.function != ADDRESS_SIZES);
    expect_refusal(&td, "no such leaf", &without)?;
    match td.commands().init_vm(&with_width(&td, 52), 0) {
        Ok(()) => Ok(()),
        wide => {
            expect_refused_by_kvm("width 52 without EPT of five levels", wide, Errno::EINVAL)?;
            expect_done("width 48", td.commands().init_vm(&with_width(&td, 48), 0))
        }
    }
}

fn unknown_leaf(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    for (function, index) in [(0x4000_0000, 0), (0x7fff_ffff, 0), (ADDRESS_SIZES, 1)] {
        let mut init = td.init.clone();
        init.cpuid.push(kvm_bindings::kvm_cpuid_entry2 { function, index, ..Default::default() });
        expect_refusal(&td, &format!("leaf {function:#x}.{index}"), &init)?;
    }
    let mut twice = td.init.clone();
    twice.cpuid.extend(td.init.cpuid.first().copied());
    expect_refusal(&td, "a leaf twice", &twice)?;
    let mut only = td.init.clone();
    only.cpuid.retain(|entry| entry.function == ADDRESS_SIZES);
    expect_done("only the width", td.commands().init_vm(&only, 0))
}

fn hidden_features(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    for (name, ebx, ecx) in [("HLE", 1 << 4, 0), ("RTM", 1 << 11, 0), ("WAITPKG", 0, 1 << 5)] {
        let mut init = td.init.clone();
        let leaf = init.cpuid.iter_mut().find(|entry| (entry.function, entry.index) == (7, 0));
        let Some(leaf) = leaf else { return Ok(()) };
        (leaf.ebx, leaf.ecx) = (leaf.ebx | ebx, leaf.ecx | ecx);
        expect_refusal(&td, name, &init)?;
    }
    Ok(())
}

fn refused_by_the_module(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    let mut init = td.init.clone();
    // Bits 31:24 of the leaf's EAX are reserved everywhere, so that nobody can configure them.
    for entry in init.cpuid.iter_mut().filter(|entry| entry.function == ADDRESS_SIZES) {
        entry.eax |= 1 << 31;
    }
    let error = HwError::OPERAND_INVALID.on(HwError::CPUID_CONFIG);
    expect_refused("a reserved bit", td.commands().init_vm(&init, 0), Errno::EINVAL, error)?;
    expect_done("without it", td.commands().init_vm(&td.init, 0))
}

fn hkids(t: &Case) -> Outcome {
    let mut tds = Vec::new();
    for _ in 0..MANY {
        let td = Td::new(t)?;
        match td.commands().init_vm(&td.init, 0) {
            Ok(()) => tds.push(td),
            full => {
                expect_refused_by_kvm("one more", full, Errno::ENOSPC)?;
                let count = tds.len();
                expect_that(count > 0, || "there are no HKIDs for guests".to_owned())?;
                drop(tds.pop());
                return expect_done("after another is closed", td.commands().init_vm(&td.init, 0));
            }
        }
    }
    expect_eq("TDs until ENOSPC", &tds.len(), &0)
}

fn slots(t: &Case) -> Outcome {
    use privet_harness::memslot::SlotSpec;
    use privet_harness::uapi::{MEM_LOG_DIRTY_PAGES, MEM_READONLY};
    use std::sync::Arc;

    let td = Td::new(t)?;
    let view = Arc::new(privet_harness::mapping::Mapping::anonymous(0x2000)?);
    let shared_bit = Gpa(1 << 47);
    let at = |gpa: Gpa| SlotSpec::shared(3, gpa, PageCount(1), &view);
    td.vm.add_slot(at(shared_bit))?;
    td.vm.delete_slot(3)?;
    expect_done("INIT_VM", td.commands().init_vm(&td.init, 0))?;
    let region = at(shared_bit).region();
    let result = td.vm.set_user_memory_region2_raw(&region, Some(&view));
    crate::expect::expect_errno("a slot with the shared bit", result, Errno::EINVAL)?;
    let mut region = at(Gpa(0x1000)).region();
    region.flags = MEM_READONLY;
    let result = td.vm.set_user_memory_region2_raw(&region, Some(&view));
    crate::expect::expect_errno("a read-only slot", result, Errno::EINVAL)?;
    let gmem = td.vm.create_guest_memfd(0x1000, 0)?;
    let mut region = at(Gpa(0x1000)).with_gmem(&gmem, 0).region();
    region.flags |= MEM_LOG_DIRTY_PAGES;
    let result = td.vm.set_user_memory_region2_raw(&region, Some(&view));
    crate::expect::expect_errno("a dirty log of a guest_memfd", result, Errno::EINVAL)?;
    td.vm.add_slot(at(Gpa(0x1000))).map(drop)
}
