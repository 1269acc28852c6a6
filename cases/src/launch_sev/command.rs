//! The envelope of all commands: which are known when, and what becomes of an argument that cannot be read.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Command, Commands, Finish, Memory, SevPolicy, SnpPolicy, Update};
use privet_harness::uapi::KVM_MEMORY_ENCRYPT_OP;
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

use super::vm::{BySevType, SevVm};
use crate::expect::{expect_done, expect_eq, expect_errno, expect_refused_by_kvm};
use crate::row::Row;
use crate::types::Types;

const ENVELOPE: &str = "arch/x86/kvm/svm/sev.c: sev_mem_enc_ioctl";

/// Nothing is mapped here.
const UNREADABLE: u16 = 8;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "launch.command.null_argument_is_a_probe",
            Types::SEV_FAMILY,
            "KVM_MEMORY_ENCRYPT_OP without an argument says 0 on any VM of a host that has SEV, plain ones included, \
             before and after INIT2.",
            null_is_a_probe,
        ),
        Row::new(
            "launch.command.unreadable_envelope",
            Types::SEV_FAMILY,
            "A command that cannot be read is EFAULT, before and after INIT2.",
            unreadable_envelope,
        ),
        Row::new(
            "launch.command.sealed_envelope",
            Types::SEV_FAMILY,
            "A command in an envelope that cannot be written is done, or refused, and EFAULT in either case.",
            sealed_envelope,
        ),
        Row::new(
            "launch.command.unknown",
            Types::SEV_FAMILY,
            "A number that is no command, or a command that KVM has no code for, is EINVAL; of an SNP guest each number \
             below the first SNP command is EPERM.",
            unknown,
        ),
        Row::new(
            "launch.command.unreadable_argument",
            Types::SEV_FAMILY,
            "Each command whose argument KVM reads is EFAULT if it cannot, and the launch goes on as if it had not been \
             given.",
            unreadable_argument,
        ),
        Row::new(
            "launch.command.before_init",
            Types::SEV_FAMILY,
            "Before INIT2 no command does anything: ENOTTY, but EINVAL of RECEIVE_UPDATE_DATA, \
             SNP_LAUNCH_UPDATE and SNP_ENABLE_REQ_CERTS.",
            before_init,
        ),
        Row::new(
            "launch.command.of_another_type",
            Types::SEV_FAMILY,
            "A SEV or SEV-ES guest has none of the SNP commands, an SNP guest none of the others: EPERM, whatever their \
             argument is, INIT2 included.",
            of_another_type,
        ),
        Row::new(
            "launch.command.plain_vm_has_none",
            Types::SEV_FAMILY,
            "A plain VM on a host with SEV knows no command: INIT2 is EINVAL, all others ENOTTY or EINVAL; it is none \
             the wiser afterwards, and runs no encrypted guest.",
            plain_vm_has_none,
        ),
    ];
    rows = rows.into_iter().map(|row| row.basis(&[ENVELOPE])).collect();
    rows
}

fn null_is_a_probe(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let plain = Vm::create(t.host(), VmType::Plain)?;
    let probe = |vm: &Vm| vm.ioctl_raw(KVM_MEMORY_ENCRYPT_OP, 0);
    expect_eq("the probe of a plain VM", &probe(&plain), &Ok(0))?;
    expect_eq("the probe before INIT2", &probe(&sev.vm), &Ok(0))?;
    expect_done("INIT2", sev.commands().init2(Default::default()))?;
    expect_eq("the probe after INIT2", &probe(&sev.vm), &Ok(0))
}

fn unreadable_envelope(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let give = || sev.vm.ioctl_raw(KVM_MEMORY_ENCRYPT_OP, UNREADABLE);
    expect_errno("a command before INIT2", give(), Errno::EFAULT)?;
    expect_done("INIT2", sev.commands().init2(Default::default()))?;
    expect_errno("a command after INIT2", give(), Errno::EFAULT)
}

fn sealed_envelope(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let refused =
        BySevType { sev: Command::LAUNCH_FINISH, sev_es: Command::LAUNCH_FINISH, snp: Command::SNP_LAUNCH_FINISH };
    let refused = refused.of(t);
    expect_errno(&format!("{refused} before there is a guest"), sev.commands().sealed(refused)?, Errno::EFAULT)
}

fn unknown(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let of_sev = BySevType { sev: Errno::EINVAL, sev_es: Errno::EINVAL, snp: Errno::EPERM }.of(t);
    let without_code = [Command::SEND_UPDATE_VMSA, Command::RECEIVE_UPDATE_VMSA, Command::CERT_EXPORT];
    for command in without_code.into_iter().chain([23, 50, 99].map(Command)) {
        expect_refused_by_kvm(&command.to_string(), sev.commands().without_argument(command, 0), of_sev)?;
    }
    for command in [104, 1000, u32::MAX].map(Command) {
        expect_refused_by_kvm(&command.to_string(), sev.commands().without_argument(command, 0), Errno::EINVAL)?;
    }
    expect_done("LAUNCH_START after all", sev.start())
}

fn unreadable_argument(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let refused = |command: Command| {
        let result = sev.commands().without_argument(command, UNREADABLE);
        expect_refused_by_kvm(&command.to_string(), result, Errno::EFAULT)
    };
    refused(Command::INIT2)?;
    expect_done("INIT2", sev.commands().init2(Default::default()))?;
    let of_sev: &[Command] = &[
        Command::LAUNCH_START,
        Command::LAUNCH_UPDATE_DATA,
        Command::LAUNCH_MEASURE,
        Command::LAUNCH_SECRET,
        Command::DBG_DECRYPT,
        Command::DBG_ENCRYPT,
        Command::GET_ATTESTATION_REPORT,
        Command::SEND_START,
        Command::SEND_UPDATE_DATA,
        Command::RECEIVE_UPDATE_DATA,
    ];
    let (before, after): (&[Command], &[Command]) = BySevType {
        sev: (of_sev, of_sev),
        sev_es: (of_sev, of_sev),
        snp: (
            &[Command::SNP_LAUNCH_START],
            &[Command::SNP_LAUNCH_START, Command::SNP_LAUNCH_UPDATE, Command::SNP_LAUNCH_FINISH],
        ),
    }
    .of(t);
    before.iter().try_for_each(|command| refused(*command))?;
    expect_done("LAUNCH_START", sev.start())?;
    after.iter().try_for_each(|command| refused(*command))
}

/// Every command with an argument that is good as far as it can be, and what it says before there is a context.
fn expect_no_context(commands: Commands<'_>) -> Outcome {
    let no = |what: &str, result, errno| expect_refused_by_kvm(what, result, errno);
    no("LAUNCH_START", commands.launch_start(0, SevPolicy::NONE, None).map(drop), Errno::ENOTTY)?;
    no("LAUNCH_UPDATE_DATA", commands.launch_update_data(Memory::NONE, 0), Errno::ENOTTY)?;
    no("LAUNCH_UPDATE_VMSA", commands.launch_update_vmsa(), Errno::ENOTTY)?;
    no("LAUNCH_MEASURE", commands.launch_measure(Memory::NONE, 0).0, Errno::ENOTTY)?;
    no("LAUNCH_FINISH", commands.launch_finish(), Errno::ENOTTY)?;
    no("GUEST_STATUS", commands.guest_status().map(drop), Errno::ENOTTY)?;
    no("DBG_DECRYPT", commands.dbg_decrypt(Memory::NONE, Memory::NONE, 0), Errno::ENOTTY)?;
    no("DBG_ENCRYPT", commands.dbg_encrypt(Memory::NONE, Memory::NONE, 0), Errno::ENOTTY)?;
    for command in [
        Command::LAUNCH_SECRET,
        Command::GET_ATTESTATION_REPORT,
        Command::SEND_START,
        Command::SEND_UPDATE_DATA,
        Command::SEND_FINISH,
        Command::SEND_CANCEL,
        Command::RECEIVE_START,
        Command::RECEIVE_FINISH,
    ] {
        no(&command.to_string(), commands.without_argument(command, 0), Errno::ENOTTY)?;
    }
    let receive = Command::RECEIVE_UPDATE_DATA;
    no(&receive.to_string(), commands.without_argument(receive, 0), Errno::EINVAL)?;
    expect_no_snp(commands)?;
    expect_errno("a region", commands.register_region(Memory::NONE, 0), Errno::ENOTTY)?;
    expect_errno("the end of a region", commands.unregister_region(Memory::NONE, 0), Errno::ENOTTY)
}

fn expect_no_snp(commands: Commands<'_>) -> Outcome {
    let no = |what: &str, result, errno| expect_refused_by_kvm(what, result, errno);
    let mut update = Update { gfn: 0, source: Memory::NONE, len: 0, page_type: 1, flags: 0 };
    no("SNP_LAUNCH_START", commands.snp_launch_start(SnpPolicy::DEFAULT, 0), Errno::ENOTTY)?;
    no("SNP_LAUNCH_UPDATE", commands.snp_launch_update(&mut update), Errno::EINVAL)?;
    no("SNP_LAUNCH_FINISH", commands.snp_launch_finish(Finish::PLAIN), Errno::ENOTTY)?;
    no("SNP_ENABLE_REQ_CERTS", commands.snp_enable_req_certs(), Errno::EINVAL)
}

fn before_init(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    expect_no_context(sev.commands())?;
    expect_done("INIT2 after all", sev.commands().init2(Default::default()))
}

fn of_another_type(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let is_snp = BySevType { sev: false, sev_es: false, snp: true }.of(t);
    if !is_snp {
        expect_no_snp(sev.commands())?;
        return expect_done("LAUNCH_START", sev.start());
    }
    let refuses_all = |when: &str| {
        Command::ALL.iter().filter(|command| command.0 < Command::SNP_LAUNCH_START.0).try_for_each(|command| {
            let result = sev.commands().without_argument(*command, UNREADABLE);
            expect_refused_by_kvm(&format!("{command} {when}"), result, Errno::EPERM)
        })
    };
    refuses_all("before SNP_LAUNCH_START")?;
    expect_done("SNP_LAUNCH_START", sev.start())?;
    refuses_all("after SNP_LAUNCH_START")?;
    expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))?;
    refuses_all("after SNP_LAUNCH_FINISH")
}

fn plain_vm_has_none(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let plain = Vm::create(t.host(), VmType::Plain)?;
    let commands = Commands::new(&plain, &sev.device);
    expect_refused_by_kvm("INIT2", commands.init2(Default::default()), Errno::EINVAL)?;
    expect_no_context(commands)?;
    expect_refused_by_kvm("INIT2 again", commands.init2(Default::default()), Errno::EINVAL)
}
