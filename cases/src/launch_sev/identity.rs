//! The identity block: an owner's demand, which the firmware holds against its own measurement. So it is an oracle for
//! predicted launch digests.

use kvm_bindings::{kvm_fpu, kvm_regs};
use privet_harness::case::Case;
use privet_harness::launch::snp::{Launch, Started};
use privet_harness::mapping::Mapping;
use privet_harness::measure::{IdBlock, IdKey, VcpuState};
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::sev::{Device, Finish, Firmware, Memory, PageType, Refused, SnpPolicy};
use privet_harness::test_range::{RangeSpec, TEST_SLOT, TestRange};
use privet_harness::units::PAGE_SIZE;
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;
use privet_protocol::Pattern;

use crate::expect::{expect_done, expect_refused_by_firmware};
use crate::random::Random;
use crate::row::Row;
use crate::types::Types;

const ABI: &str = "SEV-SNP firmware ABI, 8.17.2, SNP_LAUNCH_FINISH and \"Identity Block\"";
const SYNC: &str = "arch/x86/kvm/svm/sev.c: sev_es_sync_vmsa, snp_launch_update_vmsa";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.identity.digest",
            Types::SNP,
            "A block with the digest that was predicted from the pages is accepted; with any one bit of it flipped it is \
             BAD_MEASUREMENT, and the guest can still be finished.",
            digest,
        )
        .basis(&[ABI]),
        Row::new(
            "launch.identity.random_plans",
            Types::SNP,
            "Random pages of all types, in random order and parts, and up to three vCPUs with random registers, are \
             measured as predicted: the block is accepted.",
            random_plans,
        )
        .basis(&[ABI, SYNC])
        .upstream("x86/sev_smoke_test: test_sync_vmsa"),
        Row::new(
            "launch.identity.registers",
            Types::SNP,
            "A prediction that is off by one register of the last vCPU, or by the order of the vCPUs, is \
             BAD_MEASUREMENT.",
            registers,
        )
        .basis(&[SYNC]),
        Row::new(
            "launch.identity.policy",
            Types::SNP,
            "A block with another policy than the guest's is POLICY_FAILURE, where the measurement is right.",
            |t| {
                with_guest(t, |_, launch, _| {
                    let block = IdBlock::new(launch.digest(&[]), SnpPolicy::DEFAULT | SnpPolicy::DEBUG);
                    let result = finish(&launch, &Signed::new(&IdKey::from_seed(t.seed()), &block))?;
                    expect_refused_by_firmware("another policy", result, Firmware::POLICY_FAILURE)
                })
            },
        )
        .basis(&[ABI]),
        Row::new(
            "launch.identity.signature",
            Types::SNP,
            "A block that was changed after it was signed, or is signed with another key, or by an author who did not \
             sign the key, is BAD_SIGNATURE; with all signatures right it is accepted.",
            signature,
        )
        .basis(&[ABI]),
        Row::new(
            "launch.identity.format",
            Types::SNP,
            "A block of another version, or signed by an algorithm or on a curve that the firmware does not know, is \
             INVALID_PARAM.",
            format,
        )
        .basis(&[ABI]),
    ]
}

/// Pages of the range that these guests are made of.
const PAGES: u64 = 16;

/// An SNP guest with a private range, before its first page.
fn with_guest(t: &Case, story: impl FnOnce(&Vm, Launch<'_, Started>, &TestRange) -> Outcome) -> Outcome {
    let (vm, device) = (t.vm()?, Device::open()?);
    let launch = Launch::create(&vm, &device, Default::default())?.start(SnpPolicy::DEFAULT)?;
    let range = TestRange::install(&vm, RangeSpec::new(PAGES), TEST_SLOT)?;
    range.set_private(&vm, range.all())?;
    range.host_fill(range.all(), Pattern(t.seed()))?;
    story(&vm, launch, &range)
}

/// A block and its authentication, as the firmware is given them.
#[derive(Clone)]
struct Signed {
    block: [u8; IdBlock::LENGTH],
    authentication: [u8; PAGE_SIZE as usize],
    author_key: bool,
}

impl Signed {
    /// Signed as it should be, without an author.
    fn new(key: &IdKey, block: &IdBlock) -> Signed {
        let authentication = block.authentication(key, None);
        Signed { block: block.bytes(), authentication, author_key: false }
    }
}

/// Tries to finish the launch under a block.
fn finish(launch: &Launch<'_, Started>, signed: &Signed) -> Outcome<Result<(), Refused>> {
    let memory = Mapping::anonymous(2 * PAGE_SIZE)?;
    memory.write(0, &signed.block)?;
    memory.write(PAGE_SIZE, &signed.authentication)?;
    let id = Some((Memory::In(&memory, 0), Memory::In(&memory, PAGE_SIZE)));
    Ok(launch.commands().snp_launch_finish(Finish { id, author_key: signed.author_key, ..Finish::PLAIN }))
}

fn add(launch: &mut Launch<'_, Started>, range: &TestRange, page_type: PageType, page: u64, pages: u64) -> Outcome {
    let bytes = page * PAGE_SIZE..(page + pages) * PAGE_SIZE;
    if page_type == PageType::Cpuid {
        // No function at all: nothing that the firmware could correct.
        range.host().fill(bytes.start, pages * PAGE_SIZE, 0)?;
    }
    launch.update(page_type, range.gpa(page), range.host(), bytes)
}

fn digest(t: &Case) -> Outcome {
    with_guest(t, |_, mut launch, range| {
        for (page, page_type) in PageType::OF_USER_SPACE.into_iter().enumerate() {
            add(&mut launch, range, page_type, 3 * page as u64, 2)?;
        }
        let right = launch.digest(&[]);
        let (key, mut random) = (IdKey::from_seed(t.seed()), Random::new(t.seed()));
        for bit in (0..8).map(|_| random.below(384)).chain([0, 383]) {
            let wrong = IdBlock::new(right.with_bit_flipped(bit as usize), SnpPolicy::DEFAULT);
            let result = finish(&launch, &Signed::new(&key, &wrong))?;
            expect_refused_by_firmware(&format!("bit {bit} flipped"), result, Firmware::BAD_MEASUREMENT)?;
        }
        let block = IdBlock::new(right, SnpPolicy::DEFAULT);
        expect_done("the digest that was predicted", finish(&launch, &Signed::new(&key, &block))?)
    })
}

/// Random registers that KVM takes: a vCPU in real mode, as it is after its reset.
fn randomize(vcpu: &Vcpu, random: &mut Random) -> Outcome<VcpuState> {
    let refused = |error| Stop::Fail(format!("setting registers of vCPU {}: {error}", vcpu.id()));
    let mut word = || random.below(u64::MAX);
    let registers = kvm_regs {
        rax: word(),
        rbx: word(),
        rcx: word(),
        rdx: word(),
        rsi: word(),
        rdi: word(),
        rsp: word(),
        rbp: word(),
        r8: word(),
        r9: word(),
        r10: word(),
        r11: word(),
        r12: word(),
        r13: word(),
        r14: word(),
        r15: word(),
        rip: word(),
        rflags: 2 | word() & 0xcd5,
    };
    let kvm = vcpu.kvm()?;
    kvm.set_regs(&registers).map_err(refused)?;
    let mut special = kvm.get_sregs().map_err(refused)?;
    special.cr3 = word() & 0xffff_f000;
    (special.gdt.base, special.gdt.limit) = (word(), word() as u16);
    (special.idt.base, special.idt.limit) = (word(), word() as u16);
    (special.ds.base, special.ds.selector, special.fs.base, special.tr.base) =
        (word() & 0xf_fff0, word() as u16, word(), word() & 0xffff);
    kvm.set_sregs(&special).map_err(refused)?;
    let mut floating_point = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    (floating_point.fsw, floating_point.ftwx) = (word() as u16 & 0x4700, word() as u8);
    floating_point.fpr.iter_mut().flat_map(|register| &mut register[..10]).for_each(|byte| *byte = word() as u8);
    floating_point.xmm.iter_mut().flatten().for_each(|byte| *byte = word() as u8);
    kvm.set_fpu(&floating_point).map_err(refused)?;
    VcpuState::of(vcpu)
}

fn vcpus(vm: &Vm, count: u64, random: &mut Random) -> Outcome<(Vec<Vcpu>, Vec<VcpuState>)> {
    let vcpus = (0..count).map(|id| vm.create_vcpu(id)).collect::<Outcome<Vec<_>>>()?;
    let states = vcpus.iter().map(|vcpu| randomize(vcpu, random)).collect::<Outcome<Vec<_>>>()?;
    Ok((vcpus, states))
}

fn random_plans(t: &Case) -> Outcome {
    let (key, mut random) = (IdKey::from_seed(t.seed()), Random::new(t.seed()));
    for round in 0..8 {
        with_guest(t, |vm, mut launch, range| {
            let mut page = random.below(3);
            let mut parts = Vec::new();
            while page < PAGES {
                let pages = (1 + random.below(3)).min(PAGES - page);
                let page_type = PageType::OF_USER_SPACE[random.below(5) as usize];
                parts.insert(random.below(parts.len() as u64 + 1) as usize, (page_type, page, pages));
                page += pages + random.below(2);
            }
            for (page_type, page, pages) in &parts {
                add(&mut launch, range, *page_type, *page, *pages)?;
            }
            let (_vcpus, states) = vcpus(vm, random.below(4), &mut random)?;
            let block = IdBlock::new(launch.digest(&states), SnpPolicy::DEFAULT);
            let what = format!("round {round}: {} vCPUs and {parts:?}", states.len());
            expect_done(&what, finish(&launch, &Signed::new(&key, &block))?)
        })?;
    }
    Ok(())
}

fn registers(t: &Case) -> Outcome {
    /// A change to what was predicted.
    type Change = fn(&mut Vec<VcpuState>);
    let changes: [(&str, Change); 7] = [
        ("r15", |states| states[1].registers.r15 ^= 1),
        ("the instruction pointer", |states| states[1].registers.rip ^= 1 << 47),
        ("a segment's base", |states| states[1].special.fs.base ^= 1 << 20),
        ("the page tables", |states| states[1].special.cr3 ^= 1 << 12),
        ("an XMM register", |states| states[1].floating_point.xmm[15][15] ^= 1),
        ("the order of the vCPUs", |states| states.swap(0, 1)),
        ("a vCPU that is not there", |states| states.push(states[0].clone())),
    ];
    let (key, mut random) = (IdKey::from_seed(t.seed()), Random::new(t.seed()));
    for (what, change) in changes {
        with_guest(t, |vm, mut launch, range| {
            add(&mut launch, range, PageType::Normal, 0, 1)?;
            let (_vcpus, mut states) = vcpus(vm, 2, &mut random)?;
            change(&mut states);
            let block = IdBlock::new(launch.digest(&states), SnpPolicy::DEFAULT);
            let result = finish(&launch, &Signed::new(&key, &block))?;
            expect_refused_by_firmware(&format!("{what} is not as predicted"), result, Firmware::BAD_MEASUREMENT)
        })?;
    }
    with_guest(t, |vm, mut launch, range| {
        add(&mut launch, range, PageType::Normal, 0, 1)?;
        let (_vcpus, states) = vcpus(vm, 2, &mut random)?;
        let block = IdBlock::new(launch.digest(&states), SnpPolicy::DEFAULT);
        expect_done("all registers are as predicted", finish(&launch, &Signed::new(&key, &block))?)
    })
}

fn signature(t: &Case) -> Outcome {
    with_guest(t, |_, mut launch, range| {
        add(&mut launch, range, PageType::Normal, 0, 1)?;
        let block = IdBlock::new(launch.digest(&[]), SnpPolicy::DEFAULT);
        let [key, other, author] = [0, 1, 2].map(|number| IdKey::from_seed(t.seed().wrapping_add(number)));
        let good = Signed::new(&key, &block);
        let mut changed = good.block;
        changed[0x38] ^= 1;
        let of_author = |author_key: &IdKey| Signed {
            authentication: block.authentication(&key, Some(author_key)),
            author_key: true,
            ..good.clone()
        };
        let mut by_nobody = of_author(&author);
        // The last byte of the author's signature that counts.
        by_nobody.authentication[0x680 + 47] ^= 1;
        let mut of_other = good.clone();
        let others = block.authentication(&other, None);
        of_other.authentication[0x240..0x240 + 0x404].copy_from_slice(&others[0x240..0x240 + 0x404]);
        for (what, signed) in [
            ("a block whose family was changed", Signed { block: changed, ..good.clone() }),
            ("a block under another key", of_other),
            ("a key that the author did not sign so", by_nobody),
        ] {
            expect_refused_by_firmware(what, finish(&launch, &signed)?, Firmware::BAD_SIGNATURE)?;
        }
        expect_done("a block with an author", finish(&launch, &of_author(&author))?)
    })
}

fn format(t: &Case) -> Outcome {
    with_guest(t, |_, launch, _| {
        let key = IdKey::from_seed(t.seed());
        let good = IdBlock::new(launch.digest(&[]), SnpPolicy::DEFAULT);
        let refused = |what: &str, signed: &Signed| {
            expect_refused_by_firmware(what, finish(&launch, signed)?, Firmware::INVALID_PARAM)
        };
        for version in [0, 2, u32::MAX] {
            refused(&format!("version {version}"), &Signed::new(&key, &IdBlock { version, ..good }))?;
        }
        // The key's algorithm, and the curve of its public key.
        for (what, offset) in [("algorithm", 0), ("curve", 0x240)] {
            let mut signed = Signed::new(&key, &good);
            signed.authentication[offset] = 3;
            refused(&format!("{what} 3"), &signed)?;
        }
        expect_done("the block as it should be", finish(&launch, &Signed::new(&key, &good))?)
    })
}
