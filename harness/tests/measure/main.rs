//! Our launch digests against those of two tools that others have written, on random plans: the `sev` crate, and
//! sev-snp-measure of PyPI.

mod image;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use privet_harness::measure::{EventLog, Method, SevFeatures, VcpuState};
use privet_harness::sev::PageType;
use privet_harness::units::{Gpa, PAGE_SIZE};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};

use image::{Section, image};

/// A guest as these tools can describe it: firmware below 4 GiB, sections, and vCPUs after a reset.
#[derive(Clone, Debug)]
struct Plan {
    content: Vec<u8>,
    reset: u32,
    sections: Vec<Section>,
    vcpus: usize,
    features: u64,
}

fn plans() -> impl Strategy<Value = Plan> {
    let section = prop_oneof![
        (0..0x8_0000_u32, 1..4_u32).prop_map(|(page, pages)| Section { page_type: PageType::Zero, page, pages }),
        (0..0x8_0000_u32).prop_map(|page| Section { page_type: PageType::Secrets, page, pages: 1 }),
        (0..0x8_0000_u32).prop_map(|page| Section { page_type: PageType::Cpuid, page, pages: 1 }),
    ];
    let content = (1..4_usize).prop_flat_map(|pages| vec(any::<u8>(), pages * PAGE_SIZE as usize));
    (content, 1..=u32::MAX, vec(section, 0..6), 0..4_usize, any::<u64>()).prop_map(
        |(content, reset, sections, vcpus, features)| {
            let content = image(content, reset, &sections);
            Plan { content, reset, sections, vcpus, features }
        },
    )
}

/// `EPYC-Milan`: family 25, model 1, stepping 1, as CPUID 1 has it.
const SIGNATURE: u64 = 0x00a0_0f11;

/// The state of a vCPU that QEMU has reset to begin at `eip`.
fn reset_state(eip: u32) -> VcpuState {
    let segment = |type_, s, selector, base| kvm_segment {
        type_,
        s,
        selector,
        base,
        present: 1,
        limit: 0xffff,
        ..Default::default()
    };
    let data = segment(3, 1, 0, 0);
    let mut special = kvm_sregs { cr0: 0x10, es: data, ss: data, ds: data, fs: data, gs: data, ..Default::default() };
    special.cs = segment(11, 1, 0xf000, u64::from(eip & 0xffff_0000));
    special.ldt = segment(2, 0, 0, 0);
    special.tr = segment(11, 0, 0, 0);
    (special.gdt.limit, special.idt.limit) = (0xffff, 0xffff);
    let registers = kvm_regs { rip: u64::from(eip & 0xffff), rflags: 2, rdx: SIGNATURE, ..Default::default() };
    VcpuState::with_fresh_fpu(registers, special)
}

/// What we measure of a plan.
fn ours(plan: &Plan, method: Method, features: SevFeatures, has_sections: bool, has_states: bool) -> String {
    let mut log = EventLog::new(method, features);
    let start = Gpa((1 << 32) - plan.content.len() as u64);
    log.add(PageType::Normal, start, plan.content.clone(), None);
    for Section { page_type, page, pages } in plan.sections.iter().filter(|_| has_sections) {
        log.add(*page_type, Gpa(u64::from(*page) * PAGE_SIZE), vec![0; (*pages as u64 * PAGE_SIZE) as usize], None);
    }
    for vcpu in (0..plan.vcpus).filter(|_| has_states) {
        log.add_vcpu(&reset_state(if vcpu == 0 { 0xffff_fff0 } else { plan.reset }));
    }
    log.digest().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn snp(plan: &Plan) -> String {
    ours(plan, Method::Sha384, SevFeatures(plan.features), true, true)
}

fn written(plan: &Plan, directory: &Path) -> PathBuf {
    let file = directory.join("firmware");
    fs::write(&file, &plan.content).unwrap();
    file
}

#[test]
fn snp_digests_are_those_of_the_sev_crate() {
    let directory = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::new(Config { cases: 64, ..Config::default() });
    let agree = |plan: Plan| {
        let theirs = snp_calc_launch_digest(SnpMeasurementArgs {
            vcpus: plan.vcpus as u32,
            vcpu_type: CpuType::EpycMilan,
            ovmf_file: written(&plan, directory.path()),
            guest_features: GuestFeatures(plan.features),
            kernel_file: None,
            initrd_file: None,
            append: None,
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        });
        prop_assert_eq!(snp(&plan), theirs.unwrap().get_hex_ld());
        Ok(())
    };
    runner.run(&plans(), agree).unwrap();
}

/// Digests of SNP, SEV-ES and SEV guests, a line each, for each line of standard input: a file, vCPUs and features.
const SCRIPT: &str = "
import sys
from sevsnpmeasure.guest import calc_launch_digest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
for line in sys.stdin:
    file, vcpus, features = line.split()
    for mode in SevMode.SEV_SNP, SevMode.SEV_ES, SevMode.SEV:
        signature = CPU_SIGS['EPYC-Milan']
        print(calc_launch_digest(mode, int(vcpus), signature, file, None, None, None, int(features)).hex())
";

#[test]
#[ignore = "needs PRIVET_SEV_SNP_MEASURE, a Python with sev-snp-measure: .ci/run has one"]
fn digests_of_all_types_are_those_of_sev_snp_measure() {
    let python = std::env::var_os("PRIVET_SEV_SNP_MEASURE").expect("PRIVET_SEV_SNP_MEASURE names a Python");
    let directory = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::new(Config { cases: 16, ..Config::default() });
    let agree = |plan: Plan| {
        let mut child = Command::new(&python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let file = written(&plan, directory.path());
        let line = format!("{} {} {}\n", file.display(), plan.vcpus, plan.features);
        child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let theirs: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
        let sev_es = ours(&plan, Method::Sha256, SevFeatures::NONE, false, true);
        let sev = ours(&plan, Method::Sha256, SevFeatures::NONE, false, false);
        prop_assert_eq!(vec![snp(&plan), sev_es, sev], theirs);
        Ok(())
    };
    runner.run(&plans(), agree).unwrap();
}
