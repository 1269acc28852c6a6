//! SNP_LAUNCH_UPDATE: pages that become a guest's.

use std::sync::Arc;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::launch::snp;
use privet_harness::mapping::{Access, Mapping};
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Device, Finish, Firmware, Memory, PageType, Refused, SnpPolicy, Update};
use privet_harness::test_range::{RangeSpec, TEST_BASE, TEST_SLOT, TestRange};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_protocol::Pattern;

use super::vm::SevVm;
use crate::expect::{expect_done, expect_eq, expect_refused, expect_refused_by_firmware, expect_refused_by_kvm};
use crate::row::Row;
use crate::types::Types;

const UPDATE: &str = "arch/x86/kvm/svm/sev.c: snp_launch_update";
const POPULATE: &str = "virt/kvm/guest_memfd.c: kvm_gmem_populate";
const PAGE: &str = "arch/x86/kvm/svm/sev.c: sev_gmem_post_populate";

const A: Pattern = Pattern(0xaa);

/// Pages of the range that these rows have.
const PAGES: u64 = 8;

pub(super) fn rows() -> Vec<Row> {
    let row = |name: &'static str, about: &'static str, story: fn(&Case) -> Outcome| {
        Row::new(name, Types::SNP, about, story).basis(&[UPDATE, POPULATE, PAGE])
    };
    let update = "x86/snp_launch_test: test_snp_launch_update";
    vec![
        row(
            "launch.pages.of_every_type",
            "Pages of all five types are added in any order; the source keeps its content, whatever it is for.",
            of_every_type,
        )
        .upstream("x86/sev_smoke_test: guest_snp_code"),
        row(
            "launch.pages.before_start",
            "SNP_LAUNCH_UPDATE before SNP_LAUNCH_START is EINVAL, and the page is there for the right time.",
            before_start,
        )
        .upstream(update),
        row(
            "launch.pages.after_finish",
            "SNP_LAUNCH_UPDATE after SNP_LAUNCH_FINISH is INVALID_GUEST_STATE.",
            after_finish,
        )
        .upstream(update),
        row(
            "launch.pages.arguments",
            "No bytes, bytes that are not whole pages, any flag, any number that is no type of user space's, no source \
             and one that is not page-aligned are EINVAL.",
            arguments,
        )
        .exceeds(update),
        row(
            "launch.pages.zero_has_no_source",
            "Pages of zeroes need no source: any address will do, and it is not advanced.",
            zero_has_no_source,
        ),
        row(
            "launch.pages.without_slot",
            "Where there is no slot, or a slot without a guest_memfd, SNP_LAUNCH_UPDATE is EINVAL.",
            without_slot,
        ),
        row(
            "launch.pages.not_private",
            "The first page is not private: EIO without a word from the firmware, the page stays free. A later one is \
             not: success, with the rest told; given again EIO, and once it is private, success.",
            not_private,
        )
        .exceeds(update),
        row(
            "launch.pages.once",
            "A page that was added cannot be added again: EIO; a range that begins before it comes as far as it. A hole \
             punched there makes it free.",
            once,
        )
        .upstream("x86/coco_pre_fault_memory_test: deallocate_after_update"),
        row(
            "launch.pages.preallocated",
            "Whether the guest_memfd was allocated before makes no difference, nor does an allocation afterwards.",
            preallocated,
        )
        .upstream("x86/coco_pre_fault_memory_test: fallocate_around_update"),
        row(
            "launch.pages.end_with_their_slot",
            "A range that reaches out of its slot is done as far as the slot goes, and goes on in the next slot if it is \
             given again; where there is none, it is EINVAL.",
            end_with_their_slot,
        ),
        row(
            "launch.pages.unreadable_source",
            "The first page of the source cannot be read: EIO without a word from the firmware; a later one cannot: \
             success, with the rest told. Once it can be read the rest is done.",
            unreadable_source,
        ),
        row(
            "launch.pages.read_only_source",
            "A source that cannot be written is good for every type but CPUID, which the firmware may correct: EIO.",
            read_only_source,
        ),
        row(
            "launch.pages.unwritable_answer",
            "Where KVM cannot write what is left to be done, that is EFAULT, though the pages were added: once more they are \
             refused.",
            |t| {
                let l = Launching::new(t)?;
                let mut update = l.pages(PageType::Normal, 0, 2);
                let added = l.sev.commands().without_answers().snp_launch_update(&mut update);
                expect_refused_by_kvm("SNP_LAUNCH_UPDATE", added, Errno::EFAULT)?;
                expect_page_refused("the same pages again", l.give(l.pages(PageType::Normal, 0, 2)))
            },
        ),
        row(
            "launch.pages.closed_file",
            "The guest_memfd of the slot was closed: EINVAL, as of a slot that has none.",
            closed_file,
        ),
        row(
            "launch.pages.cpuid_is_corrected",
            "A CPUID page that promises what the processor does not have is INVALID_PARAM; the source then holds what \
             the firmware would take, with which the same page is added.",
            cpuid_is_corrected,
        ),
        row(
            "launch.pages.source_is_copied",
            "What is written to the source after the page was added does not reach the guest: the launch digest is that \
             of the first content.",
            source_is_copied,
        ),
        row(
            "launch.pages.through_the_launch",
            "The launch's own loop adds pages in as many parts as KVM makes of them, and tells page and progress where \
             it ends.",
            through_the_launch,
        ),
    ]
}

/// An SNP guest whose launch has started, with a range that is private.
struct Launching {
    sev: SevVm,
    range: TestRange,
}

impl Launching {
    fn new(t: &Case) -> Outcome<Launching> {
        let sev = SevVm::started(t)?;
        let range = TestRange::install(&sev.vm, RangeSpec::new(PAGES), TEST_SLOT)?;
        range.set_private(&sev.vm, range.all())?;
        range.host_fill(range.all(), A)?;
        Ok(Launching { sev, range })
    }

    /// `pages` pages of the range from `page` on, with the range's own view as their source.
    fn pages(&self, page_type: PageType, page: u64, pages: u64) -> Update<'_> {
        Update {
            gfn: self.range.gpa(page).gfn(),
            source: Memory::In(self.range.host(), page * PAGE_SIZE),
            len: pages * PAGE_SIZE,
            page_type: page_type.number(),
            flags: 0,
        }
    }

    /// Gives it once.
    fn give(&self, mut update: Update<'_>) -> Result<(), Refused> {
        self.sev.commands().snp_launch_update(&mut update)
    }

    /// Gives it once, and expects that `left` pages are left over.
    fn expect_left(&self, what: &str, mut update: Update<'_>, left: u64) -> Outcome {
        let before = update;
        expect_done(what, self.sev.commands().snp_launch_update(&mut update))?;
        let done = before.len / PAGE_SIZE - left;
        expect_eq(&format!("{what}: bytes that are left"), &update.len, &(left * PAGE_SIZE))?;
        expect_eq(&format!("{what}: where it goes on"), &update.gfn, &(before.gfn + done))?;
        match (before.source, update.source) {
            (Memory::In(_, from), Memory::In(_, to)) if before.page_type != PageType::Zero.number() => {
                expect_eq(&format!("{what}: where the source goes on"), &to, &(from + done * PAGE_SIZE))
            }
            _ => Ok(()),
        }
    }
}

/// KVM's own refusal of a page: the firmware's status is that of a command that was never given.
fn expect_page_refused(what: &str, result: Result<(), Refused>) -> Outcome {
    expect_refused(what, result, Errno::EIO, Firmware::SUCCESS)
}

/// No function of CPUID at all: a page that every firmware takes.
fn empty_cpuid(l: &Launching, page: u64) -> Outcome {
    l.range.host().fill(page * PAGE_SIZE, PAGE_SIZE, 0)
}

fn of_every_type(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    for (page, page_type) in PageType::OF_USER_SPACE.into_iter().rev().enumerate() {
        let page = page as u64;
        if page_type == PageType::Cpuid {
            empty_cpuid(&l, page)?;
        }
        l.expect_left(&format!("a {page_type} page"), l.pages(page_type, page, 1), 0)?;
        if page_type != PageType::Cpuid {
            l.range.host_expect(page..page + 1, A)?;
        }
    }
    l.range.host_expect(5..PAGES, A)?;
    expect_done("SNP_LAUNCH_FINISH", l.sev.commands().snp_launch_finish(Finish::PLAIN))
}

fn before_start(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let range = TestRange::install(&sev.vm, RangeSpec::new(PAGES), TEST_SLOT)?;
    range.set_private(&sev.vm, range.all())?;
    let l = Launching { sev, range };
    expect_refused_by_kvm("a page before the start", l.give(l.pages(PageType::Normal, 0, 1)), Errno::EINVAL)?;
    expect_done("SNP_LAUNCH_START", l.sev.start())?;
    l.expect_left("the page after it", l.pages(PageType::Normal, 0, 1), 0)
}

fn after_finish(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    l.expect_left("a page", l.pages(PageType::Normal, 0, 1), 0)?;
    expect_done("SNP_LAUNCH_FINISH", l.sev.commands().snp_launch_finish(Finish::PLAIN))?;
    for page_type in PageType::OF_USER_SPACE {
        let result = l.give(l.pages(page_type, 1, 1));
        expect_refused_by_firmware(&format!("a {page_type} page"), result, Firmware::INVALID_GUEST_STATE)?;
    }
    Ok(())
}

fn arguments(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    let good = l.pages(PageType::Normal, 0, 2);
    let refused = |what: &str, update| expect_refused_by_kvm(what, l.give(update), Errno::EINVAL);
    for len in [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 8] {
        refused(&format!("{len:#x} bytes"), Update { len, ..good })?;
    }
    for flags in (0..u16::BITS).map(|bit| 1 << bit) {
        refused(&format!("flags {flags:#x}"), Update { flags, ..good })?;
    }
    for page_type in [0, 2, 7, 8, 0x13, 0x81, 0xff] {
        refused(&format!("type {page_type}"), Update { page_type, ..good })?;
    }
    refused("no source", Update { source: Memory::NONE, ..good })?;
    for offset in [1, 8, PAGE_SIZE - 16] {
        refused(&format!("a source at {offset:#x}"), Update { source: Memory::In(l.range.host(), offset), ..good })?;
    }
    l.expect_left("the pages, after all", good, 0)
}

fn zero_has_no_source(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    for (page, source) in [Memory::NONE, Memory::Nowhere(0x1001), Memory::Nowhere(u64::MAX)].into_iter().enumerate() {
        let update = Update { source, ..l.pages(PageType::Zero, 2 * page as u64, 2) };
        l.expect_left(&format!("zeroes of {source:?}"), update, 0)?;
    }
    let mut update = l.pages(PageType::Zero, 6, 2);
    expect_done("zeroes of the range's view", l.sev.commands().snp_launch_update(&mut update))?;
    let Memory::In(_, offset) = update.source else { return Ok(()) };
    expect_eq("where the source is afterwards", &offset, &(6 * PAGE_SIZE))?;
    l.range.host_expect(l.range.all(), A)
}

fn without_slot(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    let nowhere = Update { gfn: l.range.gpa(PAGES).gfn(), ..l.pages(PageType::Normal, 0, 1) };
    expect_refused_by_kvm("a page without a slot", l.give(nowhere), Errno::EINVAL)?;
    let far = Update { gfn: 1 << 52, ..nowhere };
    expect_refused_by_kvm("a page where no slot can be", l.give(far), Errno::EINVAL)?;
    let memory = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    let gpa = TEST_BASE + PageCount(4 * PAGES);
    l.sev.vm.add_slot(SlotSpec::shared(TEST_SLOT + 1, gpa, PageCount(1), &memory))?;
    l.sev.vm.set_private(gpa, PageCount(1))?;
    let without_file = Update { gfn: gpa.gfn(), ..nowhere };
    expect_refused_by_kvm("a page of a slot without a guest_memfd", l.give(without_file), Errno::EINVAL)
}

fn not_private(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    l.range.set_shared(&l.sev.vm, 2..4)?;
    expect_page_refused("a shared page", l.give(l.pages(PageType::Normal, 2, 1)))?;
    l.expect_left("pages of which the third is shared", l.pages(PageType::Normal, 0, 6), 4)?;
    expect_page_refused("the rest", l.give(l.pages(PageType::Normal, 2, 4)))?;
    expect_page_refused("the rest again", l.give(l.pages(PageType::Normal, 2, 4)))?;
    l.range.set_private(&l.sev.vm, 2..4)?;
    l.expect_left("the rest, once it is private", l.pages(PageType::Normal, 2, 4), 0)
}

fn once(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    l.expect_left("two pages", l.pages(PageType::Normal, 2, 2), 0)?;
    for page_type in [PageType::Normal, PageType::Zero, PageType::Unmeasured, PageType::Secrets] {
        expect_page_refused(&format!("one of them as {page_type}"), l.give(l.pages(page_type, 3, 1)))?;
    }
    l.expect_left("pages that run into them", l.pages(PageType::Normal, 0, 6), 4)?;
    l.range.punch(2..4)?;
    l.expect_left("the rest, after a hole was punched", l.pages(PageType::Normal, 2, 4), 0)
}

fn preallocated(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    l.range.allocate(0..4)?;
    l.expect_left("pages of which half are allocated", l.pages(PageType::Normal, 2, 4), 0)?;
    l.range.allocate(0..PAGES)?;
    l.expect_left("pages that were allocated around them", l.pages(PageType::Zero, 0, 2), 0)?;
    expect_page_refused("a page that was added before", l.give(l.pages(PageType::Normal, 2, 1)))?;
    expect_done("SNP_LAUNCH_FINISH", l.sev.commands().snp_launch_finish(Finish::PLAIN))
}

fn end_with_their_slot(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let range = TestRange::install(&sev.vm, RangeSpec::new(PAGES).slots(2), TEST_SLOT)?;
    range.set_private(&sev.vm, range.all())?;
    let l = Launching { sev, range };
    l.expect_left("pages of two slots", l.pages(PageType::Normal, 0, PAGES), PAGES / 2)?;
    l.expect_left("the rest of them", l.pages(PageType::Normal, PAGES / 2, PAGES / 2 - 1), 0)?;
    let source = Mapping::anonymous(4 * PAGE_SIZE)?;
    let over_the_end =
        Update { source: Memory::In(&source, 0), len: 4 * PAGE_SIZE, ..l.pages(PageType::Normal, PAGES - 1, 1) };
    l.expect_left("pages over the end of the last slot", over_the_end, 3)?;
    let beyond = Update { gfn: l.range.gpa(PAGES).gfn(), ..over_the_end };
    expect_refused_by_kvm("the rest, where no slot is", l.give(beyond), Errno::EINVAL)
}

fn unreadable_source(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    let host = l.range.host();
    host.set_access(2 * PAGE_SIZE, PAGE_SIZE, Access::None)?;
    let nowhere = Update { source: Memory::Nowhere(0x1000), ..l.pages(PageType::Normal, 0, 1) };
    expect_page_refused("a source that is not mapped", l.give(nowhere))?;
    expect_page_refused("a source that cannot be accessed", l.give(l.pages(PageType::Normal, 2, 2)))?;
    l.expect_left("a source of which the third page cannot be accessed", l.pages(PageType::Normal, 0, 4), 2)?;
    expect_page_refused("the rest", l.give(l.pages(PageType::Normal, 2, 2)))?;
    host.set_access(2 * PAGE_SIZE, PAGE_SIZE, Access::All)?;
    l.expect_left("the rest, once it can be accessed", l.pages(PageType::Normal, 2, 2), 0)
}

fn read_only_source(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    empty_cpuid(&l, 4)?;
    l.range.host().set_access(0, PAGES * PAGE_SIZE, Access::Reading)?;
    for (page, page_type) in PageType::OF_USER_SPACE.into_iter().enumerate() {
        let update = l.pages(page_type, page as u64, 1);
        if page_type == PageType::Cpuid {
            expect_page_refused("a cpuid page of what cannot be written", l.give(update))?;
        } else {
            l.expect_left(&format!("a {page_type} page of what cannot be written"), update, 0)?;
        }
    }
    Ok(())
}

fn closed_file(t: &Case) -> Outcome {
    let mut l = Launching::new(t)?;
    drop(l.range.take_gmem()?);
    expect_page_refused("a page of a closed file", l.give(l.pages(PageType::Normal, 0, 1)))
}

fn cpuid_is_corrected(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    empty_cpuid(&l, 0)?;
    let host = l.range.host();
    // One function: leaf 7, with every feature there could be (snp_cpuid_table, arch/x86/include/asm/sev.h).
    let mut table = vec![0; PAGE_SIZE as usize];
    table[0..4].copy_from_slice(&1_u32.to_le_bytes());
    table[16..20].copy_from_slice(&7_u32.to_le_bytes());
    table[16 + 24..16 + 40].fill(0xff);
    host.write(0, &table)?;
    let result = l.give(l.pages(PageType::Cpuid, 0, 1));
    expect_refused_by_firmware("a page with features that no processor has", result, Firmware::INVALID_PARAM)?;
    let mut corrected = vec![0; PAGE_SIZE as usize];
    host.read(0, &mut corrected)?;
    expect_eq("whether the firmware corrected it", &(corrected == table), &false)?;
    expect_eq("how many functions, and which", &&corrected[..20], &&table[..20])?;
    l.expect_left("the page as it was corrected", l.pages(PageType::Cpuid, 0, 1), 0)?;
    let mut after = vec![0; PAGE_SIZE as usize];
    host.read(0, &mut after)?;
    expect_eq("whether the source is left alone if it is right", &(after == corrected), &true)
}

fn source_is_copied(t: &Case) -> Outcome {
    let l = Launching::new(t)?;
    l.expect_left("pages", l.pages(PageType::Normal, 0, 2), 0)?;
    l.range.host_fill(0..2, Pattern(0xbb))?;
    l.range.host_expect(0..2, Pattern(0xbb))?;
    expect_page_refused("the same pages again", l.give(l.pages(PageType::Normal, 0, 2)))?;
    expect_done("SNP_LAUNCH_FINISH", l.sev.commands().snp_launch_finish(Finish::PLAIN))
}

fn through_the_launch(t: &Case) -> Outcome {
    let (vm, device) = (t.vm()?, Device::open()?);
    let mut launch = snp::Launch::create(&vm, &device, Default::default())?.start(SnpPolicy::DEFAULT)?;
    let range = TestRange::install(&vm, RangeSpec::new(PAGES).slots(4), TEST_SLOT)?;
    range.set_private(&vm, 0..PAGES - 1)?;
    launch.update(PageType::Normal, range.gpa(0), range.host(), 0..6 * PAGE_SIZE)?;
    let at = |page: u64| Gpa(range.gpa(page).0);
    let stuck = launch.update(PageType::Zero, at(6), range.host(), 6 * PAGE_SIZE..8 * PAGE_SIZE);
    let told = stuck.err().map(|stop| stop.to_string()).unwrap_or_default();
    let expected = format!(
        "zero page at gpa {}, after 1 of 2 pages: KVM_SEV_SNP_LAUNCH_UPDATE: EIO, firmware SUCCESS (0x0)",
        at(7)
    );
    expect_eq("what is told of the page that is not private", &told, &expected)?;
    range.set_private(&vm, 7..8)?;
    launch.update(PageType::Zero, at(7), range.host(), 7 * PAGE_SIZE..8 * PAGE_SIZE)?;
    launch.finish(Finish::PLAIN, &[]).map(drop)
}
