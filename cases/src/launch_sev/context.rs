//! The encryption context of one VM for another: mirrors, and moves.

use std::os::fd::AsRawFd;
use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Command, Commands, Finish, Memory};
use privet_harness::uapi::Capability;
use privet_harness::units::PAGE_SIZE;
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

use super::vm::SevVm;
use crate::expect::{expect_done, expect_eq, expect_errno, expect_ok, expect_refused_by_kvm};
use crate::row::Row;
use crate::types::Types;

const MIRROR: &str = "arch/x86/kvm/svm/sev.c: sev_vm_copy_enc_context_from";
const MOVE: &str = "arch/x86/kvm/svm/sev.c: sev_vm_move_enc_context_from, sev_check_source_vcpus";
const ALLOWED: &str = "arch/x86/kvm/svm/sev.c: is_cmd_allowed_from_mirror";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.mirror.refused",
            Types::SEV_AND_ES,
            "KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: no VM's descriptor is EBADF; a VM that is no guest yet, a mirror, itself, \
             and a mirror that has a context or a vCPU already, are EINVAL.",
            mirror_refused,
        )
        .guests(2)
        .basis(&[MIRROR])
        .upstream("x86/sev_migrate_tests: test_sev_mirror_parameters"),
        Row::new(
            "launch.mirror.commands",
            Types::SEV_AND_ES,
            "A mirror may ask for the state, debug and encrypt the state of vCPUs; every other command is EINVAL, and so \
             are regions. It outlives the other's descriptor.",
            mirror_commands,
        )
        .basis(&[ALLOWED, MIRROR])
        .upstream("x86/sev_migrate_tests: test_sev_mirror"),
        Row::new(
            "launch.move.not_of_snp",
            Types::SNP,
            "The context of an SNP guest cannot be moved, and none be mirrored: EINVAL, before and after the beginning of its \
             launch.",
            not_of_snp,
        )
        .guests(2)
        .basis(&[MOVE, MIRROR]),
        Row::new(
            "launch.move.refused",
            Types::SEV_AND_ES,
            "KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: no VM's descriptor is EBADF; a VM of another type, itself, one without a \
             context, and a target that has one, are EINVAL; both stay what they are.",
            move_refused,
        )
        .guests(2)
        .basis(&[MOVE])
        .upstream("x86/sev_migrate_tests: test_sev_migrate_parameters"),
        Row::new(
            "launch.move.chain",
            Types::SEV_AND_ES,
            "A context moves from VM to VM: each one that it left is dead, EIO of every ioctl. The last one is a guest, \
             but KVM does not move the descriptor of the firmware: its commands are EBADF.",
            move_chain,
        )
        .basis(&[MOVE, "arch/x86/kvm/svm/sev.c: sev_migrate_from leaves sev->fd", "virt/kvm/kvm_main.c: kvm_vm_dead"])
        .exceeds("x86/sev_migrate_tests: test_sev_migrate_from"),
        Row::new(
            "launch.move.vcpus",
            Types::SEV_ES,
            "A context with vCPUs moves to a VM with as many, in any state of theirs: fewer or more are EINVAL, and so \
             are vCPUs whose state is not encrypted yet.",
            move_vcpus,
        )
        .basis(&[MOVE])
        .exceeds("x86/sev_migrate_tests: test_sev_migrate_parameters"),
        Row::new(
            "launch.move.and_mirror",
            Types::SEV_AND_ES,
            "A context moves away from under its mirror, which belongs to the new owner then; a mirror's context moves, \
             too. All can be closed in any order.",
            move_and_mirror,
        )
        .basis(&[MOVE, MIRROR])
        .upstream("x86/sev_migrate_tests: test_sev_move_copy"),
        Row::new(
            "launch.move.to_two_at_once",
            Types::SEV_AND_ES,
            "Two threads move one context to a VM each: whatever the order, one gets it and the other, which may be EBUSY \
             meanwhile, is EINVAL.",
            move_to_two,
        )
        .guests(2)
        .basis(&[MOVE, "arch/x86/kvm/svm/sev.c: sev_lock_two_vms"])
        .exceeds("x86/sev_migrate_tests: test_sev_migrate_locking"),
        Row::new(
            "launch.snp_stays_alone",
            Types::SNP,
            "An SNP guest is neither mirrored nor moved, to a VM of any type, before, during and after its launch: \
             EINVAL.",
            snp_stays_alone,
        )
        .guests(2)
        .basis(&[MIRROR, MOVE])
        .exceeds("x86/sev_migrate_tests: test_sev_snp_migrate_reject, test_sev_snp_mirror_reject"),
    ]
    .into_iter()
    .map(|row| row.needs(Need::SystemCapability(Capability::VM_MOVE_ENC_CONTEXT_FROM, 1)))
    .collect()
}

fn mirror(to: &Vm, from: i32) -> Result<(), Errno> {
    to.enable_cap(Capability::VM_COPY_ENC_CONTEXT_FROM, [from as u64, 0, 0, 0])
}

fn move_to(to: &Vm, from: i32) -> Result<(), Errno> {
    to.enable_cap(Capability::VM_MOVE_ENC_CONTEXT_FROM, [from as u64, 0, 0, 0])
}

fn fd(vm: &Vm) -> i32 {
    vm.kvm().as_raw_fd()
}

fn mirror_refused(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let target = Vm::create(t.host(), VmType::Plain)?;
    expect_errno("no descriptor", mirror(&target, -1), Errno::EBADF)?;
    expect_errno("the firmware's descriptor", mirror(&target, sev.device.fd()), Errno::EBADF)?;
    expect_errno("a plain VM", mirror(&target, fd(&Vm::create(t.host(), VmType::Plain)?)), Errno::EINVAL)?;
    expect_errno("a VM before INIT2", mirror(&target, fd(&t.vm()?)), Errno::EINVAL)?;
    expect_errno("itself", mirror(&target, fd(&target)), Errno::EINVAL)?;
    expect_errno("itself, of a guest", mirror(&sev.vm, fd(&sev.vm)), Errno::EINVAL)?;
    expect_errno("a guest of its own", mirror(&SevVm::started(t)?.vm, fd(&sev.vm)), Errno::EINVAL)?;
    let with_vcpu = Vm::create(t.host(), VmType::Plain)?;
    let _vcpu = with_vcpu.create_vcpu(0)?;
    expect_errno("a target with a vCPU", mirror(&with_vcpu, fd(&sev.vm)), Errno::EINVAL)?;
    expect_ok("a guest", mirror(&target, fd(&sev.vm)))?;
    expect_errno("a guest again", mirror(&target, fd(&sev.vm)), Errno::EINVAL)?;
    let second = Vm::create(t.host(), VmType::Plain)?;
    expect_errno("a mirror", mirror(&second, fd(&target)), Errno::EINVAL)
}

fn mirror_commands(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let target = Vm::create(t.host(), VmType::Plain)?;
    expect_ok("the mirror", mirror(&target, fd(&sev.vm)))?;
    let commands = Commands::new(&target, &sev.device);
    let allowed = [Command::LAUNCH_UPDATE_VMSA, Command::GUEST_STATUS, Command::DBG_DECRYPT, Command::DBG_ENCRYPT];
    for command in Command::ALL.iter().filter(|command| !allowed.contains(command)) {
        expect_refused_by_kvm(
            &format!("{command} of a mirror"),
            commands.without_argument(*command, 8),
            Errno::EINVAL,
        )?;
    }
    let (memory, plain) = (Mapping::anonymous(PAGE_SIZE)?, Mapping::anonymous(PAGE_SIZE)?);
    memory.fill(0, PAGE_SIZE, 0x5a)?;
    let (inside, outside) = (Memory::In(&memory, 0), Memory::In(&plain, 0));
    expect_errno("a region of a mirror", commands.register_region(inside, PAGE_SIZE), Errno::EINVAL)?;
    expect_errno("the end of one", commands.unregister_region(inside, PAGE_SIZE), Errno::EINVAL)?;
    expect_done("LAUNCH_UPDATE_DATA", sev.commands().launch_update_data(inside, PAGE_SIZE as u32))?;
    let status = expect_done("GUEST_STATUS", sev.commands().guest_status())?;
    let SevVm { vm, device, .. } = sev;
    drop(vm);
    expect_eq("GUEST_STATUS of the mirror", &expect_done("GUEST_STATUS", commands.guest_status())?, &status)?;
    expect_done("DBG_DECRYPT of the mirror", commands.dbg_decrypt(inside, outside, PAGE_SIZE as u32))?;
    expect_eq("what was decrypted wrongly", &plain.first_other_than(0, PAGE_SIZE, 0x5a)?, &None)?;
    drop(target);
    drop(device);
    Ok(())
}

fn not_of_snp(t: &Case) -> Outcome {
    for (what, sev) in [("before it begins", SevVm::initialized(t)?), ("after it has begun", SevVm::started(t)?)] {
        expect_errno(&format!("a move {what}"), move_to(&t.vm()?, fd(&sev.vm)), Errno::EINVAL)?;
        let plain = Vm::create(t.host(), VmType::Plain)?;
        expect_errno(&format!("a mirror {what}"), mirror(&plain, fd(&sev.vm)), Errno::EINVAL)?;
    }
    Ok(())
}

fn move_refused(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let status = expect_done("GUEST_STATUS", sev.commands().guest_status())?;
    let target = t.vm()?;
    expect_errno("no descriptor", move_to(&target, -1), Errno::EBADF)?;
    expect_errno("the firmware's descriptor", move_to(&target, sev.device.fd()), Errno::EBADF)?;
    expect_errno("a VM before INIT2", move_to(&target, fd(&t.vm()?)), Errno::EINVAL)?;
    expect_errno("itself", move_to(&sev.vm, fd(&sev.vm)), Errno::EINVAL)?;
    expect_errno("a target that is a guest", move_to(&SevVm::initialized(t)?.vm, fd(&sev.vm)), Errno::EINVAL)?;
    let plain = Vm::create(t.host(), VmType::Plain)?;
    expect_errno("a target of another type", move_to(&plain, fd(&sev.vm)), Errno::EINVAL)?;
    let seen = expect_done("GUEST_STATUS", sev.commands().guest_status())?;
    expect_eq("what the firmware says of the guest", &seen, &status)
}

/// A guest that got its context by a move.
fn expect_moved(what: &str, commands: Commands<'_>) -> Outcome {
    expect_refused_by_kvm(&format!("GUEST_STATUS of {what}"), commands.guest_status(), Errno::EBADF)?;
    expect_refused_by_kvm(&format!("INIT2 of {what}"), commands.init2(Default::default()), Errno::EINVAL)?;
    let memory = Mapping::anonymous(PAGE_SIZE)?;
    expect_ok(&format!("a region of {what}"), commands.register_region(Memory::In(&memory, 0), PAGE_SIZE))
}

fn move_chain(t: &Case) -> Outcome {
    let first = SevVm::started(t)?;
    let mut vms = vec![first.vm];
    for step in 0..3 {
        let next = t.vm()?;
        expect_ok(&format!("step {step}"), move_to(&next, fd(&vms[step])))?;
        expect_moved(&format!("the VM of step {step}"), Commands::new(&next, &first.device))?;
        vms.push(next);
        let dead = Commands::new(&vms[step], &first.device);
        expect_refused_by_kvm("GUEST_STATUS of a dead VM", dead.guest_status(), Errno::EIO)?;
        let slot = vms[step].set_user_memory_region2_raw(&Default::default(), None);
        expect_errno("a slot of a dead VM", slot, Errno::EIO)?;
        expect_errno("a move to a dead VM", move_to(&vms[step], fd(&vms[step + 1])), Errno::EIO)?;
    }
    Ok(())
}

fn move_vcpus(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpus = [sev.vm.create_vcpu(0)?, sev.vm.create_vcpu(1)?];
    let target = |count: u64| -> Outcome<_> {
        let vm = t.vm()?;
        let vcpus = (0..count).map(|id| vm.create_vcpu(id)).collect::<Outcome<Vec<_>>>()?;
        Ok((vm, vcpus))
    };
    let (open, _vcpus) = target(2)?;
    expect_errno("vCPUs that are not encrypted", move_to(&open, fd(&sev.vm)), Errno::EINVAL)?;
    expect_done("LAUNCH_UPDATE_VMSA", sev.commands().launch_update_vmsa())?;
    for count in [0, 1, 3] {
        let (other, _vcpus) = target(count)?;
        expect_errno(&format!("a target with {count} vCPUs"), move_to(&other, fd(&sev.vm)), Errno::EINVAL)?;
    }
    expect_ok("a target with two vCPUs", move_to(&open, fd(&sev.vm)))?;
    for vcpu in &vcpus {
        let registers = vcpu.kvm()?.get_regs().map(drop).map_err(|error| Errno::from_raw(error.errno()));
        expect_errno("KVM_GET_REGS of a dead VM", registers, Errno::EIO)?;
    }
    let moved = Commands::new(&open, &sev.device);
    expect_refused_by_kvm("LAUNCH_UPDATE_VMSA again", moved.launch_update_vmsa(), Errno::EINVAL)
}

fn move_and_mirror(t: &Case) -> Outcome {
    for mirror_dies_first in [false, true] {
        let sev = SevVm::started(t)?;
        let copy = Vm::create(t.host(), VmType::Plain)?;
        expect_ok("the mirror", mirror(&copy, fd(&sev.vm)))?;
        let (owner, other_copy) = (t.vm()?, Vm::create(t.host(), VmType::Plain)?);
        expect_ok("the move of the guest", move_to(&owner, fd(&sev.vm)))?;
        expect_ok("the move of the mirror", move_to(&other_copy, fd(&copy)))?;
        expect_moved("the new owner", Commands::new(&owner, &sev.device))?;
        let status = Commands::new(&other_copy, &sev.device).guest_status();
        expect_refused_by_kvm("GUEST_STATUS of the moved mirror", status, Errno::EBADF)?;
        let again = mirror(&Vm::create(t.host(), VmType::Plain)?, fd(&other_copy));
        expect_errno("a mirror of the moved mirror", again, Errno::EINVAL)?;
        if mirror_dies_first {
            drop((other_copy, copy, sev, owner));
        } else {
            drop((owner, sev, copy, other_copy));
        }
    }
    Ok(())
}

fn move_to_two(t: &Case) -> Outcome {
    for round in 0..20 {
        let sev = SevVm::started(t)?;
        let targets = [t.vm()?, t.vm()?];
        let until_it_is_told = |target: &Vm| loop {
            match move_to(target, fd(&sev.vm)) {
                Err(Errno::EBUSY) => thread::yield_now(),
                told => return told,
            }
        };
        let told = thread::scope(|scope| {
            let threads = targets.each_ref().map(|target| scope.spawn(|| until_it_is_told(target)));
            threads.map(|thread| thread.join().unwrap_or(Err(Errno::UnknownErrno)))
        });
        let expected = if told[0].is_ok() { [Ok(()), Err(Errno::EINVAL)] } else { [Err(Errno::EINVAL), Ok(())] };
        expect_eq(&format!("what the two are told in round {round}"), &told, &expected)?;
        for (target, told) in targets.iter().zip(told) {
            if told.is_ok() {
                expect_moved("the target", Commands::new(target, &sev.device))?;
            }
        }
    }
    Ok(())
}

fn snp_stays_alone(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let stays = |when: &str| {
        for vm_type in [VmType::Plain, VmType::Sev, VmType::SevEs, VmType::Snp] {
            if t.host().why_not(vm_type).is_some() {
                continue;
            }
            let target = Vm::create(t.host(), vm_type)?;
            let what = format!("to a {vm_type} VM {when}");
            expect_errno(&format!("a mirror {what}"), mirror(&target, fd(&sev.vm)), Errno::EINVAL)?;
            expect_errno(&format!("a move {what}"), move_to(&target, fd(&sev.vm)), Errno::EINVAL)?;
        }
        Ok(())
    };
    stays("before its launch")?;
    expect_done("SNP_LAUNCH_START", sev.start())?;
    stays("during its launch")?;
    expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))?;
    stays("after its launch")
}
