//! Group `psc`: page state changes, by which an SNP guest asks for conversions, word by word.

mod buffer;
mod entries;
mod large_page;
mod msr;
mod userspace;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::ghcb::{Field, Page, Requests, buffer};
use privet_harness::guest::Guest;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{Backing, RangeSpec, TEST_BASE};
use privet_harness::uapi::{Capability, HC_MAP_GPA_RANGE};
use privet_harness::units::Gpa;
use privet_protocol::Op;

use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_EVENT, MALFORMED};
use crate::row::Row;
use crate::types::Types;

const MSR: &str = "arch/x86/kvm/svm/sev.c: snp_begin_psc_msr, snp_complete_psc_msr";
const PAGE: &str = "arch/x86/kvm/svm/sev.c: snp_begin_psc, snp_do_psc, snp_complete_one_psc";
const ROTH: &str = "AMD's GHCB specification (56421), 4.1.6 SNP Page State Change";

/// SW_EXITCODE.
const PAGE_STATE_CHANGE: u64 = 0x8000_0010;
/// Where the buffer is in the page, bytes.
const BUFFER: u64 = 0x800;
/// Entries that it has room for.
const ENTRIES: u64 = 253;

const TO_PRIVATE: u64 = 1;
const TO_SHARED: u64 = 2;

/// SW_EXITINFO2 of an answer.
const INVALID_HEADER: u64 = 1 << 32 | 1;
const INVALID_ENTRY: u64 = 1 << 32 | 2;
const GENERIC: u64 = 0x100 << 32;

/// The answer by the MSR protocol with an error.
const MSR_ERROR: u64 = 1 << 63 | 0x015;

/// Bit 0 of the attributes of the exit: pages of 2 MiB.
const SIZE_2M: u64 = 1;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let not_of_sev_es =
        Row::new("psc.not_of_sev_es", Types::SEV_ES, "In a SEV-ES guest there is no such event.", |t| {
            let g = t.guest().range(image()).boot()?;
            let requests = Requests::new(&g, 0, g.range(0), 0);
            let answer = requests.call(&request(&[small(TO_PRIVATE, TEST_BASE)]))?;
            expect_eq("the answer", &answer.answer(), &(MALFORMED, INVALID_EVENT))
        })
        .basis(&["arch/x86/kvm/svm/sev.c: is_snp_only_vmgexit"]);
    let exit_hypercall = Need::Capability(Capability::EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE);
    [msr::rows(), entries::rows(), large_page::rows(), buffer::rows(), userspace::rows(), vec![not_of_sev_es]]
        .into_iter()
        .flatten()
        .map(|row| row.needs(Need::GuestCode).needs(exit_hypercall.clone()))
        .collect()
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

fn msr_request(operation: u64, gpa: Gpa) -> u64 {
    operation << 52 | gpa.0 | 0x014
}

fn vmgexit(g: &Guest, msr: u64) -> Outcome<u64> {
    Ok(g.vcpu(0).call(Op::VmgexitMsr { msr })?[0])
}
