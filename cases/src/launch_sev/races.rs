//! Steps of a launch that two threads take at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::sev::Memory;
use privet_harness::units::PAGE_SIZE;
use privet_harness::vcpu::Vcpu;

use super::vcpus::{encrypt, expect_closed, expect_no_entry, registers};
use super::vm::SevVm;
use crate::expect::{expect_done, expect_errno, expect_ok, expect_refused_by_kvm};
use crate::row::Row;
use crate::types::Types;

const LOCKS: &str = "arch/x86/kvm/svm/sev.c: sev_launch_update_vmsa, snp_launch_update_vmsa: kvm_lock_all_vcpus";
const FIX: &str = "CVE-2026-31591: the state of vCPUs is encrypted with all of them locked";

const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.race.a_vcpu_is_made",
            Types::ES_AND_SNP,
            "A vCPU that is made while the state of all is being encrypted is wholly in time or wholly late: its registers \
             are closed, or they are open and it does not enter the guest.",
            a_vcpu_is_made,
        )
        .basis(&[LOCKS, "virt/kvm/kvm_main.c: kvm_vm_ioctl_create_vcpu"]),
        Row::new(
            "launch.race.registers_are_written",
            Types::ES_AND_SNP,
            "KVM_SET_REGS while the state is being encrypted succeeds until it is closed, and is EINVAL from then on.",
            registers_are_written,
        )
        .basis(&[LOCKS, FIX]),
        Row::new(
            "launch.race.a_vcpu_runs",
            Types::ES_AND_SNP,
            "The state of a vCPU that somebody tries to run all the time is encrypted, and its registers are closed.",
            a_vcpu_runs,
        )
        .basis(&[LOCKS, FIX]),
        Row::new(
            "launch.race.encrypted_by_two",
            Types::ES_AND_SNP,
            "Of two threads that encrypt the state one does it, the other one is EINVAL.",
            encrypted_by_two,
        )
        .basis(&[LOCKS, "arch/x86/kvm/svm/sev.c: sev_es_sync_vmsa"]),
        Row::new(
            "launch.race.regions",
            Types::SEV_FAMILY,
            "Two threads register and unregister a region that is the same for both and one that is not: every time with \
             success, and none is left in the end.",
            regions,
        )
        .basis(&[
            "arch/x86/kvm/svm/sev.c: sev_mem_enc_register_region, sev_mem_enc_unregister_region",
            "CVE-2026-31590: the list of regions is locked",
        ]),
    ]
}

/// Both at once: what `here` and `there` say.
fn both<A, B: Send>(here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> Outcome<(A, B)> {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            start.wait();
            there()
        });
        start.wait();
        let here = here();
        Ok((here, other.join().map_err(|_| Stop::Error("a thread of the row panicked".into()))?))
    })
}

fn a_vcpu_is_made(t: &Case) -> Outcome {
    for _ in 0..10 {
        let sev = SevVm::started(t)?;
        let first = sev.vm.create_vcpu(0)?;
        let (encrypted, second) = both(|| encrypt(&sev), || sev.vm.create_vcpu(1))?;
        expect_done("the encryption", encrypted)?;
        expect_closed("the first vCPU", &first)?;
        let second = second?;
        match registers(&second)? {
            Ok(()) => expect_no_entry("KVM_RUN of the late vCPU", &second)?,
            closed => expect_errno("KVM_GET_REGS of the vCPU that was in time", closed, Errno::EINVAL)?,
        }
        expect_refused_by_kvm("another encryption", encrypt(&sev), Errno::EINVAL)?;
    }
    Ok(())
}

/// Writes registers until they are closed, or nobody is left who would close them: what KVM said last.
fn write_until_refused(vcpu: &Vcpu, hopeless: &AtomicBool) -> Outcome<Result<(), Errno>> {
    let kvm = vcpu.kvm()?;
    let Ok(mut registers) = kvm.get_regs() else { return Ok(Err(Errno::EINVAL)) };
    loop {
        registers.rax += 1;
        let written = kvm.set_regs(&registers).map_err(|error| Errno::from_raw(error.errno()));
        if written.is_err() || hopeless.load(Ordering::Acquire) {
            return Ok(written);
        }
    }
}

fn registers_are_written(t: &Case) -> Outcome {
    for _ in 0..5 {
        let sev = SevVm::started(t)?;
        let vcpus = [sev.vm.create_vcpu(0)?, sev.vm.create_vcpu(1)?];
        let hopeless = AtomicBool::new(false);
        let encrypting = || {
            let encrypted = encrypt(&sev);
            let closed = encrypted.is_ok() && matches!(registers(&vcpus[1]), Ok(Err(_)));
            hopeless.store(!closed, Ordering::Release);
            encrypted
        };
        let (encrypted, written) = both(encrypting, || write_until_refused(&vcpus[1], &hopeless))?;
        expect_done("the encryption", encrypted)?;
        expect_errno("KVM_SET_REGS in the end", written?, Errno::EINVAL)?;
        vcpus.iter().try_for_each(|vcpu| expect_closed("a vCPU", vcpu))?;
    }
    Ok(())
}

/// Runs a vCPU until it enters the guest, or for nothing more to wait for.
fn run_until_it_enters(vcpu: &Vcpu, over: &AtomicBool) -> Outcome {
    while !over.load(Ordering::Acquire) {
        vcpu.start()?;
        let exit = loop {
            if let Some(exit) = vcpu.poll()? {
                break exit;
            }
            if over.load(Ordering::Acquire) {
                vcpu.kick()?;
                break vcpu.wait(LIMIT)?;
            }
            thread::yield_now();
        };
        // Once its state is encrypted, it enters a guest without code.
        if !matches!(exit, Exit::FailEntry { hardware_reason: u64::MAX, .. }) {
            break;
        }
    }
    Ok(())
}

fn a_vcpu_runs(t: &Case) -> Outcome {
    for _ in 0..5 {
        let sev = SevVm::started(t)?;
        let vcpu = sev.vm.create_vcpu(0)?;
        let over = AtomicBool::new(false);
        let encrypting = || {
            let encrypted = encrypt(&sev);
            over.store(true, Ordering::Release);
            encrypted
        };
        let (encrypted, ran) = both(encrypting, || run_until_it_enters(&vcpu, &over))?;
        expect_done("the encryption", encrypted)?;
        ran?;
        expect_closed("the vCPU", &vcpu)?;
    }
    Ok(())
}

fn encrypted_by_two(t: &Case) -> Outcome {
    for _ in 0..10 {
        let sev = SevVm::started(t)?;
        let vcpus = [sev.vm.create_vcpu(0)?, sev.vm.create_vcpu(1)?];
        let (here, there) = both(|| encrypt(&sev), || encrypt(&sev))?;
        let (done, refused) = if here.is_ok() { (here, there) } else { (there, here) };
        expect_done("one encryption", done)?;
        expect_refused_by_kvm("the other one", refused, Errno::EINVAL)?;
        vcpus.iter().try_for_each(|vcpu| expect_closed("a vCPU", vcpu))?;
    }
    Ok(())
}

fn regions(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let memory = Mapping::anonymous(4 * PAGE_SIZE)?;
    let (shared, own) = (0..PAGE_SIZE, |thread: u64| (1 + thread) * PAGE_SIZE..(2 + thread) * PAGE_SIZE);
    let rounds = |thread: u64| {
        for round in 0..20 {
            let regions = [shared.clone(), own(thread)];
            for region in &regions {
                let place = Memory::In(&memory, region.start);
                expect_ok(&format!("REG_REGION in round {round}"), sev.commands().register_region(place, PAGE_SIZE))?;
            }
            for region in &regions {
                let place = Memory::In(&memory, region.start);
                expect_ok(
                    &format!("UNREG_REGION in round {round}"),
                    sev.commands().unregister_region(place, PAGE_SIZE),
                )?;
            }
        }
        Ok::<_, Stop>(())
    };
    let (here, there) = both(|| rounds(0), || rounds(1))?;
    here?;
    there?;
    for region in [shared.clone(), own(0), own(1)] {
        let left = sev.commands().unregister_region(Memory::In(&memory, region.start), PAGE_SIZE);
        expect_errno("UNREG_REGION in the end", left, Errno::EINVAL)?;
    }
    Ok(())
}
