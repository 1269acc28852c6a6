//! Group `psc`: page state changes, by which an SNP guest asks for conversions, word by word.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Field, Page, Requests, buffer};
use privet_harness::guest::Guest;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{Backing, RangeSpec, TEST_BASE};
use privet_harness::uapi::{Capability, HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_protocol::{Op, Pattern, Width};

use crate::expect::{expect_eq, expect_no_exit_but, expect_ok};
use crate::malformed::{INVALID_EVENT, INVALID_SCRATCH_AREA, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const MSR: &str = "arch/x86/kvm/svm/sev.c: snp_begin_psc_msr, snp_complete_psc_msr";
const PAGE: &str = "arch/x86/kvm/svm/sev.c: snp_begin_psc, snp_do_psc, snp_complete_one_psc";
const SCRATCH: &str = "arch/x86/kvm/svm/sev.c: setup_vmgexit_scratch";
const SCRATCH_FIX: &str = "CVE-2026-53360: the buffer of a page state change has to lie in the GHCB";
const ROTH: &str = "AMD's GHCB specification (56421), 4.1.6 SNP Page State Change";

/// SW_EXITCODE.
const PAGE_STATE_CHANGE: u64 = 0x8000_0010;
/// Where the buffer is in the page, bytes.
const BUFFER: u64 = 0x800;
/// Entries that it has room for.
const ENTRIES: u64 = 253;

const TO_PRIVATE: u64 = 1;
const TO_SHARED: u64 = 2;
/// Splits a page of 2 MiB; KVM does that by itself.
const SMASH: u64 = 3;

/// SW_EXITINFO2 of an answer.
const INVALID_HEADER: u64 = 1 << 32 | 1;
const INVALID_ENTRY: u64 = 1 << 32 | 2;
const GENERIC: u64 = 0x100 << 32;

/// Bit 0 of the attributes of the exit: pages of 2 MiB.
const SIZE_2M: u64 = 1;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "psc.msr",
            Types::SNP,
            "By the MSR protocol a guest asks for one page: one exit with its GPA; granted, the answer has no error and \
             the guest uses the page as private memory, then as shared memory again.",
            msr,
        )
        .basis(&[MSR, ROTH]),
        Row::new(
            "psc.msr.unknown_operation",
            Types::SNP,
            "An operation that is neither to private nor to shared is an error without an exit.",
            |t| {
                let g = guest(t, 1)?;
                let exits = t.trace().exits();
                for operation in [0, 3, 4, 15] {
                    expect_eq("the answer", &vmgexit(&g, msr_request(operation, TEST_BASE))?, &MSR_ERROR)?;
                }
                expect_no_exit_but(t, exits, 4)
            },
        )
        .basis(&[MSR]),
        Row::new(
            "psc.msr.refused",
            Types::SNP,
            "EINVAL and EAGAIN of userspace are the same error for a guest that asks by the MSR protocol.",
            |t| {
                let g = guest(t, 1)?;
                for errno in [Errno::EINVAL, Errno::EAGAIN] {
                    let asking = g.vcpu(0).start(Op::VmgexitMsr { msr: msr_request(TO_PRIVATE, TEST_BASE) })?;
                    asking.expect_exit(&exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED))?;
                    g.vcpu(0).kvm().set_hypercall_ret(errno as u64)?;
                    asking.resume()?;
                    expect_eq("the answer", &asking.done()?[0], &MSR_ERROR)?;
                }
                Ok(())
            },
        )
        .basis(&[MSR]),
        Row::new(
            "psc.exit_must_be_enabled",
            Types::SNP,
            "Without KVM_CAP_EXIT_HYPERCALL either form of a page state change is an error without an exit; with it, from \
             then on, it arrives.",
            exit_must_be_enabled,
        )
        .basis(&[MSR, PAGE]),
        Row::new(
            "psc.one_page",
            Types::SNP,
            "A request with one entry of 4 KiB is one exit; the entry is marked as done, the header is behind it.",
            one_page,
        )
        .basis(&[PAGE, ROTH]),
        Row::new(
            "psc.large_page",
            Types::SNP,
            "An entry of 2 MiB is one exit for 512 pages of 4 KiB that says that it was one of 2 MiB.",
            |t| {
                let (g, entries) = (guest(t, 1)?, [large(TO_PRIVATE, TEST_BASE, 0)]);
                let expected = exit(TEST_BASE, 512, MAP_GPA_RANGE_ENCRYPTED | SIZE_2M);
                let answer = granted(&g, &request(&entries), &[expected])?;
                expect_eq("the entry", &answer.buffer(1), &(entries[0] | 512))
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.large_page.unaligned",
            Types::SNP,
            "An entry of 2 MiB whose address is no multiple of that is invalid: no exit.",
            |t| invalid(t, &[large(TO_PRIVATE, TEST_BASE + PageCount(1), 0)]),
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.large_page.in_the_middle",
            Types::SNP,
            "An entry of 2 MiB that is done up to page 100 is an exit for the 412 others, from there on. (It still says \
             2 MiB: a VMM has to go by the number.)",
            |t| {
                let (g, entries) = (guest(t, 1)?, [large(TO_PRIVATE, TEST_BASE, 100)]);
                let expected = exit(TEST_BASE + PageCount(100), 412, MAP_GPA_RANGE_ENCRYPTED | SIZE_2M);
                granted(&g, &request(&entries), &[expected]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.large_page.in_the_middle_merges_with_none",
            Types::SNP,
            "An entry of 2 MiB that is done in part is an exit of its own, though the next one continues it.",
            |t| {
                let next = TEST_BASE + PageCount(512);
                let (g, entries) = (guest(t, 1)?, [large(TO_SHARED, TEST_BASE, 511), large(TO_SHARED, next, 0)]);
                let expected = [exit(TEST_BASE + PageCount(511), 1, SIZE_2M), exit(next, 512, SIZE_2M)];
                granted(&g, &request(&entries), &expected).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.beyond_the_entry",
            Types::SNP,
            "An entry that is done up to a page that it does not have is invalid: no exit.",
            |t| {
                invalid(t, &[large(TO_PRIVATE, TEST_BASE, 513)])?;
                invalid(t, &[small(TO_PRIVATE, TEST_BASE) | 2])
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.invalid_after_good",
            Types::SNP,
            "Entries before an invalid one are done, and the header is at the invalid one.",
            |t| {
                let (g, odd) = (guest(t, 1)?, large(TO_PRIVATE, TEST_BASE + PageCount(1), 0));
                let entries = [small(TO_PRIVATE, TEST_BASE), odd];
                let asking = requests(&g).start(&request(&entries))?;
                grant(&g, &asking, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)])?;
                let answer = requests(&g).answer(asking)?;
                expect_eq("the answer", &answer.answer(), &(0, INVALID_ENTRY))?;
                expect_eq("the entry that the header is at", &(answer.buffer(0) & 0xffff), &1)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.done_entries_are_skipped",
            Types::SNP,
            "Entries that are done already are no exit, whatever their size; the header goes on over them.",
            |t| {
                let done = [small(TO_PRIVATE, TEST_BASE) | 1, large(TO_PRIVATE, TEST_BASE, 512)];
                let (g, entries) = (guest(t, 1)?, [done[0], done[1], small(TO_SHARED, TEST_BASE)]);
                granted(&g, &request(&entries), &[exit(TEST_BASE, 1, 0)]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.adjacent_entries_merge",
            Types::SNP,
            "Entries of one operation and size that continue each other are one exit, for all of them.",
            |t| {
                let g = guest(t, 1)?;
                let entries = run(TO_PRIVATE, TEST_BASE, 8);
                granted(&g, &request(&entries), &[exit(TEST_BASE, 8, MAP_GPA_RANGE_ENCRYPTED)])?;
                let large = [0, 1, 2].map(|index| large(TO_SHARED, TEST_BASE + PageCount(512 * index), 0));
                granted(&g, &request(&large), &[exit(TEST_BASE, 3 * 512, SIZE_2M)]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.full_buffer",
            Types::SNP,
            "253 entries are what the buffer has room for: one exit.",
            |t| {
                let (g, entries) = (guest(t, 1)?, run(TO_PRIVATE, TEST_BASE, ENTRIES));
                granted(&g, &request(&entries), &[exit(TEST_BASE, ENTRIES, MAP_GPA_RANGE_ENCRYPTED)]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.what_does_not_merge",
            Types::SNP,
            "Another operation, a gap, an address below, another size: each is an exit of its own, in order.",
            what_does_not_merge,
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.unknown_operation_is_skipped",
            Types::SNP,
            "Operations that KVM does not know count as done, without an exit.",
            |t| {
                let g = guest(t, 1)?;
                let entries =
                    [small(SMASH, TEST_BASE), small(TO_SHARED, TEST_BASE), small(0, TEST_BASE), small(15, TEST_BASE)];
                granted(&g, &request(&entries), &[exit(TEST_BASE, 1, 0)]).map(drop)
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.end_beyond_the_buffer",
            Types::SNP,
            "A header whose last entry is not in the buffer is invalid: no exit.",
            |t| {
                let g = guest(t, 1)?;
                let exits = t.trace().exits();
                for end in [ENTRIES, 0x1000, 0xffff] {
                    let answer = requests(&g).call(&with_header(end << 16, &[small(TO_PRIVATE, TEST_BASE)]))?;
                    expect_eq(&format!("the answer for entry {end:#x}"), &answer.answer(), &(0, INVALID_HEADER))?;
                }
                expect_no_exit_but(t, exits, 3)
            },
        )
        .basis(&[PAGE, SCRATCH_FIX]),
        Row::new(
            "psc.nothing_to_do",
            Types::SNP,
            "A header whose first entry is after its last one is done at once.",
            |t| {
                let g = guest(t, 1)?;
                let answer = requests(&g).call(&with_header(2 << 16 | 3, &[small(TO_PRIVATE, TEST_BASE)]))?;
                expect_eq("the answer", &answer.answer(), &(0, 0))
            },
        )
        .basis(&[PAGE]),
        Row::new(
            "psc.scratch_outside",
            Types::SNP,
            "A buffer that is not in the GHCB's own, or not whole in it, is refused: in other memory, before it, over its \
             end, nowhere.",
            scratch_outside,
        )
        .basis(&[SCRATCH, SCRATCH_FIX]),
        Row::new(
            "psc.short_buffer",
            Types::SNP,
            "A buffer that begins late has room for fewer entries: with room for one, a header with two is invalid, one \
             with one is an exit.",
            short_buffer,
        )
        .basis(&[SCRATCH, PAGE, SCRATCH_FIX]),
        Row::new(
            "psc.invalid_code_fails_the_run",
            Types::SNP,
            "Any answer of userspace but 0, EINVAL and EAGAIN makes KVM_RUN fail with EINVAL.",
            |t| {
                let g = guest(t, 1)?;
                let asking = requests(&g).start(&request(&[small(TO_PRIVATE, TEST_BASE)]))?;
                asking.expect_exit(&exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED))?;
                g.vcpu(0).kvm().set_hypercall_ret(77)?;
                asking.resume()?;
                asking.expect_exit(&Exit::Refused { errno: Errno::EINVAL })
            },
        )
        .basis(&["arch/x86/kvm/x86.h: kvm_is_valid_map_gpa_range_ret", PAGE]),
        Row::new(
            "psc.not_of_sev_es",
            Types::SEV_ES,
            "In a SEV-ES guest there is no such event.",
            |t| {
                let g = t.guest().range(image()).boot()?;
                let requests = Requests::new(&g, 0, g.range(0), 0);
                let answer = requests.call(&request(&[small(TO_PRIVATE, TEST_BASE)]))?;
                expect_eq("the answer", &answer.answer(), &(MALFORMED, INVALID_EVENT))
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: is_snp_only_vmgexit"]),
    ];
    for (name, errno) in [("einval", Errno::EINVAL), ("eagain", Errno::EAGAIN)] {
        rows.push(
            Row::new(
                format!("psc.refused.{name}"),
                Types::SNP,
                "Userspace refuses the second of three exits: the guest gets the one error that there is, and the header \
                 tells that the first is done.",
                move |t| refused(t, errno),
            )
            .basis(&[PAGE]),
        );
    }
    let exit_hypercall = Need::Capability(Capability::EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE);
    rows.into_iter().map(|row| row.needs(Need::GuestCode).needs(exit_hypercall.clone())).collect()
}

/// A guest with so many pages that can be private, and one page for requests.
fn guest(t: &Case, pages: u64) -> Outcome<Guest> {
    t.guest().range(RangeSpec::new(pages)).range(image()).boot()
}

/// A page for requests, far from all others.
fn image() -> RangeSpec {
    RangeSpec::new(1).backing(Backing::HostOnly).at(Gpa(0x9_0000_0000))
}

fn requests(g: &Guest) -> Requests<'_> {
    Requests::new(g, 0, g.range(1), 0)
}

fn small(operation: u64, gpa: Gpa) -> u64 {
    operation << 52 | gpa.0
}

/// An entry of 2 MiB that is done up to page `done`.
fn large(operation: u64, gpa: Gpa, done: u64) -> u64 {
    1 << 56 | small(operation, gpa) | done
}

/// Entries of 4 KiB that continue each other.
fn run(operation: u64, gpa: Gpa, pages: u64) -> Vec<u64> {
    (0..pages).map(|page| small(operation, gpa + PageCount(page))).collect()
}

/// A request for all of these entries.
fn request(entries: &[u64]) -> Page {
    with_header((entries.len() as u64 - 1) << 16, entries)
}

/// A request whose header is this: the entry to begin with in bits 15:0, the last one in bits 31:16.
fn with_header(header: u64, entries: &[u64]) -> Page {
    let words = [&[header], entries].concat();
    Page::request(PAGE_STATE_CHANGE, 0, 0).with(Field::SCRATCH, buffer(0).0).with_words(BUFFER, &words)
}

fn exit(gpa: Gpa, pages: u64, attributes: u64) -> Exit {
    // KVM does not write the flags of this one.
    Exit::Hypercall { nr: HC_MAP_GPA_RANGE, args: [gpa.0, pages, attributes], flags: 0 }
}

/// Expects these exits of a request and grants each, doing nothing.
fn grant(g: &Guest, asking: &privet_harness::guest_vcpu::Running<'_>, exits: &[Exit]) -> Outcome {
    exits.iter().try_for_each(|exit| {
        asking.expect_exit(exit)?;
        g.vcpu(0).kvm().set_hypercall_ret(0)?;
        asking.resume()
    })
}

/// A request that is done with exactly these exits: the page afterwards, whose header is behind the last entry.
fn granted(g: &Guest, request: &Page, exits: &[Exit]) -> Outcome<Page> {
    let asking = requests(g).start(request)?;
    grant(g, &asking, exits)?;
    let answer = requests(g).answer(asking)?;
    expect_eq("the answer", &answer.answer(), &(0, 0))?;
    let end = request.buffer(0) >> 16;
    expect_eq("the header", &answer.buffer(0), &(end << 16 | (end + 1)))?;
    Ok(answer)
}

/// Expects a request for these entries to be refused for an entry, without an exit.
fn invalid(t: &Case, entries: &[u64]) -> Outcome {
    let g = guest(t, 1)?;
    let exits = t.trace().exits();
    expect_eq("the answer", &requests(&g).call(&request(entries))?.answer(), &(0, INVALID_ENTRY))?;
    expect_no_exit_but(t, exits, 1)
}

/// The answer by the MSR protocol, without and with an error.
const MSR_DONE: u64 = 0x015;
const MSR_ERROR: u64 = 1 << 63 | MSR_DONE;

fn msr_request(operation: u64, gpa: Gpa) -> u64 {
    operation << 52 | gpa.0 | 0x014
}

fn vmgexit(g: &Guest, msr: u64) -> Outcome<u64> {
    Ok(g.vcpu(0).call(Op::VmgexitMsr { msr })?[0])
}

fn msr(t: &Case) -> Outcome {
    const SHARED: Pattern = Pattern(0x11);
    const PRIVATE: Pattern = Pattern(0x22);
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..1, SHARED)?;
    let ask = |operation: u64, attributes: u64| {
        let asking = v.start(Op::VmgexitMsr { msr: msr_request(operation, range.gpa(0)) })?;
        asking.expect_exit(&exit(range.gpa(0), 1, attributes))?;
        if operation == TO_PRIVATE {
            range.set_private(g.vm(), 0..1)?
        } else {
            range.set_shared(g.vm(), 0..1)?
        }
        v.kvm().set_hypercall_ret(0)?;
        asking.resume()?;
        expect_eq("the answer", &asking.done()?[0], &MSR_DONE)
    };
    let validate = |validated: bool| {
        let [eax, done, unchanged, ..] = v.call(Op::Validate { gva: range.private_gva(0).0, pages: 1, validated })?;
        expect_eq("PVALIDATE: EAX, pages done, pages unchanged", &(eax, done, unchanged), &(0, 1, 0))
    };
    ask(TO_PRIVATE, MAP_GPA_RANGE_ENCRYPTED)?;
    validate(true)?;
    v.fill(range.private_gva(0), 1, PRIVATE, 0)?;
    v.expect(range.private_gva(0), 1, PRIVATE, 0)?;
    range.host_expect(0..1, SHARED)?;
    validate(false)?;
    ask(TO_SHARED, 0)?;
    v.expect(range.shared_gva(0), 1, SHARED, 0)
}

fn exit_must_be_enabled(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).range(image()).without_map_gpa_range_exit().boot()?;
    let page = request(&[small(TO_PRIVATE, TEST_BASE)]);
    let exits = t.trace().exits();
    expect_eq("the answer by MSR", &vmgexit(&g, msr_request(TO_PRIVATE, TEST_BASE))?, &MSR_ERROR)?;
    expect_eq("the answer by page", &requests(&g).call(&page)?.answer(), &(0, GENERIC))?;
    expect_no_exit_but(t, exits, 2)?;
    expect_ok("enabling", g.vm().enable_cap(Capability::EXIT_HYPERCALL, [1 << HC_MAP_GPA_RANGE, 0, 0, 0]))?;
    granted(&g, &page, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)]).map(drop)
}

fn one_page(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    for (operation, attributes) in [(TO_PRIVATE, MAP_GPA_RANGE_ENCRYPTED), (TO_SHARED, 0)] {
        let entry = small(operation, TEST_BASE);
        let answer = granted(&g, &request(&[entry]), &[exit(TEST_BASE, 1, attributes)])?;
        expect_eq("the entry", &answer.buffer(1), &(entry | 1))?;
    }
    Ok(())
}

fn what_does_not_merge(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let page = |index: u64| TEST_BASE + PageCount(index);
    let entries = [
        small(TO_PRIVATE, page(0)),
        small(TO_SHARED, page(1)),
        small(TO_SHARED, page(3)),
        small(TO_SHARED, page(2)),
        small(TO_SHARED, page(511)),
        large(TO_SHARED, page(512), 0),
        small(TO_SHARED, page(1024)),
    ];
    let expected = [
        exit(page(0), 1, MAP_GPA_RANGE_ENCRYPTED),
        exit(page(1), 1, 0),
        exit(page(3), 1, 0),
        exit(page(2), 1, 0),
        exit(page(511), 1, 0),
        exit(page(512), 512, SIZE_2M),
        exit(page(1024), 1, 0),
    ];
    granted(&g, &request(&entries), &expected).map(drop)
}

fn scratch_outside(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let exits = t.trace().exits();
    let ghcb = Gpa(buffer(0).0 - BUFFER);
    let places = [
        ("in another page", g.range(1).gpa(0)),
        ("before the buffer", ghcb + 0x7f8),
        ("at the start of the page", ghcb),
        ("over the end of the buffer", ghcb + 0xfec),
        ("behind the buffer", ghcb + 0xff0),
        ("in the next page", ghcb + PAGE_SIZE),
        ("at 0", Gpa(0)),
        ("at the end of all addresses", Gpa(u64::MAX)),
    ];
    for (place, gpa) in places {
        let answer = requests(&g).call(&request(&[small(TO_PRIVATE, TEST_BASE)]).with(Field::SCRATCH, gpa.0))?;
        expect_eq(&format!("the answer for a buffer {place}"), &answer.answer(), &(MALFORMED, INVALID_SCRATCH_AREA))?;
    }
    expect_no_exit_but(t, exits, places.len() as u64)
}

fn short_buffer(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    const LATE: u64 = 0xfe0;
    let at_the_end = |header: u64| {
        let words = [header, small(TO_PRIVATE, TEST_BASE)];
        let scratch = buffer(0).0 - BUFFER + LATE;
        Page::request(PAGE_STATE_CHANGE, 0, 0).with(Field::SCRATCH, scratch).with_words(LATE, &words)
    };
    expect_eq("the answer for two", &requests(&g).call(&at_the_end(1 << 16))?.answer(), &(0, INVALID_HEADER))?;
    let asking = requests(&g).start(&at_the_end(0))?;
    grant(&g, &asking, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)])?;
    expect_eq("the answer for one", &requests(&g).answer(asking)?.answer(), &(0, 0))
}

fn refused(t: &Case, errno: Errno) -> Outcome {
    let g = guest(t, 8)?;
    let entries = [0, 2, 4].map(|page| small(TO_PRIVATE, TEST_BASE + PageCount(page)));
    let asking = requests(&g).start(&request(&entries))?;
    grant(&g, &asking, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)])?;
    asking.expect_exit(&exit(TEST_BASE + PageCount(2), 1, MAP_GPA_RANGE_ENCRYPTED))?;
    g.vcpu(0).kvm().set_hypercall_ret(errno as u64)?;
    asking.resume()?;
    let answer = requests(&g).answer(asking)?;
    expect_eq("the answer", &answer.answer(), &(0, GENERIC))?;
    expect_eq("the header", &answer.buffer(0), &(2 << 16 | 1))?;
    let done = [1, 2, 3].map(|index| answer.buffer(index) & 0xfff);
    expect_eq("how far each entry is done", &done, &[1, 0, 0])?;
    // The guest is whole, and so is its channel.
    g.vcpu(0).write(g.range(0).shared_gva(0), Width::B8, 7)
}
