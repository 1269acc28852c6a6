//! Memory that is not there yet, as of a guest that is still coming from another host: the vCPU waits for it in the kernel.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::mapping::Mapping;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::platform::ByType;
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::uapi::Capability;
use privet_harness::units::PAGE_SIZE;
use privet_harness::userfault::Userfault;
use privet_protocol::{Op, Pattern, Width};

use crate::asleep::Asleep;
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const PAGE: u64 = 2;

const FAULTIN: &str = "virt/kvm/kvm_main.c: hva_to_pfn_slow: FOLL_INTERRUPTIBLE";
const SIGNAL: &str = "arch/x86/kvm/mmu/mmu.c: kvm_handle_error_pfn: KVM_PFN_ERR_SIGPENDING";

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "exits.awaited_page",
            Types::ALL,
            "A load of a page that is not there waits until somebody brings it: no exit, and the guest reads what was \
             brought.",
            awaited,
        )
        .basis(&[FAULTIN]),
        Row::new(
            "exits.awaited_page.interrupted",
            Types::ALL,
            "A vCPU that waits for a page can be interrupted: EINTR, as often as that happens, and each time it waits again. \
             Once the page is there the guest goes on.",
            interrupted,
        )
        .basis(&[FAULTIN, SIGNAL, "virt/kvm/async_pf.c: kvm_setup_async_pf"])
        // What waits in user space, as a model of KVM does, waits for the page whatever signals come.
        .needs(Need::SystemCapability(Capability::ASYNC_PF, 1))
        .needs(Need::KernelSince((6, 2), "it waits for the page however often it is interrupted")),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

/// A guest none of whose memory is there in its test range, and the page that it wants.
fn guest(t: &Case) -> Outcome<(Guest, Mapping)> {
    let g = t.guest().range(RangeSpec::new(4).backing(Backing::HostOnly)).boot()?;
    g.range(0).host().discard(0, 4 * PAGE_SIZE)?;
    let brought = Mapping::anonymous(PAGE_SIZE)?;
    brought.fill_words(0, PAGE_SIZE, A.word(PAGE))?;
    Ok((g, brought))
}

fn load(g: &Guest) -> Op {
    Op::Read { gva: g.range(0).shared_gva(PAGE).0, width: Width::B8 }
}

fn awaited(t: &Case) -> Outcome {
    let (g, brought) = guest(t)?;
    let memory = g.range(0).host().clone();
    let mut userfault = Userfault::over(&memory)?;
    let exits = t.trace().exits();
    let loading = g.vcpu(0).start(load(&g))?;
    expect_eq("the page that is wanted", &userfault.wanted(t.limit())?, &PAGE)?;
    userfault.bring(PAGE, &brought)?;
    expect_eq("what the guest reads", &loading.done()?[0], &A.word(PAGE))?;
    expect_no_exit_but(t, exits, 1)
}

fn interrupted(t: &Case) -> Outcome {
    let (g, brought) = guest(t)?;
    let memory = g.range(0).host().clone();
    let mut userfault = Userfault::over(&memory)?;
    let vcpu = g.vcpu(0).kvm();
    let (counters, asleep) = (Counters::of_vcpu(&g)?, Asleep::of(vcpu)?);
    // The vCPU of a TD, whose APIC is KVM's, sleeps while a thread of KVM's waits: that is so in one call after the other.
    let sleeps = t.by_type(ByType { plain: false, upm: false, sev: false, sev_es: false, snp: false, tdx: true });
    let loading = g.vcpu(0).start(load(&g))?;
    for time in 0..4 {
        if time == 0 || !sleeps {
            expect_eq("the page that is wanted", &userfault.wanted(t.limit())?, &PAGE)?;
        }
        if sleeps {
            asleep.wait()?;
        }
        if time < 3 {
            counters.expect_growth("signal_exits", 1, || {
                vcpu.kick()?;
                loading.expect_exit(&Exit::Interrupted)
            })?;
            loading.resume()?;
        }
    }
    userfault.bring(PAGE, &brought)?;
    expect_eq("what the guest reads", &loading.done()?[0], &A.word(PAGE))
}
