//! Encrypted memory: what the host sees of what the guest writes, and the other way round.
//!
//! In SEV and SEV-ES VMs private and shared are two ways to see one page; an SNP VM has two pages, as a UPM VM has.

use privet_harness::case::Case;
use privet_harness::conversion::Backed;
use privet_harness::guest::Guest;
use privet_harness::outcome::Outcome;
use privet_harness::platform::Platform;
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::units::PAGE_SIZE;
use privet_protocol::{Op, Pattern, Sharing, Width};

use super::{A, B, C};
use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::row::Row;
use crate::types::Types;

const C_BIT: &str = "APM volume 2, 15.34.5 and 15.34.6: the C-bit, and reads with another key";
const NO_FAULT: &str = "arch/x86/kvm/svm/svm.c: npf_interception looks at the C-bit for SNP alone";
const WALKS: &str = "APM volume 2, 15.34.5: instruction fetches and page walks are always private";
const SEV_PORT: &str = "sev_priv_memfd_test (Annapurve, 2022)";

/// Bytes that are encrypted together: a block of AES.
const BLOCK: u64 = 16;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "access.private_memory_private_access",
            Types::SEV_FAMILY,
            "The host fills a page, the guest makes it private and writes: the guest reads what it wrote, the host what it \
             had or ciphertext, never what the guest wrote.",
            private_memory_private_access,
        )
        .basis(&[C_BIT, SEV_PORT])
        .exceeds("priv_memfd_test: PMPAT")
        .exceeds("x86/sev_priv_memfd_test: PMPAT"),
        Row::new(
            "access.private_memory_shared_access",
            Types::SEV_AND_ES,
            "A shared access to a page that was written as private is no exit: it reads the ciphertext that the host \
             sees, and what it writes is what the host sees.",
            private_memory_shared_access,
        )
        .basis(&[C_BIT, NO_FAULT, SEV_PORT])
        .exceeds("priv_memfd_test: PMSAT")
        .exceeds("x86/sev_priv_memfd_test: PMSAT")
        .exceeds("x86/sev_private_mem_test: guest_conv_test_fn_implicit"),
        Row::new(
            "access.sev_status",
            Types::SEV_FAMILY,
            "The guest reads in its MSR SEV_STATUS which kind of guest it is: the processor answers, without an exit.",
            sev_status,
        )
        .basis(&["APM volume 2, 15.34.10: SEV_STATUS MSR"]),
        Row::new(
            "access.shared_read_of_mapped_private",
            Types::SNP,
            "A shared read of a private page that the guest uses is no exit: the RMP lets reads through, and the guest sees \
             ciphertext.",
            shared_read_of_mapped,
        )
        .basis(&["APM volume 2, 15.36.10: RMP checks of writes and of private reads only"]),
        Row::new(
            "access.shared_memory_shared_access",
            Types::SEV_FAMILY,
            "Host and guest see each other's writes to a page that was never private, and nothing exits.",
            shared_memory_shared_access,
        )
        .basis(&[C_BIT, SEV_PORT])
        .upstream("priv_memfd_test: SMSAT")
        .upstream("x86/sev_priv_memfd_test: SMSAT"),
        Row::new(
            "access.shared_memory_private_access",
            Types::SEV_AND_ES,
            "A private write to a page that was shared is no exit: the host's view becomes ciphertext.",
            shared_memory_private_access,
        )
        .basis(&[C_BIT, NO_FAULT, SEV_PORT])
        .exceeds("priv_memfd_test: SMPAT")
        .exceeds("x86/sev_priv_memfd_test: SMPAT"),
        Row::new(
            "access.private_then_shared",
            Types::SEV_FAMILY,
            "The guest writes a page as private, gives it to the host, and writes it as shared: the host sees the latter, and \
             nothing of the former.",
            private_then_shared,
        )
        .basis(&[C_BIT, SEV_PORT])
        .upstream("priv_memfd_test: PSAT")
        .upstream("x86/sev_priv_memfd_test: PSAT"),
        Row::new(
            "access.shared_then_private",
            Types::SEV_FAMILY,
            "The guest writes a page as shared, takes it, and writes it as private: the host sees none of the latter.",
            shared_then_private,
        )
        .basis(&[C_BIT, SEV_PORT])
        .upstream("priv_memfd_test: SPAT")
        .upstream("x86/sev_priv_memfd_test: SPAT"),
        Row::new(
            "access.private_shared_private_by_request",
            Types::SEV_FAMILY,
            "Private, shared and private again, each time by a request that the host grants: each side sees exactly what \
             it should, at every step.",
            private_shared_private,
        )
        .basis(&[C_BIT, SEV_PORT])
        .exceeds("priv_memfd_test: PSPAHCT")
        .exceeds("x86/sev_priv_memfd_test: PSPAHCT"),
        Row::new(
            "access.host_write_spoils_one_block",
            Types::SEV_AND_ES,
            "A byte that the host writes into a private page spoils the 16 bytes that are encrypted together with it, and \
             no others.",
            host_write_spoils_one_block,
        )
        .basis(&[C_BIT]),
        Row::new(
            "access.ciphertext_depends_on_the_address",
            Types::SEV_AND_ES,
            "Two private pages with the same content have no block of ciphertext in common, and neither does one page in \
             itself.",
            ciphertext_depends_on_the_address,
        )
        .basis(&["APM volume 2, 15.34.1: the encryption depends on the physical address"]),
        Row::new(
            "access.guests_have_different_keys",
            Types::SEV_FAMILY,
            "Two guests write the same into a page of host memory that both have: each reads its own as it was, and the \
             other's as ciphertext.",
            guests_have_different_keys,
        )
        .guests(2)
        .basis(&["APM volume 2, 15.34.1: each guest has a key of its own"]),
        Row::new(
            "access.code_is_always_private",
            Types::SEV_AND_ES,
            "Code that the guest wrote as private runs from either alias: a fetch does not look at the C-bit.",
            code_is_always_private,
        )
        .basis(&[WALKS]),
        Row::new(
            "access.walks_are_always_private",
            Types::SEV_FAMILY,
            "A page-table entry that the guest writes as private takes effect though no entry above it were private.",
            walks_are_always_private,
        )
        .basis(&[WALKS]),
        Row::new(
            "access.one_vcpu_writes_the_others_read",
            Types::SEV_FAMILY,
            "What one vCPU writes as private the three others read as private: the key is the guest's.",
            one_vcpu_writes,
        )
        .basis(&[C_BIT]),
        Row::new(
            "access.compare_exchange_of_ciphertext",
            Types::SEV_AND_ES,
            "A locked compare-and-exchange acts on what its alias shows: the private alias on what was written, the shared \
             one on ciphertext.",
            compare_exchange_of_ciphertext,
        )
        .basis(&[C_BIT]),
    ]
}

/// A guest with so many pages that can be private.
fn guest(t: &Case, pages: u64) -> Outcome<Guest> {
    t.guest().range(RangeSpec::new(pages).backing(t.platform().backing())).boot()
}

/// Expects the host to see nothing of what the guest wrote as private, but what it `had` where there are two pages, and
/// ciphertext where there is one.
fn host_sees_none_of(g: &Guest, page: u64, written: Pattern, had: Pattern) -> Outcome {
    let range = g.range(0);
    if g.platform().has_private_memory() {
        return range.host_expect(page..page + 1, had);
    }
    range.host_expect_not(page..page + 1, written)?;
    range.host_expect_not(page..page + 1, had)
}

fn sev_status(t: &Case) -> Outcome {
    const SEV_STATUS: u32 = 0xc001_0131;
    let g = t.guest().boot()?;
    let exits = t.trace().exits();
    let [status, ..] = g.vcpu(0).call(Op::ReadMsr { msr: SEV_STATUS })?;
    let (sev, sev_es, snp) = (1 << 0, 1 << 1, 1 << 2);
    let expected = match t.platform() {
        Platform::Snp => sev | sev_es | snp,
        Platform::SevEs => sev | sev_es,
        _ => sev,
    };
    expect_eq("SEV_STATUS", &status, &expected)?;
    expect_no_exit_but(t, exits, 1)
}

fn private_memory_private_access(t: &Case) -> Outcome {
    let g = guest(t, 3)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    g.make_private(0, 1..2)?;
    v.fill(range.private_gva(1), 1, B, 1)?;
    v.expect(range.private_gva(1), 1, B, 1)?;
    host_sees_none_of(&g, 1, B, A)?;
    // The neighbours are as they were.
    for page in [0, 2] {
        range.host_expect(page..page + 1, A)?;
        v.expect(range.shared_gva(page), 1, A, page)?;
    }
    v.expect(range.private_gva(1), 1, B, 1)
}

/// The words of a page as the host sees them.
fn host_words(g: &Guest, page: u64) -> Outcome<Vec<u64>> {
    (0..PAGE_SIZE / 8).map(|word| g.range(0).host().read_u64(page * PAGE_SIZE + word * 8)).collect()
}

fn private_memory_shared_access(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.private_gva(0), 1, B, 0)?;
    let exits = t.trace().exits();
    v.expect_not(range.shared_gva(0), 1, B, 0)?;
    let host = host_words(&g, 0)?;
    for index in [0, 1, 255, 511] {
        v.expect_read(range.shared_gva(0) + index * 8, Width::B8, host[index as usize])?;
    }
    v.fill(range.shared_gva(0), 1, C, 0)?;
    range.host_expect(0..1, C)?;
    v.expect_not(range.private_gva(0), 1, B, 0)?;
    expect_no_exit_but(t, exits, 7)
}

fn shared_memory_shared_access(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    let exits = t.trace().exits();
    v.expect(range.shared_gva(0), 2, A, 0)?;
    v.fill(range.shared_gva(0), 2, B, 0)?;
    range.host_expect(range.all(), B)?;
    expect_no_exit_but(t, exits, 2)
}

fn shared_memory_private_access(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(0), 1, A, 0)?;
    let exits = t.trace().exits();
    v.expect_not(range.private_gva(0), 1, A, 0)?;
    v.fill(range.private_gva(0), 1, B, 0)?;
    v.expect(range.private_gva(0), 1, B, 0)?;
    host_sees_none_of(&g, 0, B, A)?;
    expect_no_exit_but(t, exits, 3)
}

fn private_then_shared(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, B, 0)?;
    v.expect(range.private_gva(0), 1, B, 0)?;
    range.host_expect_not(0..1, B)?;
    g.make_shared(0, 0..1)?;
    v.fill(range.shared_gva(0), 1, C, 0)?;
    range.host_expect(0..1, C)?;
    v.expect(range.shared_gva(0), 1, C, 0)
}

fn shared_then_private(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..1, A)?;
    v.expect(range.shared_gva(0), 1, A, 0)?;
    v.fill(range.shared_gva(0), 1, B, 0)?;
    range.host_expect(0..1, B)?;
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, C, 0)?;
    host_sees_none_of(&g, 0, C, B)?;
    v.expect(range.private_gva(0), 1, C, 0)
}

fn private_shared_private(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.convert(0, 0..1, Sharing::Private, Backed::Leave)?;
    v.fill(range.private_gva(0), 1, B, 0)?;
    g.convert(0, 0..1, Sharing::Shared, Backed::Leave)?;
    range.host_fill(0..1, A)?;
    v.expect(range.shared_gva(0), 1, A, 0)?;
    v.fill(range.shared_gva(0), 1, C, 0)?;
    range.host_expect(0..1, C)?;
    g.convert(0, 0..1, Sharing::Private, Backed::Leave)?;
    v.fill(range.private_gva(0), 1, A, 0)?;
    v.expect(range.private_gva(0), 1, A, 0)?;
    host_sees_none_of(&g, 0, A, C)
}

fn host_write_spoils_one_block(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.private_gva(0), 1, B, 0)?;
    let at = 0x208;
    let word = range.host().read_u64(at)?;
    range.host().write_u64(at, word ^ 1)?;
    let mut spoilt = Vec::new();
    for offset in (0..PAGE_SIZE).step_by(8) {
        if v.read(range.private_gva(0) + offset, Width::B8)? != B.word(0) {
            spoilt.push(offset);
        }
    }
    let block = at - at % BLOCK;
    expect_eq("the words that are spoilt", &spoilt, &vec![block, block + 8])
}

fn ciphertext_depends_on_the_address(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    for page in 0..2 {
        v.fill(range.private_gva(page), 1, B, 0)?;
    }
    let mut words = [host_words(&g, 0)?, host_words(&g, 1)?].concat();
    let all = words.len();
    words.sort_unstable();
    words.dedup();
    expect_eq("different words of ciphertext", &words.len(), &all)
}

fn guests_have_different_keys(t: &Case) -> Outcome {
    let guests = [guest(t, 1)?, guest(t, 1)?];
    for g in &guests {
        g.make_private(0, 0..1)?;
        g.vcpu(0).fill(g.range(0).private_gva(0), 1, B, 0)?;
        g.vcpu(0).expect(g.range(0).private_gva(0), 1, B, 0)?;
    }
    if t.platform().has_private_memory() {
        return Ok(());
    }
    let [one, other] = &guests;
    let mut ciphertext = vec![0; PAGE_SIZE as usize];
    one.range(0).host().read(0, &mut ciphertext)?;
    other.range(0).host().write(0, &ciphertext)?;
    other.vcpu(0).expect_not(other.range(0).private_gva(0), 1, B, 0)?;
    one.vcpu(0).expect(one.range(0).private_gva(0), 1, B, 0)
}

/// `lea rax, [rdi + 1]; ret`
const ADD_ONE: [u8; 5] = [0x48, 0x8d, 0x47, 1, 0xc3];

fn code_is_always_private(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.write_bytes(range.private_gva(0), &ADD_ONE)?;
    for gva in [range.private_gva(0), range.shared_gva(0)] {
        let [sum, ..] = v.call(Op::Execute { gva: gva.0, argument: 41 })?;
        expect_eq("what the code returned", &sum, &42)?;
    }
    Ok(())
}

fn walks_are_always_private(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    // Both pages behind one address, by an entry that the guest itself writes and the CPU walks.
    let (first, second) = (v.read_entry(range.shared_gva(0))?, v.read_entry(range.shared_gva(1))?);
    expect_that(first != second, || "two pages have the same entry".into())?;
    v.write_entry(range.shared_gva(0), second)?;
    v.expect(range.shared_gva(0), 1, A, 1)?;
    v.write_entry(range.shared_gva(0), first)?;
    v.expect(range.shared_gva(0), 1, A, 0)
}

fn one_vcpu_writes(t: &Case) -> Outcome {
    let g = t.guest().vcpus(4).range(RangeSpec::new(4).backing(t.platform().backing())).boot()?;
    let range = g.range(0);
    g.make_private(0, range.all())?;
    for (page, v) in g.vcpus().iter().enumerate() {
        v.fill(range.private_gva(page as u64), 1, B, page as u64)?;
    }
    g.vcpus().iter().try_for_each(|v| v.expect(range.private_gva(0), 4, B, 0))
}

fn compare_exchange_of_ciphertext(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.write(range.private_gva(0), Width::B8, 1)?;
    let exchange = |gva: u64, expected, new| {
        Ok::<_, privet_harness::outcome::Stop>(v.call(Op::CompareExchange { gva, expected, new })?[0])
    };
    expect_eq("what the private alias held", &exchange(range.private_gva(0).0, 1, 7)?, &1)?;
    let ciphertext = range.host().read_u64(0)?;
    expect_eq("what the shared alias held", &exchange(range.shared_gva(0).0, 7, 8)?, &ciphertext)?;
    v.expect_read(range.private_gva(0), Width::B8, 7)
}

fn shared_read_of_mapped(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..1, A)?;
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, B, 0)?;
    let exits = t.trace().exits();
    v.expect_not(range.shared_gva(0), 1, B, 0)?;
    v.expect_not(range.shared_gva(0), 1, A, 0)?;
    v.expect(range.private_gva(0), 1, B, 0)?;
    expect_no_exit_but(t, exits, 3)
}
