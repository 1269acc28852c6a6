//! The pages that the firmware fills, or checks, for an SNP guest: its secrets, and its table of CPUID.

use privet_harness::case::Case;
use privet_harness::cpuid_page::CpuidFunction;
use privet_harness::guest::Guest;
use privet_harness::launch::{CPUID, OWN_BASE, SECRETS};
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::units::{Gpa, Gva, PAGE_SIZE};
use privet_protocol::Op;

use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::row::Row;
use crate::types::Types;

const UPDATE: &str = "arch/x86/kvm/svm/sev.c: sev_gmem_post_populate";
const SECRETS_PAGE: &str = "SEV-SNP firmware ABI, 8.17.2.5; arch/x86/include/asm/sev.h: struct snp_secrets_page";
const CPUID_PAGE: &str = "SEV-SNP firmware ABI, 8.17.2.6; arch/x86/coco/sev/vc-shared.c: snp_cpuid";

/// Where the guest's keys are in the page of secrets, and how long each is.
const KEYS: usize = 0x20;
const KEY: usize = 0x20;

/// Every feature that there could be of leaf 7, and a hypervisor's leaf, which is the host's to fill.
const FEATURES: CpuidFunction = CpuidFunction { function: [7, 0], answer: [u32::MAX; 4] };
const HYPERVISOR: CpuidFunction =
    CpuidFunction { function: [0x4000_0000, 0], answer: [0x4000_0010, 0x7669_7270, 0x7465, 3] };

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "populate.secrets_page",
            Types::SNP,
            "The guest finds four keys in its page of secrets, each another and none zero; the next guest has others. What \
             the host gave for the page is still zero: the keys are nowhere in its memory.",
            secrets_page,
        )
        .basis(&[UPDATE, SECRETS_PAGE]),
        Row::new(
            "populate.cpuid_page",
            Types::SNP,
            "The guest reads its page of CPUID as the firmware has corrected it, and as the host has it back: no feature \
             that the processor lacks, and a hypervisor's leaf as it was given.",
            cpuid_page,
        )
        .basis(&[UPDATE, CPUID_PAGE]),
        Row::new(
            "populate.cpuid_page.answers",
            Types::SNP,
            "A guest that has a page of CPUID is never told by the host: CPUID is one #VC, no exit, and what the page says; \
             zeroes for what is not in it.",
            answers,
        )
        .basis(&[CPUID_PAGE]),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

fn guest(t: &Case) -> Outcome<Guest> {
    t.guest().firmware_pages(vec![FEATURES, HYPERVISOR]).boot()
}

/// The host's view of so many bytes of the guest's own memory: what was given to the launch.
fn given(g: &Guest, gpa: Gpa, bytes: usize) -> Outcome<Vec<u8>> {
    let mut content = vec![0; bytes];
    g.own_memory().read(gpa.0 - OWN_BASE.0, &mut content)?;
    Ok(content)
}

fn secrets_page(t: &Case) -> Outcome {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2 {
        let g = guest(t)?;
        let keys = g.vcpu(0).read_bytes(Gva(SECRETS.0 + KEYS as u64), 4 * KEY)?;
        for key in keys.chunks_exact(KEY) {
            expect_that(key.iter().any(|byte| *byte != 0), || "a key is zero".into())?;
            expect_that(!seen.iter().any(|other| other == key), || "a key is there twice".into())?;
            seen.push(key.to_vec());
        }
        let page = given(&g, SECRETS, PAGE_SIZE as usize)?;
        expect_eq("bytes that are not zero in the host's page", &page.iter().filter(|byte| **byte != 0).count(), &0)?;
    }
    Ok(())
}

fn cpuid_page(t: &Case) -> Outcome {
    let g = guest(t)?;
    const USED: usize = 16 + 2 * 48;
    let page = given(&g, CPUID, USED)?;
    expect_eq("what the guest reads", &g.vcpu(0).read_bytes(Gva(CPUID.0), USED)?, &page)?;
    let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let answer = |index: usize| [0, 1, 2, 3].map(|register| word(16 + 48 * index + 24 + 4 * register));
    expect_eq("how many functions", &word(0), &2)?;
    expect_that(answer(0).iter().all(|word| *word != u32::MAX), || "nothing of leaf 7 was corrected".into())?;
    expect_eq("the hypervisor's leaf", &answer(1), &HYPERVISOR.answer)
}

fn answers(t: &Case) -> Outcome {
    let g = guest(t)?;
    let v = g.vcpu(0);
    let corrected = given(&g, CPUID, 16 + 48)?;
    let features =
        [0, 4, 8, 12].map(|at| u32::from_le_bytes(std::array::from_fn(|byte| corrected[16 + 24 + at + byte])));
    for ([leaf, subleaf], expected) in
        [(FEATURES.function, features), (HYPERVISOR.function, HYPERVISOR.answer), ([7, 1], [0; 4]), ([1, 0], [0; 4])]
    {
        let [before, ..] = v.call(Op::Reflected)?;
        let exits = t.trace().exits();
        let [eax, ebx, ecx, edx, ..] = v.call(Op::Cpuid { leaf, subleaf })?;
        expect_no_exit_but(t, exits, 1)?;
        expect_eq("#VC of one CPUID", &(v.call(Op::Reflected)?[0] - before), &1)?;
        let what = format!("CPUID of leaf {leaf:#x}, subleaf {subleaf}");
        expect_eq(&what, &[eax, ebx, ecx, edx], &expected.map(u64::from))?;
    }
    Ok(())
}
