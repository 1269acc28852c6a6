//! Memory that a launch has encrypted before the guest's first instruction: the guest's own.

use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::launch::{OWN_BASE, Part, Piece};
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::uapi::{Capability, GUEST_MEMFD_FLAG_MMAP};
use privet_harness::units::{Gva, PAGE_SIZE};

use crate::expect::{expect_eq, expect_that};
use crate::row::Row;
use crate::types::Types;

const UPDATE_DATA: &str = "arch/x86/kvm/svm/sev.c: sev_launch_update_data, which encrypts in place";
const SNP_UPDATE: &str = "arch/x86/kvm/svm/sev.c: sev_gmem_post_populate, which copies and then encrypts";

/// How many bytes of a page are looked at: at its start and at its end.
const SAMPLE: usize = 64;

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "populate.guest_reads_what_was_launched",
            Types::SEV_FAMILY,
            "The guest reads its own code, which was encrypted before it first ran, as it was given to the launch, at the \
             start and at the end of every page.",
            |t| {
                let g = t.guest().boot()?;
                expect_code(&g)
            },
        )
        .basis(&[UPDATE_DATA, SNP_UPDATE])
        .exceeds("x86/sev_all_boot_test: guest_sev_code, guest_sev_es_code")
        .exceeds("x86/coco_pre_fault_memory_test: prefault_none"),
        Row::new(
            "populate.host_sees_ciphertext",
            Types::SEV_AND_ES,
            "What was launched is ciphertext for the host from then on: no 16 bytes of code, data or page tables that are \
             not zero are what they were.",
            host_sees_ciphertext,
        )
        .basis(&[UPDATE_DATA]),
        Row::new(
            "populate.own_memory_is_a_mapped_file",
            Types::WITHOUT_PRIVATE_MEMORY,
            "A guest runs whose own memory, with its code and page tables, is one guest_memfd that the host maps, too: the \
             guest reads its code as it was loaded, and the host what it loaded, or ciphertext of all that was encrypted.",
            own_memory_is_a_mapped_file,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_fault_user_mapping, of which sev_pin_memory pins pages", UPDATE_DATA])
        .needs(Need::GuestMemfd)
        .needs(Need::Capability(Capability::GUEST_MEMFD_FLAGS, GUEST_MEMFD_FLAG_MMAP as i32)),
        Row::new(
            "populate.source_keeps_its_content",
            Types::SNP,
            "The memory that a launch copies from keeps its content, and is not the guest's: what the host writes there \
             afterwards does not matter to it.",
            source_keeps_its_content,
        )
        .basis(&[SNP_UPDATE]),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

/// The pieces that nobody changes while the guest runs.
fn code(g: &Guest) -> impl Iterator<Item = &Piece> {
    g.plan().pieces().iter().filter(|piece| piece.part == Some(Part::Code))
}

/// Expects the guest to read its own code as it was planned.
fn expect_code(g: &Guest) -> Outcome {
    for piece in code(g) {
        for page in (0..piece.bytes.len()).step_by(PAGE_SIZE as usize) {
            let end = piece.bytes.len().min(page + PAGE_SIZE as usize);
            for at in [page, end.saturating_sub(SAMPLE).max(page)] {
                let planned = &piece.bytes[at..(at + SAMPLE).min(end)];
                let seen = g.vcpu(0).read_bytes(Gva(piece.gpa.0 + at as u64), planned.len())?;
                expect_eq(&format!("the code at gpa {}", piece.gpa + at as u64), &seen.as_slice(), &planned)?;
            }
        }
    }
    Ok(())
}

fn host_sees_ciphertext(t: &Case) -> Outcome {
    expect_ciphertext(&t.guest().boot()?)
}

/// Expects nothing that is private and not zero to be in the host's view of the guest's own memory.
fn expect_ciphertext(g: &Guest) -> Outcome {
    for piece in g.plan().private() {
        let mut seen = vec![0; piece.bytes.len()];
        g.own_memory().read(piece.gpa.0 - OWN_BASE.0, &mut seen)?;
        let (planned, _) = piece.bytes.as_chunks::<16>();
        let (seen, _) = seen.as_chunks::<16>();
        let same = planned.iter().zip(seen).position(|(planned, seen)| planned == seen && *planned != [0; 16]);
        expect_that(same.is_none(), || {
            format!("block {same:?} of {:?} at gpa {} is no ciphertext", piece.part, piece.gpa)
        })?;
    }
    Ok(())
}

fn own_memory_is_a_mapped_file(t: &Case) -> Outcome {
    let g = t.guest().own_memory_in_a_file().boot()?;
    expect_ciphertext(&g)?;
    expect_code(&g)?;
    if g.plan().private().next().is_some() {
        return Ok(());
    }
    for piece in code(&g) {
        let mut seen = vec![0; piece.bytes.len()];
        g.own_memory().read(piece.gpa.0 - OWN_BASE.0, &mut seen)?;
        expect_that(seen == piece.bytes, || format!("the host's view of the code at gpa {} has changed", piece.gpa))?;
    }
    Ok(())
}

fn source_keeps_its_content(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let source = g.own_memory();
    for piece in code(&g) {
        let at = piece.gpa.0 - OWN_BASE.0;
        let mut seen = vec![0; piece.bytes.len()];
        source.read(at, &mut seen)?;
        if seen != piece.bytes {
            return Err(Stop::Fail(format!("the source of the code at gpa {} has changed", piece.gpa)));
        }
        source.fill(at, piece.bytes.len() as u64, 0xcc)?;
    }
    expect_code(&g)
}
